"""The names that ``GET /metrics/{name}`` knows, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokentrace.metric import cost, latency, outcome, quality, tokens
from tokentrace.metric.query import Figures

GROUPABLE = ("model", "caller", "provider", "name", "status", "kind")


class Group(NamedTuple):
    """
    A group of numbers that is shown together.

    Attributes:
        fields: Distributions it needs, of ``cell.FIELDS``.
        render: The numbers as JSON.
    """

    fields: tuple[str, ...]
    render: Callable[[Figures], dict[str, Any]]


def _cost(figures: Figures) -> dict[str, Any]:
    return cost.render_cost(figures, None)


GROUPS: Mapping[str, Group] = {
    "cost": Group((), _cost),
    "tokens": Group((), tokens.render_tokens),
    "latency": Group(latency.FIELDS, latency.render_latency),
    "errors": Group((), outcome.render_errors),
    "quality": Group(quality.FIELDS, quality.render_quality),
}
