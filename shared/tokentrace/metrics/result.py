"""The result of one shard for a query, and its form on the bus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tokentrace.bad_data import reading
from tokentrace.dedup import LeftOut
from tokentrace.records import MAX_INSTANT_NS, Position
from tokentrace.rollup import HISTOGRAMS, PLACES, WALL_EDGES_MS, DistinctCount, Summary, Sums, check_summaries
from tokentrace.units import MS, SECOND

_MAX_S = MAX_INSTANT_NS // SECOND


class CustomValue:
    """
    What a custom metric measured.

    Attributes:
        size: Number of values; may be negative in one shard.
        total: Sum of the values, an integer of any size; divide by ``CustomMetric.divisor`` to show it.
        summary: Distribution of the values; may be empty if the type of the metric is not p95.
        unpriced: Number of spans that have no value because their cost is unknown; 0 if the field is not ``cost``.
        partly_priced: Number of values that are costs and lack a part.
    """

    __slots__ = ("partly_priced", "size", "summary", "total", "unpriced")

    def __init__(
        self,
        size: int = 0,
        total: int = 0,
        summary: Summary | None = None,
        unpriced: int = 0,
        partly_priced: int = 0,
    ) -> None:
        self.size, self.total, self.summary = size, total, summary or Summary()
        self.unpriced, self.partly_priced = unpriced, partly_priced

    @property
    def holds_any(self) -> bool:
        """Whether it is not empty; changes to what other shards measured make it not empty."""
        return bool(self.size or self.total or self.unpriced) or self.summary != Summary()


class Calls:
    """
    What the spans of the queried kind cost, roll-up kinds left out.

    Attributes:
        spans: Number of the spans.
        cost: Sum of their known costs, nano-dollars, an integer of any size.
        unpriced, partly_priced: Number of spans without a known cost, and of those with a cost that lacks a part.
    """

    __slots__ = ("cost", "partly_priced", "spans", "unpriced")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, spans: int = 0, cost: int = 0, unpriced: int = 0, partly_priced: int = 0) -> None:
        self.spans, self.cost, self.unpriced, self.partly_priced = spans, cost, unpriced, partly_priced

    def __eq__(self, other: object) -> bool:
        return self.numbers() == other.numbers() if isinstance(other, Calls) else NotImplemented

    def __repr__(self) -> str:
        return f"Calls{self.numbers()}"

    def numbers(self) -> tuple[int, int, int, int]:
        """Return the attributes in the order of the parameters."""
        return self.spans, self.cost, self.unpriced, self.partly_priced

    def add(self, other: Calls) -> None:
        """Add the numbers of *other*."""
        self.spans += other.spans
        self.cost += other.cost
        self.unpriced += other.unpriced
        self.partly_priced += other.partly_priced


class Aggregates(msgspec.Struct, kw_only=True, array_like=True):
    """
    The numbers of a group of spans.

    Attributes:
        sums: Counts and times of the queried kind; tokens of the queried kind, roll-up kinds left out; cost, unpriced
            and partly_priced of all kinds except roll-up kinds; scores of all kinds. With ``Query.only_kind``, all are
            of the queried kind.
        summaries: Name of a distribution -> distribution.
        paid: Number of spans that count for cost.
        custom: Name of a custom metric -> what it measured.
        calls: Costs of the queried kind alone.
    """

    sums: Sums = msgspec.field(default_factory=Sums)
    summaries: dict[str, Summary] = {}
    paid: int = 0
    custom: dict[str, CustomValue] = {}
    calls: Calls = msgspec.field(default_factory=Calls)

    def summary(self, field: str) -> Summary:
        """Return the distribution of *field*; an empty one if it was not queried or has no values."""
        return self.summaries.get(field) or Summary()

    @property
    def shows_any(self) -> bool:
        """Whether it has spans, scores, or spans with or without a value of a custom metric."""
        custom = (count for value in self.custom.values() for count in (value.size, value.unpriced))
        return any((self.sums.spans, self.paid, self.sums.score_n, *custom))

    @property
    def changes_any(self) -> bool:
        """Whether it holds scores, added or removed, that may change what other shards have counted."""
        return bool(self.sums.score) or self.summary("score") != Summary()


class Point(msgspec.Struct, kw_only=True, array_like=True):
    """The numbers of one step of the interval; start_s is the start of the step, Unix seconds."""

    start_s: int
    total: Aggregates = msgspec.field(default_factory=Aggregates)
    groups: dict[str, Aggregates] = {}


class Counter(msgspec.Struct, kw_only=True, array_like=True):
    """
    Sums since the stream began of the spans with one combination of model, provider, caller and status.

    Attributes:
        sums: Sums of the spans of the kind llm; cost, unpriced and partly_priced are of all kinds except roll-up kinds.
    """

    model: str
    provider: str
    caller: str
    status: str
    sums: Sums = msgspec.field(default_factory=Sums)


class ReporterTotals(msgspec.Struct, kw_only=True, array_like=True):
    """
    Totals of all reporters since the stream began, as one shard or all shards have counted them.

    Attributes:
        sent: Number of spans that arrived.
        dropped: Number of spans that reporters discarded, because a queue was full or the program ended.
        failed: Number of spans that were refused for good or could not be encoded.
        queues: Reporter with a batch in the last 30 seconds -> (sequence of its last batch, spans waiting then).
    """

    sent: int = 0
    dropped: int = 0
    failed: int = 0
    queues: dict[str, tuple[int, int]] = {}

    @property
    def queue_depth(self) -> int:
        """Number of spans that waited in all reporters behind the last batch of each."""
        return sum(depth for _, depth in self.queues.values())


class ToldTwice(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What one request told twice since the stream began, and what adding up both tellings would have counted too much.

    Attributes:
        calls: Number of second tellings, which count as no call.
        nusd: What they would have cost, as far as that is known, nano-dollars.
    """

    calls: int = 0
    nusd: int = 0


