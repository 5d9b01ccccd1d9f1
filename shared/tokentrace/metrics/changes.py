"""
Differences between the numbers of two groups of spans, such as those of an hour and of the hour before.

Numbers are subtracted as fractions, before they are rounded for the answer, so a difference of costs is exact to the
nano-dollar. A quantile is a rounded number already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from tokentrace.metrics import cost, errors, tokens
from tokentrace.metrics.custom import CustomMetric
from tokentrace.metrics.registry import GROUPS, METRICS, Metric, Number
from tokentrace.metrics.result import Aggregates, CustomValue
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE


class Leaf(NamedTuple):
    """
    A number that can be compared.

    Attributes:
        value: Aggregates -> the number in its documented unit; None without data.
        nothing: Aggregates -> whether there are no spans that could contribute; the number then counts as 0 beside one
            with data. None = it is no sum, so that it has no value without spans.
    """

    value: Callable[[Aggregates], Fraction | None]
    nothing: Callable[[Aggregates], bool] | None = None

    def change(self, now: Aggregates, before: Aggregates | None) -> dict[str, float | int | None]:
        """Return the change from *before* to *now*, see ``change``; None = nothing is known of before."""
        if before is None:
            return change(None, None)
        after, earlier = self.value(now), self.value(before)
        if self.nothing is not None:
            if after is None and earlier is not None and self.nothing(now):
                after = Fraction(0)
            if earlier is None and after is not None and self.nothing(before):
                earlier = Fraction(0)
        return change(after, earlier)

    def size(self, now: Aggregates, before: Aggregates | None) -> Number:
        """Return the absolute change without its sign; None without data on a side."""
        absolute = self.change(now, before)["absolute"]
        return None if absolute is None else abs(absolute)


def rendered(value: Fraction | None) -> Number:
    """Return *value* as answers show it."""
    return None if value is None else _number(value)


def change(now: Fraction | None, before: Fraction | None) -> dict[str, float | int | None]:
    """
    Return the change from *before* to *now*: ``absolute``, and ``ratio`` to the size of *before*.

    Both are None without data on a side. From 0 there is no ratio, unless nothing changed.
    """
    if now is None or before is None:
        return {"absolute": None, "ratio": None}
    absolute = now - before
    ratio = absolute / abs(before) if before else None if absolute else Fraction(0)
    return {"absolute": _number(absolute), "ratio": None if ratio is None else _number(ratio)}


def _number(value: Fraction) -> float | int:
    return int(value) if value.denominator == 1 else float(value)


def as_fraction(value: Number) -> Fraction | None:
    """Return *value*, a number of an answer, as a fraction."""
    return None if value is None else Fraction(value)


def _share(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole > 0 else None


def _total_cost(aggregates: Aggregates) -> Fraction | None:
    known = aggregates.paid - aggregates.sums.unpriced
    return Fraction(aggregates.sums.cost, NUSD_PER_USD) if known > 0 else None


def _count(read: Callable[[Aggregates], int]) -> Leaf:
    return Leaf(lambda aggregates: Fraction(read(aggregates)))


def _mean(total: Callable[[Aggregates], int], count: Callable[[Aggregates], int], unit: int) -> Leaf:
    return Leaf(lambda aggregates: _share(total(aggregates), count(aggregates) * unit))


def _tokens(read: Callable[[Aggregates], int]) -> Leaf:
    return Leaf(
        lambda aggregates: Fraction(read(aggregates)) if aggregates.calls.spans else None,
        lambda aggregates: not aggregates.calls.spans,
    )


def _token_sum(name: str) -> Leaf:
    return _tokens(lambda aggregates: int(getattr(aggregates.sums, name)))


#: A cost is 0 without spans, but unknown if no span has a known cost.
TOTAL_COST = Leaf(_total_cost, lambda aggregates: not aggregates.paid)
COST_PER_CALL = _mean(lambda aggregates: aggregates.calls.cost, cost.priced_calls, NUSD_PER_USD)
SPANS = _count(lambda aggregates: aggregates.sums.spans)
PAID = _count(lambda aggregates: aggregates.paid)
CALLS = _count(lambda aggregates: aggregates.calls.spans)
TOKENS_PER_CALL = _mean(lambda aggregates: aggregates.sums.total, lambda aggregates: aggregates.calls.spans, 1)
#: US dollars for a million tokens, of the queried kind.
TOKEN_PRICE = Leaf(
    lambda aggregates: (
        _share(aggregates.calls.cost * 10**6, aggregates.sums.total * NUSD_PER_USD)
        if cost.priced_calls(aggregates)
        else None
    )
)
#: The cost of the queried kind alone.
CALL_COST = Leaf(
    lambda aggregates: Fraction(aggregates.calls.cost, NUSD_PER_USD) if cost.priced_calls(aggregates) else None,
    lambda aggregates: not aggregates.calls.spans,
)
_ERROR_COUNT, _TIMEOUT_COUNT = _count(errors.error_count), _count(lambda aggregates: aggregates.sums.timeouts)
_ERROR_RATE = _mean(errors.error_count, lambda aggregates: aggregates.sums.spans, 1)
_TIMEOUT_RATE = _mean(lambda aggregates: aggregates.sums.timeouts, lambda aggregates: aggregates.sums.spans, 1)
_LATENCY_AVG = _mean(lambda aggregates: aggregates.sums.latency, lambda aggregates: aggregates.sums.latency_n, MS)
_SCORE_AVG = _mean(lambda aggregates: aggregates.sums.score, lambda aggregates: aggregates.sums.score_n, SCORE_ONE)
_UNPRICED = _count(lambda aggregates: aggregates.sums.unpriced)
_PARTLY_PRICED = _count(lambda aggregates: aggregates.sums.partly_priced)
_EXACT: Mapping[str, Leaf] = {
    "total_cost": TOTAL_COST,
    "cost_per_call": COST_PER_CALL,
    "unpriced_span_count": _UNPRICED,
    "partly_priced_span_count": _PARTLY_PRICED,
    "prompt_tokens": _token_sum("prompt"),
    "completion_tokens": _token_sum("completion"),
    "total_tokens": _token_sum("total"),
    "latency_avg": _LATENCY_AVG,
    "error_rate": _ERROR_RATE,
    "error_count": _ERROR_COUNT,
    "timeout_rate": _TIMEOUT_RATE,
    "timeout_count": _TIMEOUT_COUNT,
    "span_count": SPANS,
    "quality_score": _SCORE_AVG,
}
#: Group -> key in its JSON object -> number; keys that are missing are rounded numbers.
_IN_GROUPS: Mapping[str, Mapping[str, Leaf]] = {
    "cost": {
        "total_usd": TOTAL_COST,
        "per_call_usd": COST_PER_CALL,
        "unpriced_span_count": _UNPRICED,
        "partly_priced_span_count": _PARTLY_PRICED,
        "span_count": PAID,
        "per_call_span_count": _count(cost.priced_calls),
    },
    "tokens": {
        "prompt_total": _token_sum("prompt"),
        "completion_total": _token_sum("completion"),
        "unclassified_total": _tokens(lambda aggregates: tokens.unclassified(aggregates.sums)),
        "total": _token_sum("total"),
        "cache_read_total": _token_sum("cache_read"),
        "cache_write_total": _token_sum("cache_write"),
        "cache_write_1h_total": _token_sum("cache_write_1h"),
        "reasoning_total": _token_sum("reasoning"),
    },
    "latency": {"avg_ms": _LATENCY_AVG},
    "errors": {
        "rate": _ERROR_RATE,
        "count": _ERROR_COUNT,
        "timeout_rate": _TIMEOUT_RATE,
        "timeout_count": _TIMEOUT_COUNT,
    },
    "quality": {"score_avg": _SCORE_AVG},
}


def contributing_leaf(contributing: Callable[[Aggregates], int]) -> Leaf:
    """Return the number of spans that contribute to a metric, for comparisons."""
    return _count(contributing)


def leaf_of(name: str, metric: Metric, custom: CustomMetric | None = None) -> Leaf:
    """
    Return the number of a metric for comparisons.

    Args:
        name: Its canonical name.
        custom: The metric, if it is a custom one.
    """
    if custom is not None:
        return custom_leaf(custom)
    return _EXACT.get(name) or Leaf(lambda aggregates: as_fraction(metric.value(aggregates)))


def custom_leaf(metric: CustomMetric) -> Leaf:
    """Return the number of a custom metric for comparisons."""

    def measured(aggregates: Aggregates) -> CustomValue:
        return aggregates.custom.get(metric.name) or CustomValue()

    def value(aggregates: Aggregates) -> Fraction | None:
        held = measured(aggregates)
        if metric.type == "sum":
            return Fraction(held.total, metric.divisor) if held.size > 0 else None
        if metric.type == "avg":
            return _share(held.total, held.size * metric.divisor)
        return as_fraction(metric.value(held))

    def nothing(aggregates: Aggregates) -> bool:
        held = measured(aggregates)
        return held.size <= 0 and not held.unpriced

    return Leaf(value, nothing if metric.type == "sum" else None)


#: Group -> the metric by which its values are ordered.
LEADING: Mapping[str, str] = {
    "cost": "total_cost",
    "tokens": "total_tokens",
    "latency": "latency_p95",
    "errors": "error_count",
    "quality": "quality_score",
}


def group_changes(name: str, now: Aggregates, before: Aggregates | None) -> dict[str, Any]:
    """Return key -> change for all numbers of the group *name* of metrics."""
    exact, group = _IN_GROUPS[name], GROUPS[name]
    after, earlier = group.render(now), group.render(before or Aggregates())
    return {
        key: exact[key].change(now, before)
        if key in exact
        else change(as_fraction(after[key]), None if before is None else as_fraction(earlier[key]))
        for key in after
    }


def breakdown_change(name: str, now: Aggregates, before: Aggregates | None) -> dict[str, Any]:
    """Return the change of one value of a breakdown, or key -> change if its values are objects."""
    if name == "tokens_by_model":
        return {key: _token_sum(key).change(now, before) for key in ("prompt", "completion", "total")}
    if name == "latency_by_model":
        return {f"p{q}_ms": metric_leaf(f"latency_p{q}").change(now, before) for q in (50, 95, 99)}
    return breakdown_leaf(name).change(now, before)


def breakdown_leaf(name: str) -> Leaf:
    """Return the number by which the values of a breakdown are ordered."""
    return metric_leaf(LEADING[name.partition("_by_")[0]])


def metric_leaf(name: str) -> Leaf:
    """Return the number of the built-in metric *name* for comparisons."""
    return leaf_of(name, METRICS[name])
