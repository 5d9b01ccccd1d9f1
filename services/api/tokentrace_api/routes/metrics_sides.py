"""The two sides of a comparison and the order of groups: what all answers about metrics do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace.metrics import (
    ALIASES,
    METRICS,
    Aggregates,
    Answer,
    CustomMetric,
    Leaf,
    Query,
    custom_leaf,
    merge_aggregates,
    metric_leaf,
)
from tokentrace.metrics.cost import NotPriced, render_not_priced
from tokentrace.units import SECOND
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.metrics_query import answer
from tokentrace_api.routes.metrics_shown import coverage, largest_error
from tokentrace_api.routes.metrics_source import Source

#: Word of ``order`` -> metric.
_ORDERS: Mapping[str, str] = {
    "cost": "total_cost",
    "spans": "span_count",
    "errors": "error_count",
    "error_rate": "error_rate",
    "timeouts": "timeout_count",
    "tokens": "total_tokens",
    "p50": "latency_p50",
    "p95": "latency_p95",
    "p99": "latency_p99",
    "avg": "latency_avg",
    "ttft": "ttft_p95",
    "quality": "quality_score",
}


class Form(NamedTuple):
    """
    How the numbers of a group of spans are shown and compared.

    Attributes:
        value: Aggregates -> what is shown.
        change: Aggregates of both sides -> the change of each number in it; None = nothing is known of the other side.
        leaf: The number by which groups are ordered unless the client names another.
        lists: Aggregates -> whether the group is shown.
        not_priced: As for ``Metric``.
    """

    value: Callable[[Aggregates], Any]
    change: Callable[[Aggregates, Aggregates | None], Any]
    leaf: Leaf
    lists: Callable[[Aggregates], bool] = lambda _: True
    not_priced: Callable[[Aggregates], NotPriced] | None = None


class Needs(NamedTuple):
    """
    What is computed of the spans.

    Attributes:
        fields, by_model, custom, from_store: As for ``metrics_query.answer``.
    """

    fields: Sequence[str] = ()
    by_model: bool = False
    custom: Sequence[CustomMetric] = ()
    from_store: bool = False


class Order(NamedTuple):
    """
    By what groups are ordered.

    Attributes:
        leaf: The number; None = by name.
        is_change: True = by the size of its change.
        needs: What its number is computed from.
    """

    leaf: Leaf | None
    is_change: bool = False
    needs: Needs = Needs()


class Sides(NamedTuple):
    """Both sides of a comparison; *before* is None if nothing is compared."""

    now: Answer
    before: Answer | None

    def known(self, aggregates: Aggregates | None) -> Aggregates | None:
        """Return what the other side has of a group, empty if it has nothing; None if nothing is known of that time."""
        before = self.before
        # Spans that arrived later than they ended may be known although the time is before ``since``.
        if before is None or (before.since_ns >= before.to_s * SECOND and not before.total.shows_any):
            return None
        return aggregates or Aggregates()

    @property
    def earlier_total(self) -> Aggregates | None:
        """The other side's aggregates of all spans; None if nothing is known of that time."""
        return None if self.before is None else self.known(self.before.total)


class Parts(NamedTuple):
    """
    The groups of both sides.

    Attributes:
        names: The groups that are shown, in order.
        rest: The groups that are added up as ``other``.
        is_ranked: Whether the client asked for an order.
        is_cut: Whether the client asked for the first groups only.
    """

    names: list[str]
    rest: list[str]
    is_ranked: bool
    is_cut: bool


async def ask_sides(source: Source, question: MetricsQuery, needs: Needs, order: Order) -> Sides:
    """
    Return the answers for both sides of *question*.

    Raises:
        Unavailable: As for ``metrics_query.answer``.
    """
    fields = sorted({*needs.fields, *order.needs.fields})
    custom = list({metric.name: metric for metric in (*needs.custom, *order.needs.custom)}.values())

    async def ask(side: MetricsQuery) -> Answer:
        return await answer(
            source.aggregators,
            source.store,
            side,
            fields,
            by_model=needs.by_model,
            custom=custom,
            from_store=needs.from_store,
        )

    if question.before is None:
        return Sides(await ask(question), None)
    return Sides(*await asyncio.gather(ask(question), ask(question.before)))


async def ask_reporters(source: Source, question: MetricsQuery) -> Answer:
    """Return an answer of the aggregators whose ``transport`` is what reporters sent; it is about no interval."""
    now_s = question.query.now_s
    return await source.aggregators.query(Query(from_s=now_s, to_s=now_s + 1, now_s=now_s))


