"""Answers queries for metrics: the aggregators do, or the span store for what they do not keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Unavailable
from tokentrace.metrics import Aggregates, Answer, CustomMetric, Point
from tokentrace.rollup import HORIZON_NS, finest_step_s
from tokentrace.units import SECOND
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.reads import Exemplar, aggregates_by, aggregates_in_steps, custom_values_by, exemplars
from tokentrace_api.store import Store

#: Time limit for finding exemplars, seconds.
_EXEMPLARS_S = 0.2
#: From this age of the last message that was folded on, an answer says how far it is behind, seconds.
BEHIND_S = 1.0


async def answer(
    aggregators: AggregatorClient,
    store: StoreReader,
    metrics_query: MetricsQuery,
    fields: Sequence[str] = (),
    *,
    by_model: bool = False,
    custom: Sequence[CustomMetric] = (),
    from_store: bool = False,
) -> Answer:
    """
    Return the aggregates of all matching spans and, if the query groups, of each group.

    The store answers if the query concerns attributes, filters by a value of which aggregators have only a part, or is
    about an interval for which they have no buckets.

    Args:
        fields: Names of the distributions to compute: latency, ttft, prompt, completion, score.
        by_model: Compute sums by model as well.
        custom: Custom metrics to compute.
        from_store: The store answers in any case, so that *fields* may also be ``total`` (tokens) and ``cost``.

    Raises:
        Unavailable: No aggregator sent a result, or the store is needed and cannot be read.
    """
    if metrics_query.is_beyond_buckets or from_store:
        answered, all_from_store = Answer(from_s=metrics_query.query.from_s, to_s=metrics_query.query.to_s), True
    else:
        names = [metric.name for metric in custom]
        answered = await aggregators.query(
            replace(metrics_query.query, fields=list(fields), by_model=by_model, custom=names)
        )
        all_from_store = bool(metrics_query.filters or answered.inexact)
    if not metrics_query.attribute and not all_from_store:
        return answered
    where, now_ns, key = metrics_query.where(answered), metrics_query.now_ns, metrics_query.groupby

    async def read_groups(key: str, fields: Sequence[str], *, attribute: bool = False) -> dict[str, Aggregates]:
        groups = await store.read(lambda spans: aggregates_by(spans, where, key, fields, now_ns, attribute=attribute))
        for metric in custom:
            work = partial(custom_values_by, where=where, metric=metric, key=key, now_ns=now_ns, attribute=attribute)
            custom_values = await store.read(work)
            for name, custom_value in custom_values.items():
                groups.setdefault(name, Aggregates()).custom[metric.name] = custom_value
        return dict(sorted(groups.items()))

    if all_from_store:
        answered.folded = []
        answered.total = (await read_groups("", fields)).get("", Aggregates())
        answered.models = await read_groups("model", ()) if by_model else {}
    if key:
        answered.groups = await read_groups(key, fields, attribute=bool(metrics_query.attribute))
    await note_since(store, metrics_query, answered)
    return answered


async def answer_series(
    aggregators: AggregatorClient,
    store: StoreReader,
    metrics_query: MetricsQuery,
    step_s: int,
    fields: Sequence[str],
    custom: Sequence[CustomMetric],
) -> Answer:
    """
    Return the aggregates of each step and, if the query groups by a dimension, of each group in it.

    The store answers if no buckets fit the interval or the step, and if the query filters by attributes or by a value
    of which the aggregators have only a part.

    Args:
        step_s: Length of a step, seconds.
        fields, custom: As for ``answer``.

    Raises:
        Unavailable: As for ``answer``.
    """
    query = metrics_query.query
    if metrics_query.is_beyond_buckets or metrics_query.filters or step_s % finest_of(metrics_query):
        return (await stored_series(store, metrics_query, step_s, fields, custom)).answered
    names = [metric.name for metric in custom]
    answered = await aggregators.query(replace(query, what="series", step_s=step_s, fields=list(fields), custom=names))
    if not answered.inexact:
        return answered
    # Over the interval of the buckets, as ``answer`` does, so that the points add up to its value.
    within = (answered.from_s, answered.to_s)
    found = await stored_series(store, metrics_query, step_s, fields, custom, within=within)
    found.answered.missing_shards, found.answered.behind_s = answered.missing_shards, answered.behind_s
    return found.answered


class StoredSeries(NamedTuple):
    """
    A series from the store.

    Attributes:
        others: For each step, all groups together but the chosen ones; [] if none were chosen.
    """

    answered: Answer
    others: list[Aggregates]


async def stored_series(
    store: StoreReader,
    metrics_query: MetricsQuery,
    step_s: int,
    fields: Sequence[str],
    custom: Sequence[CustomMetric],
    chosen: Sequence[str] | None = None,
    within: tuple[int, int] | None = None,
) -> StoredSeries:
    """
    Return the aggregates of each step, and of each group in it, from the stored spans, to the second.

    Args:
        step_s, fields, custom: As for ``answer_series``; *fields* may also be ``total`` (tokens) and ``cost``.
        chosen: The groups that are kept apart; None = all.
        within: Begin and end, Unix seconds; None = those of the query.

    Raises:
        Unavailable: The store cannot be read.
    """
    query, now_ns = metrics_query.query, metrics_query.now_ns
    from_s, to_s = within or (query.from_s, query.to_s)
    starts = [from_s, *range((from_s // step_s + 1) * step_s, to_s, step_s)]
    answered = Answer(from_s=from_s, to_s=to_s, points=[Point(start_s=start) for start in starts])
    where = metrics_query.where(answered)
    is_attribute = bool(metrics_query.attribute)

    def read(key: str, chosen: Sequence[str] | None) -> Callable[[Store], dict[int, dict[str, Aggregates]]]:
        return lambda spans: aggregates_in_steps(
            spans, where, key, fields, custom, now_ns, step_s, attribute=is_attribute and bool(key), chosen=chosen
        )

    totals = await store.read(read("", None))
    groups = await store.read(read(metrics_query.groupby, chosen)) if metrics_query.groupby else {}
    others = []
    for point in answered.points:
        step = point.start_s // step_s
        point.total = totals.get(step, {}).get("", Aggregates())
        point.groups = groups.get(step, {})
        if chosen is not None:
            others.append(point.groups.pop("", Aggregates()))
            point.groups = {name.removeprefix("="): figures for name, figures in point.groups.items()}
    await note_since(store, metrics_query, answered)
    return StoredSeries(answered, others)


def finest_of(metrics_query: MetricsQuery) -> int:
    """Return the width in seconds of the finest buckets that the aggregators keep at the start of the interval."""
    query = metrics_query.query
    return finest_step_s(max(query.from_s, query.now_s - HORIZON_NS // SECOND), query.now_s)


async def note_since(store: StoreReader, metrics_query: MetricsQuery, answered: Answer) -> None:
    """Set ``answered.since_ns`` to the time before which no spans are stored, if the interval begins earlier."""
    since_ns = await store.read(lambda spans: spans.shown_since(metrics_query.now_ns))
    if since_ns > answered.from_s * SECOND:
        answered.since_ns = max(answered.since_ns, since_ns)


async def find_exemplars(
    store: StoreReader, metrics_query: MetricsQuery, answered: Answer, column: str
) -> list[Exemplar]:
    """Return up to three spans with the largest *column*, of different traces; [] if the store fails or is slow."""
    where, now_ns = metrics_query.where(answered), metrics_query.now_ns
    try:
        return await store.read(lambda spans: exemplars(spans, where, column, now_ns, _EXEMPLARS_S))
    except Unavailable:
        return []


def missing(answered: Answer) -> dict[str, Any]:
    """Return the fields that say what an answer lacks; empty if every shard sent a result and none is behind."""
    shown: dict[str, Any] = {}
    if answered.missing_shards:
        shown |= {"incomplete": True, "missing_shards": answered.missing_shards}
    if answered.behind_s >= BEHIND_S:
        shown["behind_s"] = round(answered.behind_s, 1)
    return shown
