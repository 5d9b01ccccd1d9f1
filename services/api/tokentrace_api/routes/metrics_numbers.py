"""The answers of ``GET /metrics/{name}`` for a number and for a group of numbers."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from tokentrace.metrics import (
    GROUPS,
    LEADING,
    TOTAL_COST,
    Answer,
    CustomMetric,
    Metric,
    group_changes,
    leaf_of,
    metric_leaf,
)
from tokentrace.metrics.changes import contributing_leaf
from tokentrace.metrics.cost import not_priced, render_cost, total_cost
from tokentrace.metrics.quality import scored
from tokentrace.service.web import reply
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_everything import change_models
from tokentrace_api.routes.metrics_shown import coverage, shown_exemplars
from tokentrace_api.routes.metrics_sides import (
    Form,
    Needs,
    Parts,
    Sides,
    ask_sides,
    change_groups,
    error_of,
    find_order,
    part,
    previous,
    show_groups,
)
from tokentrace_api.routes.metrics_source import Source


async def answer_group(source: Source, name: str, question: MetricsQuery) -> Response:
    """Return the answer for a group of numbers."""
    group, key = GROUPS[name], question.groupby
    needs = Needs(group.fields, by_model=name == "cost")
    if name == "cost":
        form = Form(total_cost, TOTAL_COST.change, TOTAL_COST, lambda figures: figures.paid > 0, not_priced)
    else:
        contributing = scored if name == "quality" else group.contributing
        form = Form(
            group.render,
            lambda now, before: group_changes(name, now, before),
            metric_leaf(LEADING[name]),
            lambda figures: contributing(figures) > 0,
        )
    order = find_order(source, question, form)
    sides = await ask_sides(source, question, needs, order)
    exemplars = await shown_exemplars(source.store, name, question, sides.now)
    parts = part(question, form, order, sides)

    def side(answered: Answer) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        if name == "cost":
            shown |= render_cost(answered.total, answered.models)
        elif not key:
            shown |= group.render(answered.total)
        if key:
            shown |= show_groups(key, form, parts, answered.groups)
        if group.fields:
            shown["quantile_error"] = error_of(answered, parts, needs)
        return shown | {"span_count": group.contributing(answered.total)}

    def changes() -> dict[str, Any]:
        now, before = sides.now.total, sides.earlier_total
        shown: dict[str, Any] = {}
        if name == "cost" or not key:
            shown |= group_changes(name, now, before)
        if name == "cost":
            shown["by_model"] = change_models(sides)
        shown["span_count"] = contributing_leaf(group.contributing).change(now, before)
        return shown | (change_groups(key, form, parts, sides) if key else {})

    def show() -> Response:
        shown = {"window": question.window, **side(sides.now), **exemplars}
        if parts.is_ranked:
            shown["order"] = parts.names
        shown |= coverage(sides.now)
        if sides.before is not None:
            shown |= {"previous": previous(side(sides.before), sides.before), "change": changes()}
        return reply(shown)

    # In a thread, because rendering a thousand groups would delay other requests.
    return await asyncio.to_thread(show) if key else show()


async def answer_number(
    source: Source, name: str, metric: Metric, custom: list[CustomMetric], question: MetricsQuery
) -> Response:
    """Return the answer for one number; *custom* has the metric if it is a custom one."""
    needs, key = Needs(metric.fields, custom=custom), question.groupby
    leaf = leaf_of(name, metric, custom[0] if custom else None)
    form = Form(metric.value, leaf.change, leaf, not_priced=metric.not_priced)
    order = find_order(source, question, form)
    sides = await ask_sides(source, question, needs, order)
    parts = part(question, form, order, sides)
    has_error = metric.fields or any(custom_metric.type == "p95" for custom_metric in custom)

    def side(answered: Answer) -> dict[str, Any]:
        shown: dict[str, Any] = {"value": metric.value(answered.total)}
        if key:
            shown |= show_groups(key, form, parts, answered.groups)
        if has_error:
            shown["quantile_error"] = error_of(answered, parts, needs)
        shown["span_count"] = metric.contributing(answered.total)
        if name == "cost_per_call":
            shown["per_call_span_count"] = metric.contributing(answered.total)
        if metric.not_priced:
            shown |= metric.not_priced(answered.total).render()
        return shown

    shown = {"window": question.window, "metric": name, **side(sides.now)}
    if parts.is_ranked:
        shown["order"] = parts.names
    if not custom:
        family = "cost" if name == "total_cost" else name.partition("_")[0]
        shown |= await shown_exemplars(source.store, family, question, sides.now)
    shown |= coverage(sides.now)
    if sides.before is not None:
        shown["previous"] = previous(side(sides.before), sides.before)
        shown["change"] = _number_changes(metric, form, key, parts, sides)
    return reply(shown)


def _number_changes(metric: Metric, form: Form, key: str, parts: Parts, sides: Sides) -> dict[str, Any]:
    now, before = sides.now.total, sides.earlier_total
    shown = {
        "value": form.change(now, before),
        "span_count": contributing_leaf(metric.contributing).change(now, before),
    }
    return shown | (change_groups(key, form, parts, sides) if key else {})
