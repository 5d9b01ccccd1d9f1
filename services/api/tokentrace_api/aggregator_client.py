"""Asking the aggregators: one question to all, one answer for each shard, merged."""

from __future__ import annotations

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metrics import Answer, Query, ShardResult, decode_result, encode_query, merge_results

#: For a shard that nothing is heard of, and for one that has promised an answer.
TIMEOUT_S, ACK_WAIT_S = 0.5, 10.0


class AggregatorClient:
    """
    All aggregators there are.

    Args:
        shards: How many shards they hold between them.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards

    async def ask(self, query: Query) -> Answer:
        """
        The answer to *query*; ``missing_shards`` names what nobody answered for in time.

        That is within half a second; whoever needs longer says so first, and is given ten.

        Raises:
            Unavailable: Nobody answered at all.
        """
        partials: list[ShardResult] = []
        promised: set[int] = set()
        read = 0

        def patience(answers: list[bytes]) -> float:
            nonlocal read
            for answer in answers[read:]:
                with self._bus.set_aside.guard(subjects.QUERY_METRICS, "answer"):
                    found = decode_result(answer)
                    shard = found.shard if isinstance(found, ShardResult) else found
                    if not 0 <= shard < self._shards:
                        raise Rejected(f"partial answer: of shard {shard}, there are {self._shards}")
                    if isinstance(found, ShardResult):
                        partials.append(found)
                    else:
                        promised.add(found)
            read = len(answers)
            answered = {partial.shard for partial in partials}
            if len(answered) >= self._shards:
                return 0
            return ACK_WAIT_S if promised - answered else TIMEOUT_S

        await self._bus.request_many(subjects.QUERY_METRICS, encode_query(query), patience)
        if not partials:
            raise Unavailable("no aggregator answers")
        return merge_results(partials, self._shards, query)
