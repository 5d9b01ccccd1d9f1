"""The answers about numeric attributes, such as ``attr.depth`` and the evals, and the list of the evals."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.metrics import Aggregates, Answer, CustomMetric, CustomValue, Leaf, custom_leaf
from tokentrace.service.web import reply
from tokentrace.units import SCORE_ONE, int_to_score, render_instant
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.metrics_query import answer, note_since
from tokentrace_api.parameters import ATTRIBUTE_PREFIX
from tokentrace_api.reads import count_skipped, custom_values_by, list_evals
from tokentrace_api.routes.metrics_shown import coverage
from tokentrace_api.routes.metrics_sides import (
    Form,
    Needs,
    Sides,
    change_groups,
    find_order,
    part,
    previous,
    show_groups,
)
from tokentrace_api.routes.metrics_source import Source

#: Beginning of the keys of attributes that are evals.
_EVALS = "eval."
_KINDS: Sequence[Literal["count", "sum", "avg", "p50", "p95"]] = ("count", "sum", "avg", "p50", "p95")


def attribute_metric(name: str) -> CustomMetric | None:
    """Return ``attr.<key>``, or ``eval.<name>``, which is ``attr.eval.<name>``, as a metric; None for other names."""
    for prefix in (ATTRIBUTE_PREFIX, _EVALS):
        if name.startswith(prefix) and len(name) > len(prefix):
            field = name if prefix == ATTRIBUTE_PREFIX else ATTRIBUTE_PREFIX + name
            return CustomMetric(name=name, type="p95", field=field)
    return None


def average_of(metric: CustomMetric) -> Leaf:
    """Return the average of a numeric attribute, by which groups are ordered."""
    return custom_leaf(_as(metric, "avg"))


def _as(metric: CustomMetric, kind: Literal["count", "sum", "avg", "p50", "p95"]) -> CustomMetric:
    return CustomMetric(name=metric.name, type=kind, field=metric.field)


async def answer_attribute(source: Source, name: str, question: MetricsQuery) -> Response:
    """Answer for a numeric attribute, over spans of every kind unless the query names one."""
    metric, key = attribute_metric(name), question.groupby
    assert metric is not None
    form = Form(
        lambda figures: summarize(figures, metric),
        lambda now, before: _changes(metric, now, before),
        average_of(metric),
    )
    order = find_order(source, question, form)
    if order.needs != Needs():
        raise Rejected(f"order: groups of {name} are ordered by value, change or name")
    asked = [question] if question.before is None else [question, question.before]
    measured = await asyncio.gather(*(_measure(source, metric, side) for side in asked))
    sides = Sides(measured[0].answered, measured[1].answered if len(measured) > 1 else None)
    parts = part(question, form, order, sides)

    def side(found: _Measured) -> dict[str, Any]:
        shown: dict[str, Any] = form.value(found.answered.total)
        # left_out is the old name; both are sent for one release.
        shown["left_out"] = shown["skipped"] = found.skipped
        return shown | (show_groups(key, form, parts, found.answered.groups) if key else {})

    shown = {"window": question.window, "metric": name, **side(measured[0])}
    if parts.is_ranked:
        shown["order"] = parts.names
    shown |= coverage(sides.now)
    if sides.before is not None:
        shown["previous"] = previous(side(measured[1]), sides.before)
        changes = form.change(sides.now.total, sides.earlier_total)
        shown["change"] = changes | (change_groups(key, form, parts, sides) if key else {})
    return reply(shown)


class _Measured(NamedTuple):
    """What one side has of an attribute, as a custom metric, and how many of its values are too large to be summed."""

    answered: Answer
    skipped: int


async def _measure(source: Source, metric: CustomMetric, question: MetricsQuery) -> _Measured:
    # Only for the interval: the groups and the sums come from the store.
    answered = await answer(source.aggregators, source.store, question.grouped_by())
    where, now_ns = question.where(answered), question.now_ns

    async def custom_values(key: str, *, attribute: bool) -> dict[str, Aggregates]:
        values = await source.store.read(
            lambda spans: custom_values_by(spans, where, metric, key, now_ns, attribute=attribute)
        )
        return {value: Aggregates(custom={metric.name: measured}) for value, measured in values.items()}

    answered.total = (await custom_values("", attribute=False)).get("", Aggregates())
    key = metric.field.removeprefix("attr.")
    skipped = await source.store.read(lambda spans: count_skipped(spans, where, key, now_ns))
    if question.groupby:
        answered.groups = await custom_values(question.groupby, attribute=bool(question.attribute))
    await note_since(source.store, question, answered)
    answered.folded = []
    return _Measured(answered, skipped)


def _changes(metric: CustomMetric, now: Aggregates, before: Aggregates | None) -> dict[str, Any]:
    return {kind: custom_leaf(_as(metric, kind)).change(now, before) for kind in _KINDS}


def summarize(figures: Aggregates, metric: CustomMetric) -> dict[str, Any]:
    """Return count, sum, average and quantiles of a numeric attribute, null without values."""
    value = figures.custom.get(metric.name) or CustomValue()
    p50, p95 = value.summary.quantile(0.50), value.summary.quantile(0.95)
    return {
        "count": value.size,
        "sum": int_to_score(value.total) if value.size else None,
        "avg": value.total / (value.size * SCORE_ONE) if value.size else None,
        "p50": None if p50 is None else p50 / SCORE_ONE,
        "p95": None if p95 is None else p95 / SCORE_ONE,
    }


async def answer_evals(source: Source, question: MetricsQuery) -> Response:
    """Return the names of all evals that spans have, with the number of spans and the newest of them."""
    if question.groupby or question.before is not None:
        raise Rejected(f"{'groupby' if question.groupby else 'compare'}: the list of evals is not grouped or compared")
    answered = await answer(source.aggregators, source.store, question)
    where, now_ns = question.where(answered), question.now_ns
    found = await source.store.read(lambda spans: list_evals(spans, where, now_ns))
    await note_since(source.store, question, answered)
    answered.folded = []
    evals = [
        {"name": held.name, "metric": _EVALS + held.name, "count": held.spans, "last_at": render_instant(held.last_ns)}
        for held in found
    ]
    return reply({"window": question.window, "evals": evals} | coverage(answered))
