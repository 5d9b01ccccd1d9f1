"""Asking the aggregators: one question to all, one answer for each shard, merged."""

from __future__ import annotations

import logging

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metric.query import Answer, Partial, Query, decode_partial, encode_query, merge_partials

log = logging.getLogger("tokentrace.api")

TIMEOUT_S = 0.5


class Aggregators:
    """
    All aggregators there are.

    Args:
        shards: How many shards they hold between them.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards

    async def ask(self, query: Query) -> Answer:
        """
        The answer to *query*; ``missing_shards`` names what nobody answered for within half a second.

        Raises:
            Unavailable: Nobody answered at all.
        """
        partials: list[Partial] = []
        read = 0

        def enough(answers: list[bytes]) -> bool:
            nonlocal read
            for answer in answers[read:]:
                try:
                    partials.append(decode_partial(answer))
                except Rejected as exc:
                    log.warning("an answer on the bus cannot be read: %s", exc)
            read = len(answers)
            return len({partial.shard for partial in partials}) >= self._shards

        answers = await self._bus.gather(
            subjects.QUERY_METRICS, encode_query(query), timeout_s=TIMEOUT_S, enough=enough
        )
        enough(answers)
        if not partials:
            raise Unavailable("no aggregator answers")
        return merge_partials(partials, self._shards, query)
