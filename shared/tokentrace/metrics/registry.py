"""All built-in metrics by name, for ``GET /metrics/{name}`` and for rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokentrace.metrics import cost, errors, latency, quality, tokens
from tokentrace.metrics.result import Aggregates

Number = float | int | None


class Group(NamedTuple):
    """
    Metrics that ``GET /metrics`` shows together.

    Attributes:
        fields: Names of the distributions that the metrics need, from ``rollup.FIELDS``.
        render: Aggregates -> the JSON object of the metrics.
        contributing: Aggregates -> number of spans from which the metrics were computed; for ``quality``, of those that
            could have a score.
    """

    fields: tuple[str, ...]
    render: Callable[[Aggregates], dict[str, Any]]
    contributing: Callable[[Aggregates], int]


class Metric(NamedTuple):
    """
    A metric that is a number.

    Attributes:
        fields: Names of the distributions that the metric needs, from ``rollup.FIELDS``.
        value: Aggregates -> the metric in its documented unit; None without data.
        contributing: Aggregates -> number of spans from which the metric was computed.
        not_priced: Aggregates -> what the metric leaves out because its cost is not known; None = it is no money.
    """

    fields: tuple[str, ...]
    value: Callable[[Aggregates], Number]
    contributing: Callable[[Aggregates], int]
    not_priced: Callable[[Aggregates], cost.NotPriced] | None = None


def _cost(aggregates: Aggregates) -> dict[str, Any]:
    return cost.render_cost(aggregates, None)


class Breakdown(NamedTuple):
    """
    A metric that is a map from the values of a dimension or attribute to numbers, or to objects with numbers.

    Attributes:
        dimension: The dimension; "" = the attribute that the request names.
        fields: Names of the distributions that the metric needs, from ``rollup.FIELDS``.
        value: Aggregates of the spans with one value -> the number or object; None = there is none.
        contributing: Aggregates -> number of spans from which the value was computed; 0 = it is not listed.
        not_priced: As for ``Metric``.
    """

    dimension: str
    fields: tuple[str, ...]
    value: Callable[[Aggregates], Any]
    contributing: Callable[[Aggregates], int]
    not_priced: Callable[[Aggregates], cost.NotPriced] | None = None


def _spans(aggregates: Aggregates) -> int:
    return aggregates.sums.spans


def _paid(aggregates: Aggregates) -> int:
    return aggregates.paid


def _spent(aggregates: Aggregates) -> int:
    return aggregates.calls.spans


def _timed(aggregates: Aggregates) -> int:
    return aggregates.sums.latency_n


def _streamed(aggregates: Aggregates) -> int:
    return aggregates.sums.ttft_n


def _ms(field: str, q: float, contributing: Callable[[Aggregates], int]) -> Metric:
    return Metric((field,), lambda aggregates: latency.quantile_ms(aggregates, field, q), contributing)


def _tokens(field: str, q: float) -> Metric:
    return Metric(
        (field,),
        lambda aggregates: tokens.token_quantile(aggregates, field, q),
        lambda aggregates: aggregates.summary(field).count,
    )


def _token_sum(name: str) -> Metric:
    return Metric((), lambda aggregates: getattr(aggregates.sums, name) if aggregates.calls.spans else None, _spent)


def _count(name: str) -> Metric:
    # A count of nothing is 0; a sum of nothing is no number.
    return Metric((), lambda aggregates: getattr(aggregates.sums, name), _spans)


GROUPS: Mapping[str, Group] = {
    "cost": Group((), _cost, _paid),
    "tokens": Group(tokens.FIELDS, tokens.render_tokens, _spent),
    "latency": Group(latency.FIELDS, latency.render_latency, _spans),
    "errors": Group((), errors.render_errors, _spans),
    "quality": Group(quality.FIELDS, quality.render_quality, _spans),
}

METRICS: Mapping[str, Metric] = {
    "total_cost": Metric((), cost.total_cost, _paid, cost.not_priced),
    "cost_per_call": Metric((), cost.cost_per_call, cost.priced_calls, cost.calls_not_priced),
    "unpriced_span_count": Metric((), lambda aggregates: aggregates.sums.unpriced, _paid),
    "partly_priced_span_count": Metric((), lambda aggregates: aggregates.sums.partly_priced, _paid),
    "prompt_tokens": _token_sum("prompt"),
    "completion_tokens": _token_sum("completion"),
    "total_tokens": _token_sum("total"),
    "prompt_token_p50": _tokens("prompt", 0.50),
    "prompt_token_p95": _tokens("prompt", 0.95),
    "completion_token_p50": _tokens("completion", 0.50),
    "completion_token_p95": _tokens("completion", 0.95),
    "latency_p50": _ms("latency", 0.50, _timed),
    "latency_p95": _ms("latency", 0.95, _timed),
    "latency_p99": _ms("latency", 0.99, _timed),
    "latency_avg": Metric((), latency.average_ms, _timed),
    "ttft_p50": _ms("ttft", 0.50, _streamed),
    "ttft_p95": _ms("ttft", 0.95, _streamed),
    "error_rate": Metric((), errors.error_rate, _spans),
    "error_count": Metric((), errors.error_count, _spans),
    "timeout_rate": Metric((), errors.timeout_rate, _spans),
    "timeout_count": _count("timeouts"),
    "span_count": _count("spans"),
    "quality_score": Metric((), quality.score_avg, quality.scored),
    "quality_p10": Metric(("score",), lambda aggregates: quality.score_quantile(aggregates, 0.10), quality.scored),
    "quality_p50": Metric(("score",), lambda aggregates: quality.score_quantile(aggregates, 0.50), quality.scored),
}

#: Names of the metrics of scores; late scores can change them.
QUALITY = frozenset({"quality_score", "quality_p10", "quality_p50"})

BREAKDOWNS: Mapping[str, Breakdown] = {
    "cost_by_model": Breakdown("model", (), cost.total_cost, _paid, cost.not_priced),
    "cost_by_caller": Breakdown("caller", (), cost.total_cost, _paid, cost.not_priced),
    "cost_by_provider": Breakdown("provider", (), cost.total_cost, _paid, cost.not_priced),
    "cost_by_attribute": Breakdown("", (), cost.total_cost, _paid, cost.not_priced),
    "tokens_by_model": Breakdown("model", (), tokens.render_split, _spent),
    "latency_by_model": Breakdown("model", ("latency",), latency.render_split, _timed),
    "quality_by_model": Breakdown("model", (), quality.score_avg, quality.scored),
    "quality_by_attribute": Breakdown("", (), quality.score_avg, quality.scored),
}

#: Name of the metric of refused spans, which the api counts.
REJECTED_METRIC = "rejected_spans"
#: Further names that a custom metric must not have: other keys in the response of ``GET /metrics``, and paths below it.
RESERVED = (
    "window",
    "from",
    "to",
    "since",
    "span_count",
    "quantile_error",
    "incomplete",
    "missing_shards",
    "transport",
    "rejected",
    REJECTED_METRIC,
    "alerts",
    "prometheus",
    "unpriced_custom",
    "previous",
    "change",
    "order",
    "other",
    "evals",
    "explain",
    "series",
)
#: Name of a metric of reporters -> attribute of ``ReporterTotals``, and key in the response of ``GET /metrics``.
TRANSPORT_METRICS: Mapping[str, str] = {
    "transport_sent": "sent",
    "transport_failed": "failed",
    "transport_dropped": "dropped",
    "transport_queue_depth": "queue_depth",
}
#: Name of a metric of alerts -> attribute of the api's alert history, a map from rule to number.
ALERT_METRICS: Mapping[str, str] = {"alert_firings": "firings", "alert_delivery_failed": "delivery_failed"}
#: Alias of a metric -> name of the metric.
ALIASES: Mapping[str, str] = {
    "total_cost_usd": "total_cost",
    "cost_hourly": "total_cost",
    "latency_p50_ms": "latency_p50",
    "latency_p95_ms": "latency_p95",
    "latency_p99_ms": "latency_p99",
    "total_spans": "span_count",
    "total_tokens_in": "prompt_tokens",
    "total_tokens_out": "completion_tokens",
    "quality": "quality_score",
}


def find_metric(name: str) -> tuple[str, Metric] | None:
    """Return (name, metric) for a name or alias; None if there is no such metric."""
    canonical = ALIASES.get(name, name)
    metric = METRICS.get(canonical)
    return None if metric is None else (canonical, metric)
