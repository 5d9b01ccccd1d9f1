"""``GET /metrics/series``: all groups of metrics in steps, for a page with several charts."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.metrics import GROUPS
from tokentrace.service.contract import Answer, operation
from tokentrace.service.web import reply
from tokentrace.units import SECOND, render_duration, render_instant
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.metrics_query import answer_series
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.metrics_operations import (
    COVERAGE_EXAMPLE,
    EXEMPLAR_EXAMPLE,
    OVERVIEW_EXAMPLE,
    CostMetrics,
    Coverage,
    ErrorMetrics,
    Exemplar,
    LatencyMetrics,
    QualityMetrics,
    TokenMetrics,
)
from tokentrace_api.routes.metrics_shown import coverage, largest_error, shown_exemplars
from tokentrace_api.routes.metrics_source import Source
from tokentrace_api.routes.metrics_steps import parse_step, partial_points


class GroupsInStep(msgspec.Struct):
    """The groups of metrics of one step."""

    cost: CostMetrics
    tokens: TokenMetrics
    latency: LatencyMetrics
    errors: ErrorMetrics
    quality: QualityMetrics


class AllSeriesPoint(msgspec.Struct):
    """
    One step of all groups of metrics.

    Attributes:
        at: When the step begins, or the window if it begins within the step.
        span_count: Number of spans of the step.
        partial: True = the numbers cover only a part of the step; absent for a whole step.
    """

    at: InstantText
    value: GroupsInStep
    span_count: Natural
    partial: bool | UnsetType = UNSET


class AllSeriesAnswer(Coverage, kw_only=True):
    """
    All groups of metrics in steps.

    Attributes:
        quantile_error: Upper bound of the relative error of the quantiles in the answer; 0 = exact.
        exemplars: The spans with the highest latency of the whole interval, of different traces, to be shown among the
            points.
    """

    step: str
    points: list[AllSeriesPoint]
    quantile_error: float
    exemplars: list[Exemplar]


GET_ALL_SERIES = operation(
    "getMetricsSeries",
    "Get all groups of metrics in steps",
    """
    Cost, tokens, latency, errors and quality of each step of a window, in one answer; at most 2,000 steps. It is
    neither grouped nor compared: the series of one metric can be.
    """,
    Answer(
        AllSeriesAnswer,
        "The series.",
        {
            "window": "1h",
            "step": "1h",
            "points": [
                {
                    "at": "2026-03-15T13:23:01.000Z",
                    "value": {name: OVERVIEW_EXAMPLE[name] for name in GROUPS},
                    "span_count": 312,
                    "partial": True,
                }
            ],
            "exemplars": [EXEMPLAR_EXAMPLE | {"latency_ms": 3810}],
            "quantile_error": 0.01,
            **COVERAGE_EXAMPLE,
        },
    ),
    errors={
        400: "groupby: all metrics in steps are not grouped; the series of one metric can be",
        503: "no aggregator answers",
    },
)


async def answer_all_in_steps(source: Source, question: MetricsQuery, step: str | None) -> Response:
    """
    Return all groups of metrics in steps of *step*, a duration; None = of a length that suits.

    Raises:
        Rejected: *question* has groups or another side, or *step* does not fit.
    """
    if question.groupby:
        raise Rejected("groupby: all metrics in steps are not grouped; the series of one metric can be")
    if question.before is not None:
        raise Rejected("compare: all metrics in steps are not compared; the series of one metric can be")
    step_s = parse_step(step, question)
    fields = sorted({field for group in GROUPS.values() for field in group.fields})
    answered = await answer_series(source.aggregators, source.store, question, step_s, fields, [])
    shown: dict[str, Any] = {"window": question.window, "step": render_duration(step_s * SECOND)}
    shown |= await shown_exemplars(source.store, "latency", question, answered)

    def show() -> Response:
        partial = partial_points(answered, step_s, question.query.now_s)
        shown["points"] = [
            {
                "at": render_instant(point.start_s * SECOND),
                **({"partial": True} if cut else {}),
                "value": {name: group.render(point.total) for name, group in GROUPS.items()},
                "span_count": point.total.sums.spans,
            }
            for point, cut in zip(answered.points, partial, strict=True)
        ]
        return reply(shown | {"quantile_error": largest_error(answered, fields)} | coverage(answered))

    # In a thread, because computing thousands of quantiles would delay other requests.
    return await asyncio.to_thread(show)
