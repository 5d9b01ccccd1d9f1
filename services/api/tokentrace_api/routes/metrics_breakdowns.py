"""The answer of ``GET /metrics/{name}`` for a map from values to numbers."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.metrics import (
    BREAKDOWNS,
    Answer,
    breakdown_change,
    breakdown_leaf,
)
from tokentrace.metrics.cost import NotPriced
from tokentrace.service.web import reply
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_shown import coverage
from tokentrace_api.routes.metrics_sides import (
    Form,
    Needs,
    ask_sides,
    change_groups,
    error_of,
    find_order,
    part,
    previous,
    show_groups,
)
from tokentrace_api.routes.metrics_source import Source


async def answer_breakdown(source: Source, name: str, question: MetricsQuery, key: str) -> Response:
    """
    Return the answer for a map from the values of a dimension, or of the attribute *key*, to numbers.

    Raises:
        Rejected: The request groups, or does not name the attribute.
    """
    breakdown, key = BREAKDOWNS[name], key.removeprefix("attr.")
    if question.groupby:
        raise Rejected(f"groupby: {name} cannot be grouped again")
    if breakdown.dimension:
        grouped = question.grouped_by(dimension=breakdown.dimension)
    elif key:
        grouped = question.grouped_by(attribute=key)
    else:
        raise Rejected(f"key: {name} needs the attribute to group by, such as ?key=workflow")
    needs, by = Needs(breakdown.fields), f"by_{grouped.groupby}"
    form = Form(
        breakdown.value,
        lambda now, before: breakdown_change(name, now, before),
        breakdown_leaf(name),
        lambda figures: breakdown.contributing(figures) > 0,
        breakdown.not_priced,
    )
    order = find_order(source, grouped, form)
    sides = await ask_sides(source, grouped, needs, order)
    parts = part(grouped, form, order, sides)

    def side(answered: Answer) -> dict[str, Any]:
        shown = show_groups(grouped.groupby, form, parts, answered.groups)
        shown = {"value": shown[by], **shown}
        if breakdown.fields:
            shown["quantile_error"] = error_of(answered, parts, needs)
        listed = [figures for figures in answered.groups.values() if form.lists(figures)]
        if breakdown.not_priced:
            every = [breakdown.not_priced(figures) for figures in listed]
            shown |= NotPriced(sum(part[0] for part in every), sum(part[1] for part in every)).render()
        return shown | {"span_count": sum(map(breakdown.contributing, listed))}

    def changes() -> dict[str, Any]:
        shown = change_groups(grouped.groupby, form, parts, sides)
        return {"value": shown[by], **shown}

    shown = {"window": question.window, "metric": name, **side(sides.now)}
    if parts.is_ranked:
        shown["order"] = parts.names
    shown |= coverage(sides.now)
    if sides.before is not None:
        shown |= {"previous": previous(side(sides.before), sides.before), "change": changes()}
    return reply(shown)
