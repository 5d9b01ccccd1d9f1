"""The answer of ``GET /metrics/explain``: why the cost differs between the two sides of a comparison."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.metrics import TOTAL_COST, Aggregates, Answer, Leaf, Split, metric_leaf, split_change
from tokentrace.metrics.changes import CALL_COST, CALLS, TOKEN_PRICE, TOKENS_PER_CALL, rendered
from tokentrace.metrics.cost import not_priced
from tokentrace.service.web import reply
from tokentrace.units import nusd_to_usd
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.routes.metrics_shown import coverage
from tokentrace_api.routes.metrics_sides import Needs, Order, Sides, ask_sides, previous
from tokentrace_api.routes.metrics_source import Source

#: Key in the answer -> number of a side.
_NUMBERS: dict[str, Leaf] = {
    "cost_usd": TOTAL_COST,
    "calls": CALLS,
    "tokens": metric_leaf("total_tokens"),
    "tokens_per_call": TOKENS_PER_CALL,
    "usd_per_million_tokens": TOKEN_PRICE,
}

#: The same of a model; its cost is that of its calls, as in the parts.
_OF_MODEL: dict[str, Leaf] = {"cost_usd": CALL_COST, "calls": CALLS, "tokens": metric_leaf("total_tokens")}


async def answer_explain(source: Source, question: MetricsQuery) -> Response:
    """
    Return the answer.

    Raises:
        Rejected: The request compares nothing, or groups.
    """
    if question.before is None:
        raise Rejected("compare: is missing; compare_from and compare_to, or compare.<filter>, are possible too")
    if question.groupby:
        raise Rejected("groupby: an explanation is by model")
    sides = await ask_sides(source, question, Needs(by_model=True), Order(None))
    assert sides.before is not None
    now, before = sides.now.total, sides.earlier_total
    models = sides.now.models, sides.before.models
    split = None
    if before is not None and TOTAL_COST.change(now, before)["absolute"] is not None:
        split = split_change(now, before, *models)
    shown: dict[str, Any] = {"window": question.window, **_side(sides.now), **coverage(sides.now)}
    shown["previous"] = previous(_side(sides.before), sides.before)
    shown["change"] = {key: leaf.change(now, before) for key, leaf in _NUMBERS.items()}
    shown["parts"] = (
        None if split is None else [{"part": name, "usd": nusd_to_usd(nusd)} for name, nusd in split.parts.items()]
    )
    shown["by_model"] = {name: _model(sides, name, split) for name in sorted({*models[0], *models[1]})}
    return reply(shown)


def _side(answered: Answer) -> dict[str, Any]:
    figures = answered.total
    shown: dict[str, Any] = {key: rendered(leaf.value(figures)) for key, leaf in _NUMBERS.items()}
    return shown | not_priced(figures).render()


def _model(sides: Sides, name: str, split: Split | None) -> dict[str, Any]:
    """Return the changes of one model, and what it adds to the mix and to the price."""
    assert sides.before is not None
    now, before = sides.now.models.get(name, Aggregates()), sides.known(sides.before.models.get(name))
    mix, price = (None, None) if split is None else split.by_model.get(name, (0, 0))
    return {
        **{key: leaf.change(now, before) for key, leaf in _OF_MODEL.items()},
        "mix_usd": None if mix is None else nusd_to_usd(mix),
        "price_usd": None if price is None else nusd_to_usd(price),
    }