def find_order(source: Source, question: MetricsQuery, form: Form) -> Order:
    """
    Return by what the groups of *question* are ordered.

    Raises:
        Rejected: The answer has no groups, or no number has the name that the client gave.
    """
    word = question.order
    if question.is_ranked and not question.groupby:
        raise Rejected(f"{'top' if question.top else 'order'}: needs groupby")
    if word == "name" or not question.is_ranked:
        return Order(None)
    if word in ("", "value", "change"):
        return Order(form.leaf, word == "change")
    if word in source.custom:
        custom = source.custom[word]
        return Order(custom_leaf(custom), needs=Needs(custom=[custom]))
    name = _ORDERS.get(word, ALIASES.get(word, word))
    if name not in METRICS:
        known = ", ".join(["value", "change", "name", *_ORDERS, *METRICS, *source.custom])
        raise Rejected(f"order: {quoted(word)} is none of {known}")
    return Order(metric_leaf(name), needs=Needs(fields=METRICS[name].fields))


def part(question: MetricsQuery, form: Form, order: Order, sides: Sides) -> Parts:
    """Return which groups of both sides are shown, in which order."""
    now, before = sides.now.groups, sides.before.groups if sides.before is not None else {}
    listed = {name for groups in (now, before) for name, figures in groups.items() if form.lists(figures)}
    names = sorted(listed)
    leaf = order.leaf
    if leaf is not None:
        empty = Aggregates()

        def number(name: str) -> Any:
            figures = now.get(name, empty)
            return leaf.size(figures, sides.known(before.get(name))) if order.is_change else leaf.value(figures)

        numbers = {name: number(name) for name in names}
        # Sorting is stable, so equal ones stay in the order of their names.
        names.sort(key=lambda name: (numbers[name] is None, -(numbers[name] or 0)))
    cut = question.top or len(names)
    return Parts(names[:cut], names[cut:], question.is_ranked, bool(question.top))


def merged(groups: Mapping[str, Aggregates], names: Iterable[str]) -> Aggregates:
    """Return the aggregates of the groups *names* together."""
    return merge_aggregates(groups[name] for name in names if name in groups)


def show_groups(key: str, form: Form, parts: Parts, groups: Mapping[str, Aggregates]) -> dict[str, Any]:
    """
    Return the groups of one side: ``by_<key>``, for money ``unpriced_by_<key>``, and with ``top`` what is left out.

    Args:
        groups: All groups of the side.
    """
    own = {name: groups[name] for name in parts.names if name in groups and form.lists(groups[name])}
    shown: dict[str, Any] = {f"by_{key}": {name: form.value(figures) for name, figures in own.items()}}
    if form.not_priced is not None:
        left_out = {name: form.not_priced(figures) for name, figures in own.items()}
        shown[f"unpriced_by_{key}"] = render_not_priced(left_out)
    if parts.is_cut:
        rest = [name for name in parts.rest if name in groups and form.lists(groups[name])]
        shown["other"] = None
        if rest:
            figures = merged(groups, rest)
            money = form.not_priced(figures).render() if form.not_priced else {}
            shown["other"] = {"groups": len(rest), "value": form.value(figures), **money}
    return shown


def change_groups(key: str, form: Form, parts: Parts, sides: Sides) -> dict[str, Any]:
    """Return the change of each group that is shown, and with ``top`` of the others together."""
    assert sides.before is not None
    now, before = sides.now.groups, sides.before.groups
    empty = Aggregates()
    shown: dict[str, Any] = {
        f"by_{key}": {name: form.change(now.get(name, empty), sides.known(before.get(name))) for name in parts.names}
    }
    if parts.is_cut:
        shown["other"] = (
            form.change(merged(now, parts.rest), sides.known(merged(before, parts.rest))) if parts.rest else None
        )
    return shown


def error_of(answered: Answer, parts: Parts | None, needs: Needs) -> float:
    """Return ``largest_error`` of an answer, with the groups that are added up."""
    others = [merged(answered.groups, parts.rest)] if parts is not None and parts.rest else []
    return largest_error(answered, needs.fields, needs.custom, others)


def previous(shown: Mapping[str, Any], before: Answer) -> dict[str, Any]:
    """Return the numbers of the other side with its coverage."""
    return {**shown, **coverage(before)}
