"""Queries the aggregators: one request goes to all of them, and the results of the shards are merged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, TokentraceError, Unavailable
from tokentrace.metrics import Answer, Query, ShardResult, decode_result, encode_query, merge_results
from tokentrace.service.reader_positions import read_positions, reader_key
from tokentrace.units import SECOND

#: How long after the request replies are awaited, seconds: normally, and while a shard is known to be at work.
TIMEOUT_S, ACK_WAIT_S = 0.5, 10.0
#: How long it may take after ``TIMEOUT_S`` to find out which of the silent shards are at work, seconds.
_LOOK_S = 0.25
#: A shard is at work if its aggregator published its position in this time, seconds; it does so every two seconds.
_ALIVE_S = 15.0
_SERVICE = "aggregator"


class AggregatorClient:
    """
    Sends queries to all aggregators.

    Args:
        shards: Number of shards that the aggregators hold together.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds."""
        return self._bus.clock.now_ns()

    async def query(self, query: Query) -> Answer:
        """
        Return the merged answer to *query*; ``missing_shards`` lists the shards that sent no result in time.

        A shard has 500 ms to reply. Its result is awaited for up to 10 s if it replies "in progress", or if its
        aggregator is running: then it is behind, and the request waits in line with the messages that it has to read.

        Raises:
            Unavailable: No shard sent a result, or the broker cannot be reached.
        """
        results = _Results(self._bus, self._shards)
        try:
            await self._bus.request_many(subjects.QUERY_METRICS, encode_query(query), results.wait_s)
        finally:
            await results.close()
        if not results.received:
            raise Unavailable("no aggregator answers")
        return merge_results(results.received, self._shards, query)


class _Results:
    """
    The results of one query.

    Attributes:
        received: The results so far.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards
        self.received: list[ShardResult] = []
        #: Shards that have replied "in progress", or whose aggregator is running.
        self._at_work: set[int] = set()
        self._read = 0
        self._began = asyncio.get_running_loop().time()
        self._looking: asyncio.Task[None] | None = None

    def wait_s(self, replies: list[bytes]) -> float:
        """Decode the new replies; return how long after the request to wait, seconds; 0 = all results are here."""
        for reply in replies[self._read :]:
            with self._bus.set_aside.guard(subjects.QUERY_METRICS, "answer"):
                decoded = decode_result(reply)
                shard = decoded.shard if isinstance(decoded, ShardResult) else decoded
                if not 0 <= shard < self._shards:
                    raise Rejected(f"result of an aggregator: shard {shard} is not one of {self._shards} shards")
                if isinstance(decoded, ShardResult):
                    self.received.append(decoded)
                else:
                    self._at_work.add(decoded)
        self._read = len(replies)
        silent = set(range(self._shards)) - {result.shard for result in self.received}
        if not silent:
            return 0
        if silent & self._at_work:
            return ACK_WAIT_S
        if self._looking is None and asyncio.get_running_loop().time() >= self._began + TIMEOUT_S:
            self._looking = asyncio.create_task(self._look(silent))
        return TIMEOUT_S if self._looking is None else TIMEOUT_S + _LOOK_S

    async def _look(self, silent: Iterable[int]) -> None:
        """Find out which of the shards *silent* are at work; none is if the broker does not say."""
        with contextlib.suppress(TokentraceError):
            meta = self._bus.kv(subjects.META)
            keys = {reader_key(_SERVICE, shard): shard for shard in silent}
            entries = {key: entry for key in keys if (entry := await meta.get(key)) is not None}
            for key, (_, _, published_ns) in read_positions(entries, self._bus.set_aside).items():
                if abs(self._bus.clock.now_ns() - published_ns) < _ALIVE_S * SECOND:
                    self._at_work.add(keys[key])

    async def close(self) -> None:
        """Stop what is still running."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
