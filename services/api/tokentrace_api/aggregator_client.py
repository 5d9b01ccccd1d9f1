"""Querying the aggregators: one request to all of them, one result for each shard, merged."""

from __future__ import annotations

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metrics import Answer, Query, ShardResult, decode_result, encode_query, merge_results

#: How long to wait for the next reply, seconds: normally, and while a shard that replied "in progress" owes its result.
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
        Return the merged answer to *query*; ``missing_shards`` lists the shards without a result in time.

        A shard has 500 ms to reply; one that replies "in progress" gets 10 s for its result.

        Raises:
            Unavailable: No shard sent a result.
        """
        shard_results: list[ShardResult] = []
        pending: set[int] = set()
        read = 0

        def wait_policy(replies: list[bytes]) -> float:
            """Read the new replies and return how long to wait for the next one, seconds; 0 = all results are here."""
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
