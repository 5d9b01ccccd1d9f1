"""``GET /metrics`` and everything below it in JSON: numbers over a window, by group and in steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import Rejected, shorten
from tokentrace.metrics import (
    ALERT_METRICS,
    BREAKDOWNS,
    GROUPS,
    METRICS,
    TRANSPORT_METRICS,
    Aggregates,
    Answer,
    CustomMetric,
    CustomValue,
    Metric,
    Point,
    Query,
    find_metric,
)
from tokentrace.metrics.cost import render_cost
from tokentrace.metrics.latency import quantile_error
from tokentrace.rollup import HORIZON_NS, RELATIVE_ERROR, finest_step_s
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
from tokentrace_api.metrics_query import (
    ALLOWED,
    MetricsQuery,
    answer,
    find_exemplars,
    missing,
    note_since,
    parse_metrics_query,
)
from tokentrace_api.parameters import parameters
from tokentrace_api.reads import count_skipped, custom_values_by

if TYPE_CHECKING:
    from tokentrace_api.service import Api

MAX_POINTS = 2000
_AUTOMATIC_POINTS = 120
_STEPS_S = (1, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400)
#: Group or metric -> column whose largest values are the tail, and how one is shown.
_TAILS: Mapping[str, tuple[str, str, Callable[[int], float]]] = {
    "cost": ("cost_nusd", "cost_usd", nusd_to_usd),
    "latency": ("latency_ns", "latency_ms", lambda ns: ns / 1e6),
    "ttft": ("ttft_ns", "ttft_ms", lambda ns: ns / 1e6),
}


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the metrics."""

    async def everything(request: Request) -> Response:
        question = parse_metrics_query(parameters(request, ALLOWED, prefix="attr."))
        custom = list(api.config.custom.values())
        fields = sorted({field for group in GROUPS.values() for field in group.fields})
        found = await answer(api, question, fields, by_model=True, custom=custom)
        shown: dict[str, Any] = {"window": question.window, "span_count": found.total.sums.spans}
        shown |= _groups(found.total, found.models, custom)
        if question.groupby:
            # Of a thousand groups this takes a while, in which others want to be answered.
            shown[f"by_{question.groupby}"] = await asyncio.to_thread(
                lambda: {
                    name: {"span_count": figures.sums.spans, **_groups(figures, None, custom)}
                    for name, figures in found.groups.items()
                }
            )
        shown["quantile_error"] = _error(found, fields, custom)
        shown["transport"] = {key: getattr(found.transport, key) for key in TRANSPORT_METRICS.values()}
        shown["alerts"] = {"firings": api.alert_history.firings, "delivery_failed": api.alert_history.delivery_failed}
        return reply(shown | coverage(found))

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        given = parameters(request, (*ALLOWED, "key"), prefix="attr.")
        if "key" in given and BREAKDOWNS.get(name, BREAKDOWNS["cost_by_model"]).dimension:
            raise Rejected("key: only metrics that end in _by_attribute have one")
        question = parse_metrics_query(given)
        if name in GROUPS:
            return await _group(api, name, question)
        if name in BREAKDOWNS:
            return await _split(api, name, question, given.get("key", ""))
        if name in TRANSPORT_METRICS:
            found = await api.aggregators.query(question.query)
            return reply({"metric": name, "value": getattr(found.transport, TRANSPORT_METRICS[name])} | missing(found))
        if name in ALERT_METRICS:
            counts = getattr(api.alert_history, ALERT_METRICS[name])
            return reply({"metric": name, "value": sum(counts.values()), "by_rule": counts})
        if name.startswith("attr.") and len(name) > len("attr."):
            return await _attribute(api, name, question)
        return await _number(api, *_find(api, name), question)

    async def series(request: Request) -> Response:
        name = request.path_params["name"]
        given = parameters(request, (*ALLOWED, "step"), prefix="attr.")
        question = parse_metrics_query(given)
        if question.attribute:
            raise Rejected("groupby: a series is grouped by a dimension, not by one of the attributes")
        if question.filters:
            raise Rejected(f"attr.{next(iter(question.filters))}: a series is not filtered by attributes")
        if name in {*BREAKDOWNS, *TRANSPORT_METRICS, *ALERT_METRICS} or (name.startswith("attr.") and name != "attr."):
            raise Rejected(f"{shorten(name)} has no series; a number or group with groupby has", status=404)
        fields, render, custom = _rendered(api, name)
        step_s = parse_step(given.get("step"), question.query)
        found = await api.aggregators.query(
            replace(question.query, what="series", step_s=step_s, fields=list(fields), custom=custom)
        )
        shown: dict[str, Any] = {"window": question.window, "metric": name, "step": render_duration(step_s * SECOND)}
        own = [one for one in map(api.config.custom.__getitem__, custom) if one.type == "p95"]

        def show() -> Response:
            shown["points"] = _points(found.points, [point.total for point in found.points], render)
            if fields or own:
                shown["quantile_error"] = _error(found, fields, own)
            if question.groupby:
                empty = Aggregates()
                shown[f"by_{question.groupby}"] = {
                    group: _points(found.points, [point.groups.get(group, empty) for point in found.points], render)
                    for group in sorted({group for point in found.points for group in point.groups})
                }
            return reply(shown | coverage(found))

        # Ten thousand quantiles take a while, in which others want to be answered.
        return await asyncio.to_thread(show)

    path = api.config.metrics_path
    return [Route(path, everything), Route(path + "/{name}/series", series), Route(path + "/{name}", one)]


