"""The answer of ``GET /metrics/{name}/series``: a number, a group or a numeric attribute in steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response

from tokentrace.errors import Rejected, shorten
from tokentrace.metrics import (
    ALERT_METRICS,
    BREAKDOWNS,
    GROUPS,
    LEADING,
    REJECTED_METRIC,
    TRANSPORT_METRICS,
    Aggregates,
    Leaf,
    leaf_of,
    metric_leaf,
)
from tokentrace.metrics.cost import NotPriced
from tokentrace.service.web import reply
from tokentrace.units import SECOND, render_duration, render_instant
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_attributes import attribute_metric, average_of, summarize
from tokentrace_api.routes.metrics_shown import coverage, largest_error
from tokentrace_api.routes.metrics_sides import Form, Needs, Parts, find_order
from tokentrace_api.routes.metrics_source import Source, find_known
from tokentrace_api.routes.metrics_steps import Side, ask_steps, parse_step, partial_points


class _Rendering(NamedTuple):
    """
    How a point of a series is shown.

    Attributes:
        value: Aggregates -> the number or the numbers of the group.
        contributing, not_priced: As for ``Metric``.
        leaf: The number by which groups are ordered.
        needs: What the query must compute.
    """

    value: Callable[[Aggregates], Any]
    contributing: Callable[[Aggregates], int]
    leaf: Leaf
    needs: Needs
    not_priced: Callable[[Aggregates], NotPriced] | None = None


async def answer_in_steps(source: Source, name: str, question: MetricsQuery, step: str | None) -> Response:
    """
    Return the answer for a number or a group in steps of *step*, a duration; None = of a length that suits.

    Raises:
        Rejected: *name* has no series, or *step* does not fit.
    """
    if name in {*BREAKDOWNS, *TRANSPORT_METRICS, *ALERT_METRICS, REJECTED_METRIC}:
        raise Rejected(f"{shorten(name)} has no series; a number or a group has one, also with groupby", status=404)
    rendering = _rendered(source, name)
    form = Form(rendering.value, lambda now, before: None, rendering.leaf)
    order = find_order(source, question, form)
    step_s = parse_step(step, question, from_store=rendering.needs.from_store)
    stepped = await ask_steps(source, question, step_s, form, order, rendering.needs)
    fields = sorted({*rendering.needs.fields, *order.needs.fields})
    custom = [*rendering.needs.custom, *order.needs.custom]
    has_error = bool(fields) or any(metric.type == "p95" for metric in custom)

    def show(side: Side) -> dict[str, Any]:
        lines = _lines(side, step_s, question, rendering, stepped.parts)
        if has_error:
            lines["quantile_error"] = largest_error(side.answered, fields, custom, side.others)
        return lines | coverage(side.answered)

    def show_all() -> Response:
        shown: dict[str, Any] = {"window": question.window, "metric": name, "step": render_duration(step_s * SECOND)}
        shown |= show(stepped.now)
        if stepped.parts is not None and stepped.parts.is_ranked:
            shown["order"] = stepped.parts.names
        if stepped.before is not None:
            shown["previous"] = show(stepped.before)
        return reply(shown)

    # In a thread, because computing ten thousand quantiles would delay other requests.
    return await asyncio.to_thread(show_all)


def _lines(
    side: Side, step_s: int, question: MetricsQuery, rendering: _Rendering, parts: Parts | None
) -> dict[str, Any]:
    """Return the points of all spans and, if the query groups, those of each group that is shown."""
    points = side.answered.points
    partial = partial_points(side.answered, step_s, question.query.now_s)
    # Once for all groups: rendering an instant takes as long as rendering a value.
    marks = [
        {"at": render_instant(point.start_s * SECOND)} | ({"partial": True} if cut else {})
        for point, cut in zip(points, partial, strict=True)
    ]
    shown: dict[str, Any] = {"points": _points(marks, [point.total for point in points], rendering)}
    if not question.groupby:
        return shown
    empty, known = Aggregates(), {group for point in points for group in point.groups}
    names = sorted(known) if parts is None else [name for name in parts.names if name in known]
    shown[f"by_{question.groupby}"] = {
        group: _points(marks, [point.groups.get(group, empty) for point in points], rendering) for group in names
    }
    if parts is not None and parts.is_cut:
        shown["other"] = {"groups": side.rest, "points": _points(marks, side.others, rendering)} if side.rest else None
    return shown


def _rendered(source: Source, name: str) -> _Rendering:
    """Return how a point of the group, number or attribute *name* is shown."""
    if name in GROUPS:
        group = GROUPS[name]
        return _Rendering(group.render, group.contributing, metric_leaf(LEADING[name]), Needs(group.fields))
    attribute = attribute_metric(name)
    if attribute is not None:
        return _Rendering(
            lambda figures: summarize(figures, attribute),
            lambda figures: figures.custom[attribute.name].size if attribute.name in figures.custom else 0,
            average_of(attribute),
            Needs(custom=[attribute], from_store=True),
        )
    canonical, metric, custom = find_known(source, name)
    leaf = leaf_of(canonical, metric, custom[0] if custom else None)
    needs = Needs(metric.fields, custom=custom)
    return _Rendering(metric.value, metric.contributing, leaf, needs, metric.not_priced)


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
