"""The answer of one shard, and its form on the bus."""

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
    What a metric of one's own measured.

    Attributes:
        size: How many values.
        total: Their sum, an integer of any size in the unit of ``CustomMetric.divisor``.
        summary: Their distribution.
    """

    __slots__ = ("size", "summary", "total")

    def __init__(self, size: int = 0, total: int = 0, summary: Summary | None = None) -> None:
        self.size, self.total, self.summary = size, total, summary or Summary()

    @property
    def holds_any(self) -> bool:
        """There is something to show, or it changes what other shards have measured."""
        return bool(self.size or self.total) or self.summary != Summary()


class Aggregates(msgspec.Struct, kw_only=True, array_like=True):
    """
    What a group of spans comes to, each number from the spans it is about.

    Attributes:
        sums: Counts, tokens and times of the kind asked for; cost and what is unpriced over every kind that costs;
            scores over every kind.
        summaries: Field -> distribution.
        paid: How many spans are of a kind that costs.
        custom: Name of a metric of one's own -> what it measured.
    """

    sums: Sums = msgspec.field(default_factory=Sums)
    summaries: dict[str, Summary] = {}
    paid: int = 0
    custom: dict[str, CustomValue] = {}

    def summary(self, field: str) -> Summary:
        """The distribution of *field*; an empty one when nothing is known of it."""
        return self.summaries.get(field) or Summary()

    @property
    def shows_any(self) -> bool:
        """There is something to show."""
        counts = (self.sums.spans, self.paid, self.sums.score_n, *(tally.size for tally in self.custom.values()))
        return any(counts)

    @property
    def changes_any(self) -> bool:
        """Scores given after the fact change what other shards have counted."""
        return bool(self.sums.score) or self.summary("score") != Summary()


class Point(msgspec.Struct, kw_only=True, array_like=True):
    """One step of a series, from start_s on."""

    start_s: int
    total: Aggregates = msgspec.field(default_factory=Aggregates)
    groups: dict[str, Aggregates] = {}


class Counter(msgspec.Struct, kw_only=True, array_like=True):
    """
    What the spans of one combination of labels came to since the stream began.

    Attributes:
        sums: Of model calls; but for the cost, which is that of every kind that costs.
    """

    model: str
    provider: str
    caller: str
    status: str
    sums: Sums = msgspec.field(default_factory=Sums)


class ReporterTotals(msgspec.Struct, kw_only=True, array_like=True):
    """
    What reporters tell of themselves, in spans since the stream began.

    Attributes:
        sent: Arrived.
        dropped, failed: Never did: their queue was full, or they were refused for good.
        queues: Reporter that was heard of lately -> (number of its last batch, spans waiting then).
    """

    sent: int = 0
    dropped: int = 0
    failed: int = 0
    queues: dict[str, tuple[int, int]] = {}

    @property
    def queue_depth(self) -> int:
        """Spans waiting in all reporters."""
        return sum(depth for _, depth in self.queues.values())


class Cumulative(msgspec.Struct, kw_only=True, array_like=True):
    """
    Everything a shard has counted since the stream began.

    Attributes:
        by_operation: Name -> (spans, spans with status error).
        walls: Histogram of ended - started over ``lifetime.WALL_EDGES_MS``.
        longest_ns: The longest ended - started.
        counters: By labels.
        histograms: Model -> one list of counts for each of ``lifetime.HISTOGRAMS``, model calls only.
        custom: Name of a metric of one's own -> how many values, and their sum.
        clamped: Spans that claimed to end too far in the future.
        lost: (Shard, first, last) of the messages of the stream that were gone before they were read.
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
    One shard's answer.

    Attributes:
        position: How far the shard had read.
        caught_up: It had read everything there was.
        from_s, to_s: The interval it covers, exactly.
        since_ns: Before this instant something is missing, Unix nanoseconds; 0 = nothing is.
        groups: Value of the dimension asked for -> figures.
        models: Model -> figures, when they were asked for.
        points: Of a series, those with anything in them.
        lived: Of a lifetime.
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
    lived: Cumulative | None = None


def _plain(value: object) -> Any:
    """Integers over 64 bits, which msgpack does not know, travel as text."""
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


_partials: msgspec.msgpack.Decoder[ShardResult | int] = msgspec.msgpack.Decoder(ShardResult | int, dec_hook=_exact)


def encode_result(partial: ShardResult) -> bytes:
    """*partial* for the bus."""
    return _encoder.encode(partial)


def encode_pending(shard: int) -> bytes:
    """For the bus: the answer of *shard* will come, but takes its time."""
    return _encoder.encode(shard)


def decode_result(payload: bytes) -> ShardResult | int:
    """
    A partial answer from the bus; the number of a shard promises one.

    Raises:
        Rejected: Neither.
    """
    with reading("partial answer"):
        found = _partials.decode(payload)
        if isinstance(found, ShardResult):
            _check(found)
        return found


def _check(partial: ShardResult) -> None:
    """ValueError: what an aggregator never says, and what nothing could be computed with."""
    if not all(0 <= at_s <= _MAX_S for at_s in (partial.from_s, partial.to_s, *(p.start_s for p in partial.points))):
        raise ValueError("an instant of it is not between the years 1970 and 2100")
    if not 0 <= partial.since_ns <= MAX_INSTANT_NS:
        raise ValueError("since_ns: not between the years 1970 and 2100")
    lived = partial.lived
    if lived is not None:
        if len(lived.walls) not in (0, len(WALL_EDGES_MS) + 1):
            raise ValueError(f"walls: {len(lived.walls)} buckets, there are {len(WALL_EDGES_MS) + 1}")
        shape = [PLACES] * len(HISTOGRAMS)
        if any([len(row) for row in rows] != shape for rows in lived.histograms.values()):
            raise ValueError("histograms: of another shape")
    check_summaries(_summaries_of(partial))


def _summaries_of(partial: ShardResult) -> Iterator[Summary]:
    for figures in (partial.total, *partial.groups.values(), *partial.models.values()):
        yield from _summaries_in(figures)
    for point in partial.points:
        for figures in (point.total, *point.groups.values()):
            yield from _summaries_in(figures)
    for tally in partial.lived.custom.values() if partial.lived is not None else ():
        yield tally.summary


def _summaries_in(figures: Aggregates) -> Iterator[Summary]:
    yield from figures.summaries.values()
    for tally in figures.custom.values():
        yield tally.summary