def _find(api: Api, name: str) -> tuple[str, Metric, list[CustomMetric]]:
    """(Its own name, the metric, what has to be asked for besides)."""
    if name in api.config.custom:
        own = api.config.custom[name]
        return name, own.as_metric(), [own]
    found = find_metric(name)
    if found is None:
        known = ", ".join(
            [*GROUPS, *METRICS, *BREAKDOWNS, *TRANSPORT_METRICS, *ALERT_METRICS, *api.config.custom, "attr.<key>"]
        )
        raise Rejected(f"unknown metric {shorten(name)!r}; known are {known}", status=404)
    return *found, []


def _rendered(api: Api, name: str) -> tuple[tuple[str, ...], Callable[[Aggregates], Any], list[str]]:
    """(Distributions, how figures are shown, metrics of one's own) of a group or a number."""
    if name in GROUPS:
        return GROUPS[name].fields, GROUPS[name].render, []
    _, metric, custom = _find(api, name)
    return metric.fields, metric.value, [one.name for one in custom]


def _points(
    points: Sequence[Point], figures: Sequence[Aggregates], render: Callable[[Aggregates], Any]
) -> list[dict[str, Any]]:
    return [
        {"at": render_instant(point.start_s * SECOND), "value": render(own), "span_count": own.sums.spans}
        for point, own in zip(points, figures, strict=True)
    ]


