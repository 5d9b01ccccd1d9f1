"""Merges the results of all shards into one ``Answer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from tokentrace.dedup import total
from tokentrace.metrics.query import Query
from tokentrace.metrics.result import (
    Aggregates,
    Calls,
    Counter,
    Cumulative,
    CustomValue,
    DimensionUse,
    Point,
    ReporterTotals,
    ShardResult,
    ToldTwice,
)
from tokentrace.rollup import FOLDABLE, OTHER, Summary, Sums, merge, merge_registers


def merge_aggregates(parts: Iterable[Aggregates]) -> Aggregates:
    """Return the aggregates of the spans of all *parts*; a single part is returned as it is."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    sums, paid, calls = Sums(), 0, Calls()
    custom: dict[str, list[CustomValue]] = {}
    for part in every:
        paid += part.paid
        sums.add(part.sums)
        calls.add(part.calls)
        for name, value in part.custom.items():
            custom.setdefault(name, []).append(value)
    return Aggregates(
        sums=sums,
        summaries=merge_summaries(every),
        paid=paid,
        custom={name: merge_custom_values(values) for name, values in custom.items()},
        calls=calls,
    )


def merge_summaries(parts: Iterable[Aggregates]) -> dict[str, Summary]:
    """Return field -> the distribution of the values of all *parts*."""
    by_field: dict[str, list[Summary]] = {}
    for part in parts:
        for field, summary in part.summaries.items():
            by_field.setdefault(field, []).append(summary)
    return {field: merge(summaries) for field, summaries in by_field.items()}


def merge_custom_values(values: Sequence[CustomValue]) -> CustomValue:
    """Return the number, sum and distribution of all *values* together."""
    summary = merge(value.summary for value in values)
    return CustomValue(
        size=sum(value.size for value in values),
        total=sum(value.total for value in values),
        summary=summary,
        unpriced=sum(value.unpriced for value in values),
        partly_priced=sum(value.partly_priced for value in values),
    )


class Separate:
    """
    The values of each dimension that an answer may show; all others are shown as ``other``.

    A shard that counts some of the spans with a value under ``other`` has only a part of its numbers, and so would the
    sum over all shards.

    Args:
        results: The result of each shard.
    """

    def __init__(self, results: Sequence[ShardResult]) -> None:
        #: Dimension of which a shard counts values under ``other`` -> the values that may be shown.
        self._exact: dict[str, set[str]] = {}
        for result in results:
            for dimension, values in result.exact.items():
                held = self._exact.get(dimension)
                self._exact[dimension] = set(values) if held is None else held.intersection(values)

    @property
    def dimensions(self) -> list[str]:
        """The dimensions of which a shard counts values under ``other``."""
        return [dimension for dimension in FOLDABLE if dimension in self._exact]

    def shown(self, dimension: str, value: str) -> str:
        """Return *value*, or ``other`` if *value* of *dimension* may not be shown."""
        exact = self._exact.get(dimension)
        return value if exact is None or value in exact else OTHER


def _merge_groups(
    parts: Sequence[Mapping[str, Aggregates]], separate: Separate, dimension: str
) -> dict[str, Aggregates]:
    by_name: dict[str, list[Aggregates]] = {}
    for part in parts:
        for name, aggregates in part.items():
            by_name.setdefault(separate.shown(dimension, name), []).append(aggregates)
    merged = {name: merge_aggregates(by_name[name]) for name in sorted(by_name)}
    return {name: aggregates for name, aggregates in merged.items() if aggregates.shows_any}