class DimensionUse(msgspec.Struct, array_like=True):
    """
    How many values a dimension has.

    Attributes:
        separate: Number of values that are kept apart.
        folded: The count of the other values, for ``rollup.distinct``; empty = there are none.
    """

    separate: int
    folded: bytes = b""


class Cumulative(msgspec.Struct, kw_only=True, array_like=True):
    """
    Cumulative counters: what one shard, or all shards, have counted since the stream began.

    Attributes:
        by_operation: Name of a span -> (number of spans, number of spans with status error).
        walls: Number of spans by ended - started, for each of ``rollup.WALL_EDGES_MS`` and above the last.
        longest_ns: The largest ended - started, nanoseconds.
        counters: Sums by model, provider, caller and status.
        histograms: Model -> a list of counts for each of ``rollup.HISTOGRAMS``, over spans of the kind llm.
        custom: Name of a custom metric -> number and sum of its values.
        clamped: Number of spans whose end was too far in the future.
        unpriced_tokens: Reason -> tokens of the spans whose cost is unknown or lacks a part for this reason; of all
            kinds except roll-up kinds.
        lost: (Shard, first sequence, last sequence) of each gap: messages that the log discarded before they were read.
        left_out: Repeated tellings of calls, which no sum counts.
        remembered: Number of calls that are remembered, so that they are recognised when they are told again.
        oldest_call_ms: When the oldest remembered call started, of the shard that reaches back least, Unix
            milliseconds; 0 = no call is remembered.
        dimensions: Dimension of which values may be counted under ``other`` -> how many values it has.
        series: Number of series, of the shard that has the most.
        reporters: Number of reporters and parts of their batches whose batch numbers are remembered.
        reporters_since_ms: The newest batch of a reporter that had to be forgotten because there were too many, Unix
            milliseconds; 0 = none.
        late: Number of spans that were too old for any bucket when they arrived: no window shows them.
    """

    by_operation: dict[str, tuple[int, int]] = {}
    walls: list[int] = []
    longest_ns: int = 0
    counters: list[Counter] = []
    histograms: dict[str, list[list[int]]] = {}
    custom: dict[str, CustomValue] = {}
    clamped: int = 0
    lost: list[tuple[int, int, int]] = []
    left_out: LeftOut = msgspec.field(default_factory=LeftOut)
    remembered: int = 0
    oldest_call_ms: int = 0
    unpriced_tokens: dict[str, int] = {}
    dimensions: dict[str, DimensionUse] = {}
    series: int = 0
    reporters: int = 0
    reporters_since_ms: int = 0
    late: int = 0


