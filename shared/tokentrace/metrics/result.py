"""The result of one shard, and its form on the bus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tokentrace.bad_data import reading
from tokentrace.records import MAX_INSTANT_NS, Position
from tokentrace.rollup import HISTOGRAMS, PLACES, WALL_EDGES_MS, Summary, Sums, check_summaries
from tokentrace.units import SECOND

_MAX_S = MAX_INSTANT_NS // SECOND


class CustomValue:
    """
    Values of a custom metric.

    Attributes:
        size: Number of values.
        total: Their sum, an integer of any size; divided by ``CustomMetric.divisor`` it is in the unit shown.
        summary: Their distribution.
    """

    __slots__ = ("size", "summary", "total")

    def __init__(self, size: int = 0, total: int = 0, summary: Summary | None = None) -> None:
        self.size, self.total, self.summary = size, total, summary or Summary()

    @property
    def holds_any(self) -> bool:
        """Whether it is not empty; a difference to what other shards measured is not empty."""
        return bool(self.size or self.total) or self.summary != Summary()


class Aggregates(msgspec.Struct, kw_only=True, array_like=True):
    """
    The numbers of a group of spans.

    Attributes:
        sums: Counts, tokens and times of the queried kind; cost, unpriced and partly_priced of all kinds except
            roll-up kinds; scores of all kinds.
        summaries: Field -> distribution.
        paid: Number of spans that are not of a roll-up kind.
        custom: Name of a custom metric -> its values.
    """

    sums: Sums = msgspec.field(default_factory=Sums)
    summaries: dict[str, Summary] = {}
    paid: int = 0
    custom: dict[str, CustomValue] = {}

    def summary(self, field: str) -> Summary:
        """The distribution of *field*; an empty one if it was not queried or has no values."""
        return self.summaries.get(field) or Summary()

    @property
    def shows_any(self) -> bool:
        """Whether it counts any spans, scores or custom values."""
        counts = (self.sums.spans, self.paid, self.sums.score_n, *(value.size for value in self.custom.values()))
        return any(counts)

    @property
    def changes_any(self) -> bool:
        """Whether late scores in it change what other shards have counted."""
        return bool(self.sums.score) or self.summary("score") != Summary()


class Point(msgspec.Struct, kw_only=True, array_like=True):
    """One step of a series, which starts at start_s, Unix seconds."""

    start_s: int
    total: Aggregates = msgspec.field(default_factory=Aggregates)
    groups: dict[str, Aggregates] = {}


class Counter(msgspec.Struct, kw_only=True, array_like=True):
    """
    Sums of the spans of one combination of labels since the stream began.

    Attributes:
        sums: Sums of spans of the kind llm; the cost is that of all kinds except roll-up kinds.
    """

    model: str
    provider: str
    caller: str
    status: str
    sums: Sums = msgspec.field(default_factory=Sums)


class ReporterTotals(msgspec.Struct, kw_only=True, array_like=True):
    """
    Totals of all reporters, in spans since the stream began.

    Attributes:
        sent: Spans that arrived.
        dropped: Spans that a reporter discarded because its queue was full.
        failed: Spans that were refused for good.
        queues: Reporter that sent a batch in the last two minutes -> (number of the batch, spans waiting then).
    """

    sent: int = 0
    dropped: int = 0
    failed: int = 0
    queues: dict[str, tuple[int, int]] = {}

    @property
    def queue_depth(self) -> int:
        """Number of spans waiting in all reporters."""
        return sum(depth for _, depth in self.queues.values())


class Cumulative(msgspec.Struct, kw_only=True, array_like=True):
    """
    Cumulative counters of a shard: all that it has counted since the stream began.

    Attributes:
        by_operation: Name -> (spans, spans with status error).
        walls: Counts of ended - started, one for each of ``rollup.WALL_EDGES_MS`` and one without upper edge.
        longest_ns: The largest ended - started.
        counters: Sums by labels.
        histograms: Model -> one list of counts for each of ``rollup.HISTOGRAMS``, spans of the kind llm only.
        custom: Name of a custom metric -> number and sum of its values.
        clamped: Number of spans whose end is too far in the future.
        lost: (Shard, first sequence, last sequence) of messages that the stream discarded before they were read.
    """

    by_operation: dict[str, tuple[int, int]] = {}
    walls: list[int] = []
    longest_ns: int = 0
    counters: list[Counter] = []
    histograms: dict[str, list[list[int]]] = {}
    custom: dict[str, CustomValue] = {}
    clamped: int = 0
    lost: list[tuple[int, int, int]] = []


class ShardResult(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The result of one shard.

    Attributes:
        position: The last message that the shard had folded.
        caught_up: Whether it had read all messages.
        from_s, to_s: The exact interval covered, Unix seconds; to_s is not included.
        since_ns: Data before this instant is incomplete, Unix nanoseconds; 0 = all data is complete.
        groups: Value of the dimension ``groupby`` -> aggregates.
        models: Model -> aggregates, if the query asked for them.
        points: The steps of a series.
        cumulative: The result of a query for ``lifetime``.
    """

    shard: int
    position: Position | None = None
    caught_up: bool = False
    from_s: int = 0
    to_s: int = 0
    since_ns: int = 0
    total: Aggregates = msgspec.field(default_factory=Aggregates)
    groups: dict[str, Aggregates] = {}
    models: dict[str, Aggregates] = {}
    points: list[Point] = []
    transport: ReporterTotals = msgspec.field(default_factory=ReporterTotals)
    cumulative: Cumulative | None = None