class Answer(msgspec.Struct, kw_only=True):
    """
    The merged results of all shards; attributes not listed here are as in ``ShardResult``.

    Attributes:
        from_s, to_s: The interval covered, Unix seconds; to_s is not included.
        missing_shards: Shards without a result; their spans are not counted.
        caught_up: Whether every shard has a result and had read all messages.
        behind_s: Age of the last message that the shard that is behind most has folded, seconds; 0 = none is behind.
        folded: The dimensions of which the answer shows several values together, as ``other``.
        inexact: The dimensions in ``Query.filters`` whose value may have spans that are counted under ``other``. Then
            the numbers may be too small.
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
    told_twice: ToldTwice = ToldTwice()
    cumulative: Cumulative = msgspec.field(default_factory=Cumulative)
    behind_s: float = 0.0
    folded: list[str] = []
    inexact: list[str] = []


def furthest(results: Iterable[ShardResult]) -> dict[int, ShardResult]:
    """Return shard -> its result with the latest position; two aggregators may send a result for the same shard."""
    best: dict[int, ShardResult] = {}
    for result in results:
        held = best.get(result.shard)
        if held is None or _key(result) > _key(held):
            best[result.shard] = result
    return best


def _key(result: ShardResult) -> tuple[int, int]:
    return (result.position.created_ns, result.position.sequence) if result.position else (0, 0)


def merge_results(results: Sequence[ShardResult], shards: int, query: Query) -> Answer:
    """
    Merge the results of all shards.

    Args:
        results: In any order; there may be several results of a shard, or none.
        shards: The shard count.
        query: The answer has the interval of the query if there is no result.
    """
    best = furthest(results)
    chosen = [best[shard] for shard in sorted(best)]
    separate = Separate(chosen)
    groups = _merge_groups([result.groups for result in chosen], separate, query.groupby)
    models = _merge_groups([result.models for result in chosen], separate, "model")
    points = _merge_points(chosen, separate, query.groupby)
    cumulative = _merge_cumulative([result.cumulative for result in chosen if result.cumulative is not None], separate)
    shows_other = {dimension for dimension, value in query.filters.items() if value == OTHER}
    if OTHER in groups or any(OTHER in point.groups for point in points):
        shows_other.add(query.groupby)
    if OTHER in models:
        shows_other.add("model")
    if OTHER in cumulative.by_operation:
        shows_other.add("name")
    folded = [dimension for dimension in separate.dimensions if dimension in shows_other]
    return Answer(
        from_s=min((result.from_s for result in chosen), default=query.from_s),
        to_s=max((result.to_s for result in chosen), default=query.to_s),
        since_ns=max((result.since_ns for result in chosen), default=0),
        total=merge_aggregates(result.total for result in chosen),
        groups=groups,
        models=models,
        points=points,
        missing_shards=[shard for shard in range(shards) if shard not in best],
        caught_up=len(best) == shards and all(result.caught_up for result in chosen),
        transport=_merge_transport([result.transport for result in chosen]),
        told_twice=_add_told_twice([result.told_twice for result in chosen]),
        cumulative=cumulative,
        behind_s=max((result.behind_ms for result in chosen), default=0) / 1000,
        folded=folded,
        inexact=sorted({dimension for result in chosen for dimension in result.inexact}),
    )


def _merge_points(results: Sequence[ShardResult], separate: Separate, dimension: str) -> list[Point]:
    at: dict[int, list[Point]] = {}
    for result in results:
        for point in result.points:
            at.setdefault(point.start_s, []).append(point)
    return [
        Point(
            start_s=start_s,
            total=merge_aggregates(point.total for point in points),
            groups=_merge_groups([point.groups for point in points], separate, dimension),
        )
        for start_s, points in sorted(at.items())
    ]


K = TypeVar("K")
V = TypeVar("V")


def _merge_maps(maps: Iterable[Mapping[K, V]], both: Callable[[V, V], V]) -> dict[K, V]:
    merged: dict[K, V] = {}
    for mapping in maps:
        for key, value in mapping.items():
            merged[key] = both(merged[key], value) if key in merged else value
    return merged


def _add_pairs(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]


def _add_lists(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _add_told_twice(parts: Sequence[ToldTwice]) -> ToldTwice:
    return ToldTwice(calls=sum(part.calls for part in parts), nusd=sum(part.nusd for part in parts))


def _merge_transport(parts: Sequence[ReporterTotals]) -> ReporterTotals:
    return ReporterTotals(
        sent=sum(part.sent for part in parts),
        dropped=sum(part.dropped for part in parts),
        failed=sum(part.failed for part in parts),
        queues=_merge_maps((part.queues for part in parts), max),
    )


def _merge_cumulative(parts: Sequence[Cumulative], separate: Separate) -> Cumulative:
    counters: dict[tuple[str, str, str, str], Counter] = {}
    shown = separate.shown
    for part in parts:
        for counter in part.counters:
            key = (
                shown("model", counter.model),
                shown("provider", counter.provider),
                shown("caller", counter.caller),
                counter.status,
            )
            held = counters.get(key)
            if held is None:
                held = counters[key] = Counter(model=key[0], provider=key[1], caller=key[2], status=key[3])
            held.sums.add(counter.sums)
    return Cumulative(
        by_operation=_merge_maps(
            (_renamed(part.by_operation, separate, "name", _add_pairs) for part in parts), _add_pairs
        ),
        walls=[sum(column) for column in zip(*(part.walls for part in parts if part.walls), strict=True)],
        longest_ns=max((part.longest_ns for part in parts), default=0),
        counters=[counters[key] for key in sorted(counters)],
        histograms=_merge_maps((_renamed(part.histograms, separate, "model", _add_rows) for part in parts), _add_rows),
        custom=_merge_maps((part.custom for part in parts), lambda left, right: merge_custom_values([left, right])),
        clamped=sum(part.clamped for part in parts),
        left_out=total([part.left_out for part in parts]),
        remembered=sum(part.remembered for part in parts),
        oldest_call_ms=max((part.oldest_call_ms for part in parts), default=0),
        lost=[gap for part in parts for gap in part.lost],
        unpriced_tokens=_merge_maps((part.unpriced_tokens for part in parts), int.__add__),
        dimensions=_merge_maps((part.dimensions for part in parts), _merge_use),
        series=max((part.series for part in parts), default=0),
        reporters=max((part.reporters for part in parts), default=0),
        reporters_since_ms=max((part.reporters_since_ms for part in parts), default=0),
        late=sum(part.late for part in parts),
    )


def _renamed(values: Mapping[str, V], separate: Separate, dimension: str, both: Callable[[V, V], V]) -> dict[str, V]:
    """Return *values*, whose keys are values of *dimension*, with those that may not be shown added up as ``other``."""
    return _merge_maps(({separate.shown(dimension, name): value} for name, value in values.items()), both)


def _add_rows(left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
    return [_add_lists(a, b) for a, b in zip(left, right, strict=True)]


def _merge_use(left: DimensionUse, right: DimensionUse) -> DimensionUse:
    return DimensionUse(max(left.separate, right.separate), merge_registers(left.folded, right.folded))
