"""Queries the aggregators: one request goes to all of them, and the results of the shards are merged."""

from __future__ import annotations

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metrics import Answer, Query, ShardResult, decode_result, encode_query, merge_results

#: How long after the request replies are awaited, seconds: normally, and while a shard has only replied "in progress".
TIMEOUT_S, ACK_WAIT_S = 0.5, 10.0


class AggregatorClient:
    """
    Sends queries to all aggregators.

    Args:
        shards: Number of shards that the aggregators hold together.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards

    async def query(self, query: Query) -> Answer:
        """
        Return the merged answer to *query*; ``missing_shards`` lists the shards that sent no result in time.

        A shard must reply within 500 ms; if it replies "in progress", its result is awaited for up to 10 s.

        Raises:
            Unavailable: No shard sent a result, or the broker cannot be reached.
        """
        shard_results: list[ShardResult] = []
        pending: set[int] = set()
        read = 0

        def wait_policy(replies: list[bytes]) -> float:
            """Decode the new replies; return how long after the request to wait, seconds; 0 = all results are here."""
            nonlocal read
            for reply in replies[read:]:
                with self._bus.set_aside.guard(subjects.QUERY_METRICS, "answer"):
                    decoded = decode_result(reply)
                    shard = decoded.shard if isinstance(decoded, ShardResult) else decoded
                    if not 0 <= shard < self._shards:
                        raise Rejected(f"result of an aggregator: shard {shard} is not one of {self._shards} shards")
                    if isinstance(decoded, ShardResult):
                        shard_results.append(decoded)
                    else:
                        pending.add(decoded)
            read = len(replies)
            answered = {result.shard for result in shard_results}
            if len(answered) >= self._shards:
                return 0
            return ACK_WAIT_S if pending - answered else TIMEOUT_S

        await self._bus.request_many(subjects.QUERY_METRICS, encode_query(query), wait_policy)
        if not shard_results:
            raise Unavailable("no aggregator answers")
        return merge_results(shard_results, self._shards, query)
