"""Merging the answers of all shards into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from tokentrace.metrics.query import Query
from tokentrace.metrics.result import (
    Aggregates,
    Counter,
    Cumulative,
    CustomValue,
    Point,
    ReporterTotals,
    ShardResult,
)
from tokentrace.rollup import Summary, Sums, merge


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
