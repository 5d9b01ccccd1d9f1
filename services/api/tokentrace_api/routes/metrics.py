"""``GET /metrics`` and the paths below it: metrics over a window, in groups and as series."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Path as PathName
from fastapi import Query as QueryParams
from msgspec.structs import replace
from pydantic import Field
from starlette.responses import Response

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.metrics import (
    ALERT_METRICS,
    BREAKDOWNS,
    GROUPS,
    METRICS,
    REJECTED_METRIC,
    TRANSPORT_METRICS,
    Aggregates,
    Answer,
    CustomMetric,
    CustomValue,
    Metric,
    Query,
    find_metric,
)
from tokentrace.metrics.cost import NotPriced, not_priced, render_cost, render_not_priced, total_cost
from tokentrace.metrics.latency import quantile_error
from tokentrace.metrics.quality import scored
from tokentrace.rollup import HORIZON_NS, RELATIVE_ERROR, finest_step_s
from tokentrace.service.contract import Router
from tokentrace.service.web import reply
from tokentrace.units import (
    SCORE_ONE,
    SECOND,
    int_to_score,
    nusd_to_usd,
    parse_duration,
    render_duration,
    render_instant,
)
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_query import (
    MetricsParams,
    MetricsQuery,
    answer,
    answer_series,
    find_exemplars,
    missing,
    note_since,
    parse_metrics_query,
)
from tokentrace_api.parameters import Text
from tokentrace_api.reads import count_skipped, custom_values_by
from tokentrace_api.rejected_history import RejectedHistory
from tokentrace_api.routes.metrics_operations import GET_METRIC, GET_METRICS, GET_SERIES

MAX_POINTS = 2000
_AUTOMATIC_POINTS = 120
_STEPS_S = (1, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400)
#: Group, or the first word of a metric -> (column whose largest values are exemplars, key in the answer, conversion).
_TAILS: Mapping[str, tuple[str, str, Callable[[int], float]]] = {
    "cost": ("cost_nusd", "cost_usd", nusd_to_usd),
    "latency": ("latency_ns", "latency_ms", lambda ns: ns / 1e6),
    "ttft": ("ttft_ns", "ttft_ms", lambda ns: ns / 1e6),
}


MetricName = Annotated[str, PathName(description="Name of the metric or group.", examples=["cost"])]


class MetricParams(MetricsParams):
    """The parameters of one metric."""

    key: Text = Field(
        None,
        description="The attribute to group by, for `cost_by_attribute` and `quality_by_attribute` only.",
        examples=["workflow"],
    )


class SeriesParams(MetricsParams):
    """The parameters of a series."""

    step: Text = Field(
        None,
        description=(
            "Length of a step, a multiple of the finest buckets kept at the start of the window; if absent, a length "
            "that gives at most about 120 steps."
        ),
        examples=["10m"],
    )


class _Rendering(NamedTuple):
    """
    How a point of a series is shown.

    Attributes:
        fields, custom: Names of the distributions and of the custom metrics that the query must name.
        value: Aggregates -> the number or the numbers of the group.
        contributing, not_priced: As for ``Metric``.
    """

    fields: tuple[str, ...]
    custom: list[str]
    value: Callable[[Aggregates], Any]
    contributing: Callable[[Aggregates], int]
    not_priced: Callable[[Aggregates], NotPriced] | None = None


class Source(NamedTuple):
    """
    The sources of metrics.

    Attributes:
        aggregators: Answers queries by dimension.
        store: Answers queries by attribute.
        history: Counts firings and failed deliveries.
        refused: Counts refused spans.
        custom: Name -> custom metric.
    """

    aggregators: AggregatorClient
    store: StoreReader
    history: AlertHistory
    refused: RejectedHistory
    custom: Mapping[str, CustomMetric]


def router(path: str, source: Source) -> Router:
    """Return the routes of the metrics at *path* and below."""
    routes = Router("metrics")

    @routes.get(path, **GET_METRICS)
    async def everything(params: Annotated[MetricsParams, QueryParams()]) -> Response:
        return await _everything(source, parse_metrics_query(params, source.store.now_ns()))

    @routes.get(path + "/{name}/series", **GET_SERIES)
    async def series(name: MetricName, params: Annotated[SeriesParams, QueryParams()]) -> Response:
        return await _series(source, name, parse_metrics_query(params, source.store.now_ns()), params.step)

    @routes.get(path + "/{name}", **GET_METRIC)
    async def metric(name: MetricName, params: Annotated[MetricParams, QueryParams()]) -> Response:
        if params.key is not None and BREAKDOWNS.get(name, BREAKDOWNS["cost_by_model"]).dimension:
            raise Rejected("key: only metrics whose name ends in _by_attribute take it")
        question = parse_metrics_query(params, source.store.now_ns())
        if name in GROUPS:
            return await _group(source, name, question)
        if name in BREAKDOWNS:
            return await _breakdown(source, name, question, params.key or "")
        if name in TRANSPORT_METRICS:
            answered = await source.aggregators.query(question.query)
            value = getattr(answered.transport, TRANSPORT_METRICS[name])
            return reply({"metric": name, "value": value} | missing(answered))
        if name in ALERT_METRICS:
            counts = getattr(source.history, ALERT_METRICS[name])
            return reply({"metric": name, "value": sum(counts.values()), "by_rule": counts})
        if name == REJECTED_METRIC:
            return reply({"metric": name, "value": source.refused.total, "by_reason": source.refused.spans})
        if name.startswith("attr.") and len(name) > len("attr."):
            return await _attribute(source, name, question)
        return await _number(source, *_find(source, name), question)

    return routes


async def _everything(source: Source, question: MetricsQuery) -> Response:
    custom = list(source.custom.values())
    fields = sorted({field for group in GROUPS.values() for field in group.fields})
    answered = await answer(source.aggregators, source.store, question, fields, by_model=True, custom=custom)
    shown: dict[str, Any] = {"window": question.window, "span_count": answered.total.sums.spans}
    shown |= _groups(answered.total, answered.models, custom)
    if question.groupby:
        # In a thread, because rendering a thousand groups would delay other requests.
        shown[f"by_{question.groupby}"] = await asyncio.to_thread(
            lambda: {
                name: {"span_count": aggregates.sums.spans, **_groups(aggregates, None, custom)}
                for name, aggregates in answered.groups.items()
            }
        )
    shown["quantile_error"] = _error(answered, fields, custom)
    shown["transport"] = {key: getattr(answered.transport, key) for key in TRANSPORT_METRICS.values()}
    shown["rejected"] = {"spans": source.refused.total, "by_reason": source.refused.spans}
    shown["alerts"] = {"firings": source.history.firings, "delivery_failed": source.history.delivery_failed}
    return reply(shown | coverage(answered))


async def _series(source: Source, name: str, question: MetricsQuery, step: str | None) -> Response:
    if question.attribute:
        raise Rejected("groupby: a series is grouped by a dimension, not by an attribute")
    if question.filters:
        raise Rejected(f"attr.{next(iter(question.filters))}: a series is not filtered by attributes")
    without_series = {*BREAKDOWNS, *TRANSPORT_METRICS, *ALERT_METRICS, REJECTED_METRIC}
    if name in without_series or (name.startswith("attr.") and name != "attr."):
        raise Rejected(f"{shorten(name)} has no series; a number or a group has one, also with groupby", status=404)
    rendering = _rendered(source, name)
    fields, custom = rendering.fields, rendering.custom
    step_s = parse_step(step, question.query)
    measured = [source.custom[metric] for metric in custom]
    answered = await answer_series(source.aggregators, source.store, question, step_s, fields, measured)
    shown: dict[str, Any] = {"window": question.window, "metric": name, "step": render_duration(step_s * SECOND)}
    p95s = [metric for metric in measured if metric.type == "p95"]

    def show() -> Response:
        points = answered.points
        partial = _partial(answered, step_s, question.query.now_s)
        # Once for all groups: rendering an instant takes as long as rendering a value.
        marks = [
            {"at": render_instant(point.start_s * SECOND)} | ({"partial": True} if cut else {})
            for point, cut in zip(points, partial, strict=True)
        ]
        shown["points"] = _points(marks, [point.total for point in points], rendering)
        if fields or p95s:
            shown["quantile_error"] = _error(answered, fields, p95s)
        if question.groupby:
            empty = Aggregates()
            shown[f"by_{question.groupby}"] = {
                group: _points(marks, [point.groups.get(group, empty) for point in points], rendering)
                for group in sorted({group for point in points for group in point.groups})
            }
        return reply(shown | coverage(answered))

    # In a thread, because computing ten thousand quantiles would delay other requests.
    return await asyncio.to_thread(show)


def _find(source: Source, name: str) -> tuple[str, Metric, list[CustomMetric]]:
    """
    Return (canonical name, metric, custom metrics that the query must name).

    Raises:
        Rejected: No metric is called *name*; the text lists all names.
    """
    if name in source.custom:
        custom = source.custom[name]
        return name, custom.as_metric(), [custom]
    built_in = find_metric(name)
    if built_in is None:
        known = ", ".join(
            [
                *GROUPS,
                *METRICS,
                *BREAKDOWNS,
                *TRANSPORT_METRICS,
                *ALERT_METRICS,
                REJECTED_METRIC,
                *source.custom,
                "attr.<key>",
            ]
        )
        raise Rejected(f"unknown metric {quoted(name)}; known are {known}", status=404)
    return *built_in, []


def _rendered(source: Source, name: str) -> _Rendering:
    """Return how a point of the group or number *name* is shown."""
    if name in GROUPS:
        group = GROUPS[name]
        return _Rendering(group.fields, [], group.render, group.contributing)
    _, metric, custom = _find(source, name)
    names = [custom_metric.name for custom_metric in custom]
    return _Rendering(metric.fields, names, metric.value, metric.contributing, metric.not_priced)


def _points(
    marks: Sequence[dict[str, Any]], aggregates: Sequence[Aggregates], rendering: _Rendering
) -> list[dict[str, Any]]:
    value, contributing, not_priced = rendering.value, rendering.contributing, rendering.not_priced
    return [
        {
            **mark,
            "value": value(part),
            "span_count": contributing(part),
            **(not_priced(part).render() if not_priced else {}),
        }
        for mark, part in zip(marks, aggregates, strict=True)
    ]


def _partial(answered: Answer, step_s: int, now_s: int) -> list[bool]:
    """
    Return for each point whether its numbers cover only a part of its step.

    The window cuts the first and the last step, the last step is not over yet, or spans of the step may be missing.
    """
    starts = [point.start_s for point in answered.points]
    return [
        end_s - start_s < step_s or end_s > now_s or start_s * SECOND < answered.since_ns
        for start_s, end_s in zip(starts, [*starts[1:], answered.to_s], strict=True)
    ]


def parse_step(text: str | None, query: Query) -> int:
    """
    Return the step of a series in seconds; if *text* is None, one that gives at most about 120 steps.

    Raises:
        Rejected: *text* is not a duration, is not a multiple of the finest possible step, or gives over 2,000 steps.
            In the last two cases the error text names the finest step.
    """
    from_s = max(query.from_s, query.now_s - HORIZON_NS // SECOND)
    finest, length_s = finest_step_s(from_s, query.now_s), query.to_s - from_s
    if text is None:
        wanted = max(finest, length_s / _AUTOMATIC_POINTS)
        return next((step for step in _STEPS_S if step >= wanted and step % finest == 0), _STEPS_S[-1])
    try:
        step_ns = parse_duration(text)
    except Rejected as exc:
        raise Rejected(f"step: {exc}") from exc
    if step_ns < SECOND or step_ns % (finest * SECOND):
        shown = render_duration(finest * SECOND)
        raise Rejected(f"step: {quoted(text)} is no multiple of {shown}, the finest buckets kept at the start")
    if length_s * SECOND > MAX_POINTS * step_ns:
        least = -(-length_s // (MAX_POINTS * finest)) * finest
        raise Rejected(
            f"step: {quoted(text)} makes over {MAX_POINTS} points; the finest for this window is "
            f"{render_duration(least * SECOND)}"
        )
    return step_ns // SECOND


async def _group(source: Source, name: str, question: MetricsQuery) -> Response:
    group = GROUPS[name]
    answered = await answer(source.aggregators, source.store, question, group.fields, by_model=name == "cost")
    shown: dict[str, Any] = {"window": question.window}
    key = f"by_{question.groupby}"
    if name == "cost":
        shown |= render_cost(answered.total, answered.models)
        if question.groupby:
            by_group = {value: figures for value, figures in answered.groups.items() if figures.paid}
            shown[key] = {value: total_cost(figures) for value, figures in by_group.items()}
            shown[f"unpriced_{key}"] = render_not_priced({value: not_priced(part) for value, part in by_group.items()})
    elif question.groupby:
        contributing = scored if name == "quality" else group.contributing
        shown[key] = {
            value: group.render(figures) for value, figures in answered.groups.items() if contributing(figures)
        }
    else:
        shown |= group.render(answered.total)
    if group.fields:
        shown["quantile_error"] = _error(answered, group.fields)
    shown["span_count"] = group.contributing(answered.total)
    shown |= await _exemplars(source.store, name, question, answered)
    return reply(shown | coverage(answered))


async def _number(
    source: Source, name: str, metric: Metric, custom: list[CustomMetric], question: MetricsQuery
) -> Response:
    answered = await answer(source.aggregators, source.store, question, metric.fields, custom=custom)
    shown: dict[str, Any] = {"window": question.window, "metric": name, "value": metric.value(answered.total)}
    if question.groupby:
        key = f"by_{question.groupby}"
        shown[key] = {value: metric.value(figures) for value, figures in answered.groups.items()}
        if metric.not_priced:
            shown[f"unpriced_{key}"] = render_not_priced(
                {value: metric.not_priced(figures) for value, figures in answered.groups.items()}
            )
    if metric.fields or any(custom_metric.type == "p95" for custom_metric in custom):
        shown["quantile_error"] = _error(answered, metric.fields, custom)
    shown["span_count"] = metric.contributing(answered.total)
    if name == "cost_per_call":
        shown["per_call_span_count"] = metric.contributing(answered.total)
    if metric.not_priced:
        shown |= metric.not_priced(answered.total).render()
    if not custom:
        shown |= await _exemplars(
            source.store, "cost" if name == "total_cost" else name.partition("_")[0], question, answered
        )
    return reply(shown | coverage(answered))


async def _breakdown(source: Source, name: str, question: MetricsQuery, key: str) -> Response:
    breakdown, key = BREAKDOWNS[name], key.removeprefix("attr.")
    if question.groupby:
        raise Rejected(f"groupby: {name} cannot be grouped again")
    if breakdown.dimension:
        grouped = question._replace(query=replace(question.query, groupby=breakdown.dimension))
    elif key:
        grouped = question._replace(attribute=key)
    else:
        raise Rejected(f"key: {name} needs the attribute to group by, such as ?key=workflow")
    answered = await answer(source.aggregators, source.store, grouped, breakdown.fields)
    listed = {value: figures for value, figures in answered.groups.items() if breakdown.contributing(figures)}
    values = {value: breakdown.value(figures) for value, figures in listed.items()}
    shown: dict[str, Any] = {
        "window": question.window,
        "metric": name,
        "value": values,
        f"by_{grouped.groupby}": values,
    }
    if breakdown.fields:
        shown["quantile_error"] = _error(answered, breakdown.fields)
    if breakdown.not_priced:
        by_group = {value: breakdown.not_priced(figures) for value, figures in listed.items()}
        shown[f"unpriced_by_{grouped.groupby}"] = render_not_priced(by_group)
        shown |= NotPriced(
            sum(part[0] for part in by_group.values()), sum(part[1] for part in by_group.values())
        ).render()
    shown["span_count"] = sum(map(breakdown.contributing, listed.values()))
    return reply(shown | coverage(answered))


async def _attribute(source: Source, name: str, question: MetricsQuery) -> Response:
    """Answer for a numeric attribute, over spans of every kind unless the query names one."""
    answered = await answer(source.aggregators, source.store, question)
    metric = CustomMetric(name=name, type="p95", field=name)
    where, now_ns = question.where(answered), question.now_ns

    async def custom_values(key: str, *, attribute: bool) -> dict[str, CustomValue]:
        return await source.store.read(
            lambda spans: custom_values_by(spans, where, metric, key, now_ns, attribute=attribute)
        )

    shown: dict[str, Any] = {"window": question.window, "metric": name}
    shown |= _summarize((await custom_values("", attribute=False)).get("", CustomValue()))
    key = name.removeprefix("attr.")
    # left_out is the old name; both are sent for one release.
    shown["left_out"] = shown["skipped"] = await source.store.read(
        lambda spans: count_skipped(spans, where, key, now_ns)
    )
    if question.groupby:
        groups = await custom_values(question.groupby, attribute=bool(question.attribute))
        shown[f"by_{question.groupby}"] = {group: _summarize(groups[group]) for group in sorted(groups)}
    await note_since(source.store, question, answered)
    answered.folded = []
    return reply(shown | coverage(answered))


def _summarize(value: CustomValue) -> dict[str, Any]:
    p50, p95 = value.summary.quantile(0.50), value.summary.quantile(0.95)
    return {
        "count": value.size,
        "sum": int_to_score(value.total) if value.size else None,
        "avg": value.total / (value.size * SCORE_ONE) if value.size else None,
        "p50": None if p50 is None else p50 / 1e9,
        "p95": None if p95 is None else p95 / 1e9,
    }


def _groups(
    figures: Aggregates, by_model: Mapping[str, Aggregates] | None, custom: list[CustomMetric]
) -> dict[str, Any]:
    shown = {
        name: render_cost(figures, by_model) if name == "cost" else group.render(figures)
        for name, group in GROUPS.items()
    } | {metric.name: metric.value(figures.custom.get(metric.name, CustomValue())) for metric in custom}
    money = [metric for metric in custom if metric.money]
    if money:
        shown["unpriced_custom"] = render_not_priced({metric.name: metric.not_priced(figures) for metric in money})
    return shown


def _error(answered: Answer, fields: Iterable[str], custom: Iterable[CustomMetric] = ()) -> float:
    """Return an upper bound of the relative error of every quantile in the answer; 0 = all are exact."""
    parts = [answered.total, *answered.groups.values()]
    for point in answered.points:
        parts += [point.total, *point.groups.values()]
    summaries = [part.custom[metric.name].summary for part in parts for metric in custom if metric.name in part.custom]
    errors = [quantile_error(part, field) for part in parts for field in fields]
    return max([0.0, *errors, *(0.0 if summary.exact else RELATIVE_ERROR for summary in summaries)])


async def _exemplars(store: StoreReader, name: str, question: MetricsQuery, answered: Answer) -> dict[str, Any]:
    if name not in _TAILS:
        return {}
    column, unit, shown = _TAILS[name]
    return {
        "exemplars": [
            {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id, unit: shown(exemplar.value)}
            for exemplar in await find_exemplars(store, question, answered, column)
        ]
    }


def coverage(answered: Answer) -> dict[str, Any]:
    """Return the fields that say which interval the numbers cover, in event time, and what is missing from them."""
    return {
        "from": render_instant(answered.from_s * SECOND),
        "to": render_instant(answered.to_s * SECOND),
        "since": render_instant(answered.since_ns) if answered.since_ns else None,
        **({"folded": answered.folded} if answered.folded else {}),
    } | missing(answered)
