"""``GET /metrics`` and the paths below it: metrics over a window, in groups and as series."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path as PathName
from fastapi import Query as QueryParams
from pydantic import Field
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.metrics import ALERT_METRICS, BREAKDOWNS, GROUPS, REJECTED_METRIC, TRANSPORT_METRICS
from tokentrace.service.contract import Router
from tokentrace.service.web import reply
from tokentrace_api.metrics_params import MetricsParams, MetricsQuery, parse_metrics_query
from tokentrace_api.metrics_query import missing
from tokentrace_api.parameters import Count, Text
from tokentrace_api.routes.metrics_all_series import GET_ALL_SERIES, answer_all_in_steps
from tokentrace_api.routes.metrics_attributes import answer_attribute, answer_evals, attribute_metric
from tokentrace_api.routes.metrics_breakdowns import answer_breakdown
from tokentrace_api.routes.metrics_everything import answer_everything
from tokentrace_api.routes.metrics_explain import answer_explain
from tokentrace_api.routes.metrics_histogram import (
    DEFAULT_BUCKETS,
    MAX_BUCKETS,
    answer_heatmap,
    answer_histogram,
)
from tokentrace_api.routes.metrics_more_operations import EXPLAIN_COST, GET_HEATMAP, GET_HISTOGRAM, LIST_EVALS
from tokentrace_api.routes.metrics_numbers import answer_group, answer_number
from tokentrace_api.routes.metrics_operations import GET_METRIC, GET_METRICS, GET_SERIES
from tokentrace_api.routes.metrics_series import answer_in_steps
from tokentrace_api.routes.metrics_sides import ask_reporters
from tokentrace_api.routes.metrics_source import Source, find_known

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


class HistogramParams(MetricsParams):
    """The parameters of a distribution."""

    buckets: Count = Field(DEFAULT_BUCKETS, description=f"Most intervals, 2 to {MAX_BUCKETS}.")


class HeatmapParams(SeriesParams):
    """The parameters of a distribution in steps."""

    buckets: Count = Field(DEFAULT_BUCKETS, description=f"Most intervals, 2 to {MAX_BUCKETS}.")


def router(path: str, source: Source) -> Router:
    """Return the routes of the metrics at *path* and below."""
    routes = Router("metrics")

    @routes.get(path, **GET_METRICS)
    async def everything(params: Annotated[MetricsParams, QueryParams()]) -> Response:
        return await answer_everything(source, parse_metrics_query(params, source.store.now_ns()))

    @routes.get(path + "/evals", **LIST_EVALS)
    async def evals(params: Annotated[MetricsParams, QueryParams()]) -> Response:
        return await answer_evals(source, parse_metrics_query(params, source.store.now_ns()))

    @routes.get(path + "/explain", **EXPLAIN_COST)
    async def explain(params: Annotated[MetricsParams, QueryParams()]) -> Response:
        return await answer_explain(source, parse_metrics_query(params, source.store.now_ns()))

    @routes.get(path + "/{name}/histogram", **GET_HISTOGRAM)
    async def histogram(name: MetricName, params: Annotated[HistogramParams, QueryParams()]) -> Response:
        question = parse_metrics_query(params, source.store.now_ns())
        return await answer_histogram(source, name, question, params.buckets)

    @routes.get(path + "/{name}/histogram/series", **GET_HEATMAP)
    async def heatmap(name: MetricName, params: Annotated[HeatmapParams, QueryParams()]) -> Response:
        question = parse_metrics_query(params, source.store.now_ns())
        return await answer_heatmap(source, name, question, params.step, params.buckets)

    @routes.get(path + "/series", **GET_ALL_SERIES)
    async def all_series(params: Annotated[SeriesParams, QueryParams()]) -> Response:
        return await answer_all_in_steps(source, parse_metrics_query(params, source.store.now_ns()), params.step)

    @routes.get(path + "/{name}/series", **GET_SERIES)
    async def series(name: MetricName, params: Annotated[SeriesParams, QueryParams()]) -> Response:
        return await answer_in_steps(source, name, parse_metrics_query(params, source.store.now_ns()), params.step)

    @routes.get(path + "/{name}", **GET_METRIC)
    async def metric(name: MetricName, params: Annotated[MetricParams, QueryParams()]) -> Response:
        if params.key is not None and BREAKDOWNS.get(name, BREAKDOWNS["cost_by_model"]).dimension:
            raise Rejected("key: only metrics whose name ends in _by_attribute take it")
        question = parse_metrics_query(params, source.store.now_ns())
        if name in GROUPS:
            return await answer_group(source, name, question)
        if name in BREAKDOWNS:
            return await answer_breakdown(source, name, question, params.key or "")
        if name in TRANSPORT_METRICS or name in ALERT_METRICS or name == REJECTED_METRIC:
            _refuse_sides(name, question)
        if name in TRANSPORT_METRICS:
            answered = await ask_reporters(source, question)
            value = getattr(answered.transport, TRANSPORT_METRICS[name])
            return reply({"metric": name, "value": value} | missing(answered))
        if name in ALERT_METRICS:
            counts = getattr(source.history, ALERT_METRICS[name])
            return reply({"metric": name, "value": sum(counts.values()), "by_rule": counts})
        if name == REJECTED_METRIC:
            return reply({"metric": name, "value": source.refused.total, "by_reason": source.refused.spans})
        if attribute_metric(name) is not None:
            return await answer_attribute(source, name, question)
        return await answer_number(source, *find_known(source, name), question)

    return routes


def _refuse_sides(name: str, question: MetricsQuery) -> None:
    """Raise ``Rejected`` if *question* names an interval, compares or orders, which a count since the start cannot."""
    given = {
        "from": question.window is None,
        "compare": question.before is not None,
        "top": question.top,
        "order": question.order,
    }
    for parameter, is_given in given.items():
        if is_given:
            raise Rejected(f"{parameter}: {name} is one count since the stream began")