def _plain(value: object) -> Any:
    """Encode sums; msgpack has no integers over 64 bits, so those are sent as text."""
    if isinstance(value, Sums):
        return [_short(number) for number in value.numbers()]
    if isinstance(value, CustomValue):
        return [value.size, _short(value.total), value.summary]
    raise NotImplementedError(type(value))


def _short(number: int) -> int | str:
    return number if -(2**63) <= number < 2**63 else str(number)


def _exact(kind: type, value: Any) -> Any:
    if kind is Sums:
        return Sums(map(int, value))
    size, total, summary = value
    return CustomValue(size, int(total), msgspec.convert(summary, Summary))


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_results: msgspec.msgpack.Decoder[ShardResult | int] = msgspec.msgpack.Decoder(ShardResult | int, dec_hook=_exact)


def encode_result(result: ShardResult) -> bytes:
    """*result* as a message on the bus."""
    return _encoder.encode(result)


def encode_pending(shard: int) -> bytes:
    """The message that *shard* is working on its result; it gives the shard ten seconds instead of half a second."""
    return _encoder.encode(shard)


def decode_result(payload: bytes) -> ShardResult | int:
    """
    The result of a shard from the bus, or the number of a shard that is working on its result.

    Raises:
        Rejected: *payload* is neither, or it has instants or distributions that cannot be used.
    """
    with reading("shard result"):
        result = _results.decode(payload)
        if isinstance(result, ShardResult):
            _check(result)
        return result


def _check(result: ShardResult) -> None:
    """Raise ValueError for values that an aggregator never sends and that cannot be merged."""
    if not all(0 <= at_s <= _MAX_S for at_s in (result.from_s, result.to_s, *(p.start_s for p in result.points))):
        raise ValueError("from_s, to_s or start_s is not between the years 1970 and 2100")
    if not 0 <= result.since_ns <= MAX_INSTANT_NS:
        raise ValueError("since_ns is not between the years 1970 and 2100")
    cumulative = result.cumulative
    if cumulative is not None:
        if len(cumulative.walls) not in (0, len(WALL_EDGES_MS) + 1):
            raise ValueError(f"walls has {len(cumulative.walls)} buckets, expected {len(WALL_EDGES_MS) + 1}")
        shape = [PLACES] * len(HISTOGRAMS)
        if any([len(row) for row in rows] != shape for rows in cumulative.histograms.values()):
            raise ValueError(f"histograms does not have {len(HISTOGRAMS)} rows of {PLACES} buckets")
    check_summaries(_summaries_of(result))


def _summaries_of(result: ShardResult) -> Iterator[Summary]:
    for aggregates in (result.total, *result.groups.values(), *result.models.values()):
        yield from _summaries_in(aggregates)
    for point in result.points:
        for aggregates in (point.total, *point.groups.values()):
            yield from _summaries_in(aggregates)
    for value in result.cumulative.custom.values() if result.cumulative is not None else ():
        yield value.summary


def _summaries_in(aggregates: Aggregates) -> Iterator[Summary]:
    yield from aggregates.summaries.values()
    for value in aggregates.custom.values():
        yield value.summary
