"""
The question ``tokentrace.query.metrics`` and its partial answers.

The api fixes the interval once and asks; every aggregator answers for each shard it holds; the answers merge by adding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from tokentrace.bad_data import reading
from tokentrace.records import MAX_INSTANT_NS, Position
from tokentrace.rollup import HISTOGRAMS, PLACES, WALL_EDGES_MS, Summary, Sums, check_summaries, merge
from tokentrace.units import SECOND

ALL_KINDS = "all"


class Query(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What some spans come to.

    Attributes:
        what: ``window``; ``series``, the window in steps; or ``lifetime``, everything since the stream began.
        from_s, to_s, now_s: Unix seconds; the interval is widened to the buckets that are kept.
        step_s: Of a series: a multiple of the buckets kept at from_s, which is a multiple of it.
        kind: Whose counts, tokens and latencies; ``all`` = every kind. Money and quality ask for more kinds by
            themselves unless ``only_kind`` is set.
        filters: Dimension -> value.
        groupby: Dimension, or "" for totals only.
        by_model: Sums by model as well.
        fields: Which distributions, of ``cell.FIELDS``.
        custom: Which metrics of one's own.
    """

    what: Literal["window", "lifetime", "series"] = "window"
    from_s: int = 0
    to_s: int = 0
    now_s: int = 0
    step_s: int = 0
    kind: str = "llm"
    only_kind: bool = False
    filters: dict[str, str] = {}
    groupby: str = ""
    by_model: bool = False
    fields: list[str] = []
    custom: list[str] = []


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


_MAX_S = MAX_INSTANT_NS // SECOND
_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_queries = msgspec.msgpack.Decoder(Query)
_partials: msgspec.msgpack.Decoder[ShardResult | int] = msgspec.msgpack.Decoder(ShardResult | int, dec_hook=_exact)


def encode_query(query: Query) -> bytes:
    """*query* for the bus."""
    return _encoder.encode(query)


def decode_query(payload: bytes) -> Query:
    """
    A query from the bus.

    Raises:
        Rejected: Not one.
    """
    with reading("query"):
        return _queries.decode(payload)


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


def merge_aggregates(figures: Iterable[Aggregates]) -> Aggregates:
    """Everything together."""
    parts = list(figures)
    if len(parts) == 1:
        return parts[0]
    sums, paid = Sums(), 0
    custom: dict[str, list[CustomValue]] = {}
    for one in parts:
        paid += one.paid
        sums.add(one.sums)
        for name, tally in one.custom.items():
            custom.setdefault(name, []).append(tally)
    return Aggregates(
        sums=sums,
        summaries=merge_summaries(parts),
        paid=paid,
        custom={name: merge_custom_values(tallies) for name, tallies in custom.items()},
    )


def merge_summaries(figures: Iterable[Aggregates]) -> dict[str, Summary]:
    """Field -> the distribution of everything together."""
    parts: dict[str, list[Summary]] = {}
    for one in figures:
        for field, summary in one.summaries.items():
            parts.setdefault(field, []).append(summary)
    return {field: merge(summaries) for field, summaries in parts.items()}


def merge_custom_values(tallies: Sequence[CustomValue]) -> CustomValue:
    """Everything together."""
    summary = merge(tally.summary for tally in tallies)
    return CustomValue(sum(tally.size for tally in tallies), sum(tally.total for tally in tallies), summary)


def _merge_groups(parts: Sequence[Mapping[str, Aggregates]]) -> dict[str, Aggregates]:
    names = sorted({name for part in parts for name in part})
    merged = {name: merge_aggregates(part[name] for part in parts if name in part) for name in names}
    return {name: figures for name, figures in merged.items() if figures.shows_any}


class Answer(msgspec.Struct, kw_only=True):
    """
    The partial answers of all shards, merged; the attributes are those of ``Partial``.

    Attributes:
        from_s, to_s: The interval covered, Unix seconds, to_s not included.
        missing_shards: Shards nobody answered for: the figures lack them.
        caught_up: Every shard had read everything there was.
    """

    from_s: int
    to_s: int
    since_ns: int = 0
    total: Aggregates = msgspec.field(default_factory=Aggregates)
    groups: dict[str, Aggregates] = {}
    models: dict[str, Aggregates] = {}
    points: list[Point] = []
    missing_shards: list[int] = []
    caught_up: bool = True
    transport: ReporterTotals = msgspec.field(default_factory=ReporterTotals)
    lived: Cumulative = msgspec.field(default_factory=Cumulative)