def parse_step(text: str | None, query: Query) -> int:
    """
    The step of a series in seconds; without one about a hundred steps.

    Raises:
        Rejected: Names the finest that can be had.
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
        raise Rejected(f"step: {shorten(text)!r} is no multiple of {shown}, the finest buckets kept at the start")
    if length_s * SECOND > MAX_POINTS * step_ns:
        least = -(-length_s // (MAX_POINTS * finest)) * finest
        raise Rejected(
            f"step: {shorten(text)!r} makes over {MAX_POINTS} points; the finest for this window is "
            f"{render_duration(least * SECOND)}"
        )
    return step_ns // SECOND


async def _group(api: Api, name: str, question: MetricsQuery) -> Response:
    group = GROUPS[name]
    found = await answer(api, question, group.fields, by_model=name == "cost")
    shown: dict[str, Any] = {"window": question.window}
    key = f"by_{question.groupby}"
    if name == "cost":
        shown |= render_cost(found.total, found.models)
        if question.groupby:
            shown[key] = {value: group.render(figures)["total_usd"] for value, figures in found.groups.items()}
    elif question.groupby:
        counted = {"quality": "score_n"}.get(name, "spans")
        shown[key] = {
            value: group.render(figures) for value, figures in found.groups.items() if getattr(figures.sums, counted)
        }
    else:
        shown |= group.render(found.total)
    if group.fields:
        shown["quantile_error"] = _error(found, group.fields)
    shown |= {"span_count": found.total.sums.spans} | await _exemplars(api, name, question, found)
    return reply(shown | coverage(found))


async def _number(api: Api, name: str, metric: Metric, custom: list[CustomMetric], question: MetricsQuery) -> Response:
    found = await answer(api, question, metric.fields, custom=custom)
    shown: dict[str, Any] = {"window": question.window, "metric": name, "value": metric.value(found.total)}
    if question.groupby:
        shown[f"by_{question.groupby}"] = {value: metric.value(figures) for value, figures in found.groups.items()}
    if metric.fields or any(one.type == "p95" for one in custom):
        shown["quantile_error"] = _error(found, metric.fields, custom)
    shown |= {"span_count": metric.contributing(found.total)}
    if not custom:
        shown |= await _exemplars(api, "cost" if name == "total_cost" else name.partition("_")[0], question, found)
    return reply(shown | coverage(found))


async def _split(api: Api, name: str, question: MetricsQuery, key: str) -> Response:
    split, key = BREAKDOWNS[name], key.removeprefix("attr.")
    if question.groupby:
        raise Rejected(f"groupby: {name} is grouped already")
    if split.dimension:
        asked = question._replace(query=replace(question.query, groupby=split.dimension))
    elif key:
        asked = question._replace(attribute=key)
    else:
        raise Rejected(f"key: {name} needs the attribute it is grouped by, such as ?key=workflow")
    found = await answer(api, asked, split.fields)
    values = {value: split.value(figures) for value, figures in found.groups.items()}
    values = {value: number for value, number in values.items() if number is not None}
    shown: dict[str, Any] = {"window": question.window, "metric": name, "value": values, f"by_{asked.groupby}": values}
    if split.fields:
        shown["quantile_error"] = _error(found, split.fields)
    return reply(shown | {"span_count": found.total.sums.spans} | coverage(found))


async def _attribute(api: Api, name: str, question: MetricsQuery) -> Response:
    """A numeric attribute of every kind of span, or of the one asked for."""
    found = await answer(api, question)
    metric = CustomMetric(name=name, type="p95", field=name)
    where, now_ns = question.where(found), question.now_ns

    async def tallies(key: str, *, attribute: bool) -> dict[str, CustomValue]:
        return await api.read(lambda store: custom_values_by(store, where, metric, key, now_ns, attribute=attribute))

    shown: dict[str, Any] = {"window": question.window, "metric": name}
    shown |= _tally((await tallies("", attribute=False)).get("", CustomValue()))
    shown["left_out"] = await api.read(lambda store: count_skipped(store, where, name.removeprefix("attr."), now_ns))
    if question.groupby:
        groups = await tallies(question.groupby, attribute=bool(question.attribute))
        shown[f"by_{question.groupby}"] = {value: _tally(groups[value]) for value in sorted(groups)}
    await note_since(api, question, found)
    return reply(shown | coverage(found))


def _tally(tally: CustomValue) -> dict[str, Any]:
    p50, p95 = tally.summary.quantile(0.50), tally.summary.quantile(0.95)
    return {
        "count": tally.size,
        "sum": int_to_score(tally.total) if tally.size else None,
        "avg": tally.total / (tally.size * SCORE_ONE) if tally.size else None,
        "p50": None if p50 is None else p50 / 1e9,
        "p95": None if p95 is None else p95 / 1e9,
    }


def _groups(
    figures: Aggregates, by_model: Mapping[str, Aggregates] | None, custom: list[CustomMetric]
) -> dict[str, Any]:
    return {
        name: render_cost(figures, by_model) if name == "cost" else group.render(figures)
        for name, group in GROUPS.items()
    } | {metric.name: metric.value(figures.custom.get(metric.name, CustomValue())) for metric in custom}


def _error(found: Answer, fields: Iterable[str], custom: Iterable[CustomMetric] = ()) -> float:
    """The largest relative error of any quantile in the answer."""
    every = [found.total, *found.groups.values()]
    for point in found.points:
        every += [point.total, *point.groups.values()]
    own = [figures.custom[one.name].summary for figures in every for one in custom if one.name in figures.custom]
    errors = [quantile_error(figures, field) for figures in every for field in fields]
    return max([0.0, *errors, *(0.0 if summary.exact else RELATIVE_ERROR for summary in own)])


async def _exemplars(api: Api, name: str, question: MetricsQuery, found: Answer) -> dict[str, Any]:
    if name not in _TAILS:
        return {}
    column, unit, shown = _TAILS[name]
    return {
        "exemplars": [
            {"trace_id": one.trace_id, "span_id": one.span_id, unit: shown(one.value)}
            for one in await find_exemplars(api, question, found, column)
        ]
    }


def coverage(found: Answer) -> dict[str, Any]:
    """What the numbers are about: the exact interval, from <= ended < to, and what is missing from it."""
    return {
        "from": render_instant(found.from_s * SECOND),
        "to": render_instant(found.to_s * SECOND),
        "since": render_instant(found.since_ns) if found.since_ns else None,
    } | missing(found)