class ShardResult(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The result of one shard for a query.

    Attributes:
        position: The last message that the shard had folded; None = none yet.
        caught_up: Whether the shard had read all messages.
        from_s, to_s: The exact interval covered, Unix seconds; to_s is not included.
        since_ns: Data before this instant is incomplete, Unix nanoseconds; 0 = all data is complete.
        total: Aggregates of all spans that count.
        groups: Value of ``Query.groupby`` -> aggregates.
        models: Model -> aggregates, if the query asked for them.
        points: The numbers of each step, for a query for ``series``.
        transport: Totals of the reporters.
        cumulative: The cumulative counters, for a query for ``lifetime``; otherwise None.
        exact: Dimension -> its values none of whose spans are counted under ``other``. A dimension is absent if that
            holds for all its values, or if the result does not show it.
        inexact: The dimensions in ``Query.filters`` whose value may have spans under ``other``.
        behind_ms: Age of the last message that was folded, milliseconds; 0 = the shard has read all messages.
        told_twice: What requests told twice.
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
    exact: dict[str, list[str]] = {}
    inexact: list[str] = []
    behind_ms: int = 0
    told_twice: ToldTwice = ToldTwice()


def _plain(value: object) -> Any:
    """Return *value* as plain data; integers over 64 bits become text, because msgpack lacks them."""
    if isinstance(value, Sums):
        numbers = value.numbers()
        return numbers if max(numbers) < 2**63 and min(numbers) >= -(2**63) else [_short(number) for number in numbers]
    if isinstance(value, CustomValue):
        return [value.size, _short(value.total), value.summary, value.unpriced, value.partly_priced]
    if isinstance(value, Calls):
        return [_short(number) for number in value.numbers()]
    raise NotImplementedError(type(value))


_INTS = frozenset({int})


def _short(number: int) -> int | str:
    return number if -(2**63) <= number < 2**63 else str(number)


def _exact(kind: type, value: Any) -> Any:
    if kind is Sums:
        return Sums(value if _INTS.issuperset(map(type, value)) else map(int, value))
    if kind is Calls:
        return Calls(*map(int, value))
    # A shard of an earlier version sends no counts of unpriced spans.
    size, total, summary, *unpriced = value
    return CustomValue(size, int(total), msgspec.convert(summary, Summary), *unpriced)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_results: msgspec.msgpack.Decoder[ShardResult | int] = msgspec.msgpack.Decoder(ShardResult | int, dec_hook=_exact)


def encode_result(result: ShardResult) -> bytes:
    """Return *result* as a message on the bus."""
    return _encoder.encode(result)


def encode_pending(shard: int) -> bytes:
    """Return the message that *shard* is working on its result; the api then waits 10 seconds instead of 0.5."""
    return _encoder.encode(shard)


def decode_result(payload: bytes) -> ShardResult | int:
    """
    Return the result in a message on the bus, or the number of a shard that is working on its result.

    Raises:
        Rejected: *payload* is neither, or its instants, histograms or distributions are invalid.
    """
    with reading("shard result"):
        result = _results.decode(payload)
        if isinstance(result, ShardResult):
            _check(result)
        return result


def _check(result: ShardResult) -> None:
    """Raise ValueError if *result* has values that no aggregator sends and that cannot be merged."""
    if not all(0 <= at_s <= _MAX_S for at_s in (result.from_s, result.to_s, *(p.start_s for p in result.points))):
        raise ValueError("from_s, to_s or start_s is not between the years 1970 and 2100")
    if not 0 <= result.since_ns <= MAX_INSTANT_NS:
        raise ValueError("since_ns is not between the years 1970 and 2100")
    if not 0 <= result.behind_ms <= MAX_INSTANT_NS // MS:
        raise ValueError("behind_ms is negative or over 130 years")
    cumulative = result.cumulative
    if cumulative is not None:
        for use in cumulative.dimensions.values():
            DistinctCount(use.folded)
        if len(cumulative.walls) not in (0, len(WALL_EDGES_MS) + 1):
            raise ValueError(f"walls has {len(cumulative.walls)} buckets, expected {len(WALL_EDGES_MS) + 1}")
        shape = [PLACES] * len(HISTOGRAMS)
        if any([len(row) for row in rows] != shape for rows in cumulative.histograms.values()):
            raise ValueError(f"histograms does not have {len(HISTOGRAMS)} rows of {PLACES} buckets")
    check_summaries(_summaries_of(result))


def _summaries_of(result: ShardResult) -> Iterator[Summary]:
    parts = [result.total, *result.groups.values(), *result.models.values()]
    for point in result.points:
        parts += (point.total, *point.groups.values())
    for part in parts:
        yield from part.summaries.values()
        for value in part.custom.values():
            yield value.summary
    for value in result.cumulative.custom.values() if result.cumulative is not None else ():
        yield value.summary