def furthest(partials: Iterable[ShardResult]) -> dict[int, ShardResult]:
    """One answer for each shard: the one that has read furthest, when two workers hold the same."""
    best: dict[int, ShardResult] = {}
    for partial in partials:
        held = best.get(partial.shard)
        if held is None or _key(partial) > _key(held):
            best[partial.shard] = partial
    return best


def _key(partial: ShardResult) -> tuple[int, int]:
    return (partial.position.created_ns, partial.position.sequence) if partial.position else (0, 0)


def merge_results(partials: Sequence[ShardResult], shards: int, query: Query) -> Answer:
    """The answer of *shards* shards from what came in, merged in the order of the shards."""
    best = furthest(partials)
    chosen = [best[shard] for shard in sorted(best)]
    return Answer(
        from_s=min((partial.from_s for partial in chosen), default=query.from_s),
        to_s=max((partial.to_s for partial in chosen), default=query.to_s),
        since_ns=max((partial.since_ns for partial in chosen), default=0),
        total=merge_aggregates(partial.total for partial in chosen),
        groups=_merge_groups([partial.groups for partial in chosen]),
        models=_merge_groups([partial.models for partial in chosen]),
        points=_merge_points(chosen),
        missing_shards=[shard for shard in range(shards) if shard not in best],
        caught_up=len(best) == shards and all(partial.caught_up for partial in chosen),
        transport=_merge_transport([partial.transport for partial in chosen]),
        lived=_merge_lived([partial.lived for partial in chosen if partial.lived is not None]),
    )


def _merge_points(partials: Sequence[ShardResult]) -> list[Point]:
    at: dict[int, list[Point]] = {}
    for partial in partials:
        for point in partial.points:
            at.setdefault(point.start_s, []).append(point)
    return [
        Point(
            start_s=start_s,
            total=merge_aggregates(point.total for point in points),
            groups=_merge_groups([point.groups for point in points]),
        )
        for start_s, points in sorted(at.items())
    ]


K = TypeVar("K")
V = TypeVar("V")


def _merge_maps(maps: Iterable[Mapping[K, V]], both: Callable[[V, V], V]) -> dict[K, V]:
    merged: dict[K, V] = {}
    for one in maps:
        for key, value in one.items():
            merged[key] = both(merged[key], value) if key in merged else value
    return merged


def _add_pairs(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _add_lists(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _merge_transport(parts: Sequence[ReporterTotals]) -> ReporterTotals:
    return ReporterTotals(
        sent=sum(part.sent for part in parts),
        dropped=sum(part.dropped for part in parts),
        failed=sum(part.failed for part in parts),
        queues=_merge_maps((part.queues for part in parts), max),
    )


def _merge_lived(parts: Sequence[Cumulative]) -> Cumulative:
    counters: dict[tuple[str, str, str, str], Counter] = {}
    for part in parts:
        for one in part.counters:
            key = (one.model, one.provider, one.caller, one.status)
            held = counters.setdefault(
                key, Counter(model=one.model, provider=one.provider, caller=one.caller, status=one.status)
            )
            held.sums.add(one.sums)
    return Cumulative(
        by_operation=_merge_maps((part.by_operation for part in parts), _add_pairs),
        walls=[sum(column) for column in zip(*(part.walls for part in parts if part.walls), strict=True)],
        longest_ns=max((part.longest_ns for part in parts), default=0),
        counters=[counters[key] for key in sorted(counters)],
        histograms=_merge_maps(
            (part.histograms for part in parts),
            lambda one, other: [_add_lists(a, b) for a, b in zip(one, other, strict=True)],
        ),
        custom=_merge_maps((part.custom for part in parts), lambda one, other: merge_custom_values([one, other])),
        clamped=sum(part.clamped for part in parts),
        lost=[one for part in parts for one in part.lost],
    )
