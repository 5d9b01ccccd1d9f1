"""The answers of ``GET /metrics/{name}/histogram`` and of its series: how many values lie in which interval."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.responses import Response

from tokentrace.errors import Rejected, quoted
from tokentrace.metrics import Aggregates, Answer, Layout, Leaf, layout_of
from tokentrace.metrics.changes import contributing_leaf
from tokentrace.rollup import Summary
from tokentrace.service.web import reply
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE, SECOND, render_duration, render_instant
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_shown import coverage
from tokentrace_api.routes.metrics_sides import (
    Form,
    Needs,
    Order,
    ask_sides,
    error_of,
    find_order,
    part,
    show_groups,
)
from tokentrace_api.routes.metrics_source import Source
from tokentrace_api.routes.metrics_steps import ask_steps, parse_step, partial_points

MAX_BUCKETS, DEFAULT_BUCKETS = 200, 40
#: Most intervals times steps of a heatmap.
MAX_CELLS = 40_000
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


class _Measure(NamedTuple):
    """
    What is distributed.

    Attributes:
        field: Name of the distribution.
        unit, divisor: Unit of the answer, and how many whole numbers of the distribution it is.
        is_stored: Whether only the store has it, because the aggregators keep no distribution of it.
        most: The largest value that there can be. The last interval ends there, even if its bin goes on.
    """

    field: str
    unit: str
    divisor: int
    is_stored: bool = False
    most: float = math.inf

    def edges(self, layout: Layout) -> list[float]:
        """Return the edges of the intervals, in the unit of the answer."""
        return [min(edge, self.most) for edge in layout.edges(self.divisor)]


_MEASURES: Mapping[str, _Measure] = {
    "latency": _Measure("latency", "ms", MS),
    "ttft": _Measure("ttft", "ms", MS),
    "cost": _Measure("cost", "usd", NUSD_PER_USD, is_stored=True),
    "tokens": _Measure("total", "tokens", 1, is_stored=True),
    "prompt_tokens": _Measure("prompt", "tokens", 1),
    "completion_tokens": _Measure("completion", "tokens", 1),
    "quality": _Measure("score", "score", SCORE_ONE, most=1.0),
}


def _measure(name: str) -> _Measure:
    measure = _MEASURES.get(name)
    if measure is None:
        raise Rejected(f"{quoted(name)} has no histogram; {', '.join(_MEASURES)} have one", status=404)
    return measure


def _parse_buckets(buckets: int) -> int:
    if not 2 <= buckets <= MAX_BUCKETS:
        raise Rejected(f"buckets: {buckets} is not from 2 to {MAX_BUCKETS}")
    return buckets


async def answer_histogram(source: Source, name: str, question: MetricsQuery, buckets: int) -> Response:
    """
    Return the answer for the distribution of one number of spans.

    Args:
        buckets: Most intervals.

    Raises:
        Rejected: *name* has no distribution, or *buckets* is not possible.
    """
    measure, most = _measure(name), _parse_buckets(buckets)
    needs = Needs([measure.field], from_store=measure.is_stored)

    def summary(figures: Aggregates) -> Summary:
        return figures.summary(measure.field)

    size = contributing_leaf(lambda figures: summary(figures).count)
    order = find_order(source, question, _form(measure, Layout(1, 0, 0), size))
    sides = await ask_sides(source, question, needs, order)
    answers = [side for side in sides if side is not None]

    def show() -> Response:
        layout = layout_of((summary(answered.total) for answered in answers), most)
        form = _form(measure, layout, size)
        parts = part(question, form, order, sides)

        def side(answered: Answer) -> dict[str, Any]:
            shown = _distribution(measure, layout, summary(answered.total), "p50", "p95", "p99")
            low, high = summary(answered.total).range()
            shown |= {"min": _shown(measure, low), "max": _shown(measure, high)}
            if question.groupby:
                shown |= show_groups(question.groupby, form, parts, answered.groups)
            return shown | {"quantile_error": error_of(answered, parts, needs)} | coverage(answered)

        shown: dict[str, Any] = {"window": question.window, "metric": name, "unit": measure.unit}
        shown["edges"] = measure.edges(layout)
        shown |= side(sides.now)
        if parts.is_ranked:
            shown["order"] = parts.names
        if sides.before is not None:
            shown["previous"] = side(sides.before)
        return reply(shown)

    # In a thread, because a thousand groups have many intervals.
    return await asyncio.to_thread(show)


def _form(measure: _Measure, layout: Layout, size: Leaf) -> Form:
    return Form(
        lambda figures: _distribution(measure, layout, figures.summary(measure.field), "p50", "p95"),
        lambda now, before: None,
        size,
        lambda figures: figures.summary(measure.field).count > 0,
    )


def _distribution(measure: _Measure, layout: Layout, summary: Summary, *quantiles: str) -> dict[str, Any]:
    counts, zero = layout.counts(summary)
    shown: dict[str, Any] = {"count": sum(counts) + zero, "counts": counts, "zero": zero}
    return shown | {name: _shown(measure, summary.quantile(_QUANTILES[name])) for name in quantiles}


def _shown(measure: _Measure, value: float | None) -> float | None:
    return None if value is None else value / measure.divisor


async def answer_heatmap(source: Source, name: str, question: MetricsQuery, step: str | None, buckets: int) -> Response:
    """
    Return the answer for the distribution of one number of spans in each step.

    Raises:
        Rejected: As for ``answer_histogram``, *step* does not fit, or the request groups or compares.
    """
    measure, most = _measure(name), _parse_buckets(buckets)
    if question.groupby or question.before is not None:
        raise Rejected(
            f"{'groupby' if question.groupby else 'compare'}: distributions in steps have one side and no groups"
        )
    if question.is_ranked:
        raise Rejected(f"{'top' if question.top else 'order'}: needs groupby")
    step_s = parse_step(step, question, from_store=measure.is_stored)
    form = _form(measure, Layout(1, 0, 0), contributing_leaf(lambda _: 0))
    needs = Needs([measure.field], from_store=measure.is_stored)
    stepped = await ask_steps(source, question, step_s, form, Order(None), needs)
    answered = stepped.now.answered
    if len(answered.points) * most > MAX_CELLS:
        raise Rejected(f"step: {len(answered.points)} steps of {most} buckets are over {MAX_CELLS} numbers")

    def show() -> Response:
        summaries = [point.total.summary(measure.field) for point in answered.points]
        layout = layout_of(summaries, most)
        points = [
            {
                "at": render_instant(point.start_s * SECOND),
                **_distribution(measure, layout, summary),
                **({"partial": True} if cut else {}),
            }
            for point, summary, cut in zip(
                answered.points, summaries, partial_points(answered, step_s, question.query.now_s), strict=True
            )
        ]
        shown: dict[str, Any] = {"window": question.window, "metric": name, "unit": measure.unit}
        shown |= {"step": render_duration(step_s * SECOND), "edges": measure.edges(layout), "points": points}
        return reply(shown | coverage(answered))

    return await asyncio.to_thread(show)
