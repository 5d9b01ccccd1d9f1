"""The answer of ``GET /metrics``: all groups of metrics and the custom metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from tokentrace.metrics import (
    GROUPS,
    TOTAL_COST,
    TRANSPORT_METRICS,
    Aggregates,
    Answer,
    CustomMetric,
    CustomValue,
    custom_leaf,
    group_changes,
    metric_leaf,
)
from tokentrace.metrics.cost import has_costs, render_cost, render_not_priced
from tokentrace.service.web import reply
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_shown import coverage
from tokentrace_api.routes.metrics_sides import (
    Form,
    Needs,
    Parts,
    Sides,
    ask_reporters,
    ask_sides,
    change_groups,
    error_of,
    find_order,
    part,
    previous,
    show_groups,
)
from tokentrace_api.routes.metrics_source import Source


async def answer_everything(source: Source, question: MetricsQuery) -> Response:
    """Return the answer for all metrics."""
    custom = list(source.custom.values())
    fields = sorted({field for group in GROUPS.values() for field in group.fields})
    needs = Needs(fields, by_model=True, custom=custom)
    form = Form(
        lambda figures: {"span_count": figures.sums.spans, **_groups(figures, None, custom)},
        lambda now, before: _changes(now, before, custom),
        TOTAL_COST,
    )
    order = find_order(source, question, form)
    sides = await ask_sides(source, question, needs, order)
    reported = await ask_reporters(source, question) if question.is_beyond_buckets else sides.now
    transport, told_twice = reported.transport, reported.told_twice

    def show() -> Response:
        now, before, key = sides.now, sides.before, question.groupby
        parts = part(question, form, order, sides)
        shown: dict[str, Any] = {"window": question.window, **_side(now, custom, key, form, parts)}
        shown["quantile_error"] = error_of(now, parts, needs)
        shown["transport"] = {name: getattr(transport, name) for name in TRANSPORT_METRICS.values()}
        shown["rejected"] = {"spans": source.refused.total, "by_reason": source.refused.spans}
        shown["saved_from_double_count"] = {"calls": told_twice.calls, "nusd": told_twice.nusd}
        shown["alerts"] = {"firings": source.history.firings, "delivery_failed": source.history.delivery_failed}
        if parts.is_ranked:
            shown["order"] = parts.names
        shown |= coverage(now)
        if before is not None:
            earlier = _side(before, custom, key, form, parts)
            shown["previous"] = previous(earlier | {"quantile_error": error_of(before, parts, needs)}, before)
            shown["change"] = _compare(sides, custom, key, form, parts)
        return reply(shown)

    # In a thread, because rendering a thousand groups would delay other requests.
    return await asyncio.to_thread(show) if question.groupby else show()


def _side(answered: Answer, custom: list[CustomMetric], key: str, form: Form, parts: Parts) -> dict[str, Any]:
    total = answered.total
    shown = {"span_count": total.sums.spans, **_groups(total, answered.models, custom)}
    return shown | (show_groups(key, form, parts, answered.groups) if key else {})


def _compare(sides: Sides, custom: list[CustomMetric], key: str, form: Form, parts: Parts) -> dict[str, Any]:
    shown = _changes(sides.now.total, sides.earlier_total, custom)
    shown["cost"]["by_model"] = change_models(sides)
    return shown | (change_groups(key, form, parts, sides) if key else {})


def change_models(sides: Sides) -> dict[str, Any]:
    """Return model -> change of its cost, for the models of both sides."""
    assert sides.before is not None
    now, before = sides.now.models, sides.before.models
    names = {name for models in (now, before) for name, figures in models.items() if has_costs(name, figures)}
    return {
        name: TOTAL_COST.change(now.get(name, Aggregates()), sides.known(before.get(name))) for name in sorted(names)
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


def _changes(now: Aggregates, before: Aggregates | None, custom: list[CustomMetric]) -> dict[str, Any]:
    return {
        "span_count": metric_leaf("span_count").change(now, before),
        **{name: group_changes(name, now, before) for name in GROUPS},
        **{metric.name: custom_leaf(metric).change(now, before) for metric in custom},
    }
