"""The part of the OpenAPI document that describes ``GET /metrics`` and the paths below it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.service.contract import Answer, operation
from tokentrace_api.routes.answers import Incomplete, InstantText, Milliseconds, Natural


class Coverage(Incomplete, kw_only=True):
    """
    The fields that say what the numbers cover.

    Attributes:
        window: The window of the request; null if the request has `from`.
        from_, to: The exact interval: from <= ended_at < to.
        since: Spans before this instant may be missing from the numbers; null = none are.
        folded: Dimensions with too many values, of which some are shown together as `other`: only the values shown by
            name are complete. Absent if every value is shown by name.
    """

    from_: InstantText = msgspec.field(name="from")
    to: InstantText
    since: InstantText | None
    folded: list[str] | UnsetType = UNSET


class Change(msgspec.Struct):
    """
    The change of a number from the other side of a comparison.

    Attributes:
        absolute: The difference, in the unit of the number; null if a side has no data. A sum over no spans is 0.
        ratio: The difference divided by the size of the earlier number; null if that is 0 and the number is new.
    """

    absolute: float | None
    ratio: float | None


class NumberChange(msgspec.Struct):
    """The change of one number and of the spans that contribute; with ``groupby`` also of each group, by value."""

    value: Change
    span_count: Change


class OtherGroups(msgspec.Struct, kw_only=True):
    """
    The groups that ``top`` leaves out, added up.

    Attributes:
        groups: Number of these groups.
        value: The same as is shown for a group.
        points: In a series, their points instead of a value.
    """

    groups: Natural
    value: Any = UNSET
    points: list[dict[str, Any]] | UnsetType = UNSET
    unpriced_span_count: Natural | UnsetType = UNSET
    partly_priced_span_count: Natural | UnsetType = UNSET


class Compared(Coverage, kw_only=True):
    """
    What the parameters ``compare…``, ``top`` and ``order`` add to an answer.

    Attributes:
        order: The groups that are shown, in the order that was asked for, because a JSON object has none.
        other: The groups that `top` leaves out; null if there are none.
        previous: The other side of the comparison: its numbers under the same keys, and what it covers.
        change: Under the same keys, the change of each number: absolute and ratio, as in `Change`.
    """

    order: list[str] | UnsetType = UNSET
    other: OtherGroups | UnsetType | None = UNSET
    previous: dict[str, Any] | UnsetType = UNSET
    change: dict[str, Any] | UnsetType = UNSET


class UnpricedCounts(msgspec.Struct):
    """How many spans have an unknown cost, which a sum leaves out, and how many have a cost that lacks a part."""

    unpriced_span_count: Natural
    partly_priced_span_count: Natural


class CostMetrics(msgspec.Struct, kw_only=True):
    """
    Cost in US dollars, without spans of roll-up kinds.

    Attributes:
        total_usd: Sum of the known costs; null if no cost is known.
        per_call_usd: Mean cost of the spans of the queried kind that have a known cost; null without these.
        by_model: Model -> sum of its known costs, null if none is known; absent for groups of spans.
        unpriced_by_model: Model -> spans whose cost is unknown or lacks a part; absent for groups of spans.
        unpriced_span_count: Spans that `total_usd` leaves out because their cost is unknown.
        partly_priced_span_count: Spans whose cost lacks a part, so that `total_usd` is a lower bound.
        span_count: Spans that count for `total_usd`, those of unknown cost included.
        per_call_span_count: Spans that `per_call_usd` covers.
    """

    total_usd: float | None
    per_call_usd: float | None
    by_model: dict[str, float | None] | UnsetType = UNSET
    unpriced_by_model: dict[str, UnpricedCounts] | UnsetType = UNSET
    unpriced_span_count: Natural
    partly_priced_span_count: Natural
    span_count: Natural
    per_call_span_count: Natural


class TokenMetrics(msgspec.Struct):
    """
    Sums of tokens without roll-up kinds, and quantiles of the tokens of a span; null without spans.

    Attributes:
        unclassified_total: Tokens of spans of which only the total is known; the quantiles leave these spans out.
    """

    prompt_total: int | None
    completion_total: int | None
    unclassified_total: int | None
    total: int | None
    cache_read_total: int | None
    cache_write_total: int | None
    cache_write_1h_total: int | None
    reasoning_total: int | None
    prompt_p50: float | None
    prompt_p95: float | None
    completion_p50: float | None
    completion_p95: float | None


class LatencyMetrics(msgspec.Struct):
    """Latency and time to the first token, milliseconds; null without values. Spans without a value are left out."""

    p50_ms: Milliseconds | None
    p95_ms: Milliseconds | None
    p99_ms: Milliseconds | None
    avg_ms: Milliseconds | None
    ttft_p50_ms: Milliseconds | None
    ttft_p95_ms: Milliseconds | None


class ErrorMetrics(msgspec.Struct):
    """
    Counts and rates of errors; a rate is a fraction of all spans, null without spans.

    Attributes:
        rate, count: Spans with status error or timeout.
        timeout_rate, timeout_count: Spans with status timeout.
    """

    rate: float | None
    count: int
    timeout_rate: float | None
    timeout_count: int


class QualityMetrics(msgspec.Struct):
    """``eval.score`` of scored spans, 0 to 1; null if no span is scored."""

    score_avg: float | None
    score_p10: float | None
    score_p50: float | None
    scored_span_count: Natural


class TransportCounts(msgspec.Struct):
    """
    Numbers of spans of all reporters, since the stream began.

    Attributes:
        sent: Spans that arrived.
        failed: Spans that were refused for good.
        dropped: Spans that a reporter discarded because its queue was full.
        queue_depth: Spans that wait in reporters now.
    """

    sent: int
    failed: int
    dropped: int
    queue_depth: int


class RejectedSpans(msgspec.Struct):
    """How many spans were refused since the first one; `by_reason`: reason -> number, as in `GET /rejected`."""

    spans: Natural
    by_reason: dict[str, Natural]


class SavedFromDoubleCount(msgspec.Struct):
    """
    What OTLP requests told twice since the beginning, and no sum contains.

    Attributes:
        calls: Number of second tellings.
        nusd: What they would have cost, as far as that is known, nano-dollars.
    """

    calls: Natural
    nusd: Natural


class AlertCounts(msgspec.Struct):
    """Rule -> number of its firings, and of its events that could not be delivered."""

    firings: dict[str, int]
    delivery_failed: dict[str, int]


class MetricsOverview(Compared, kw_only=True):
    """
    All groups of metrics, and the custom metrics under their names. If there are custom metrics of costs,
    ``unpriced_custom`` names those that leave something out. With ``groupby`` there is
    ``by_<dimension or attribute>``: value -> the groups and custom metrics of the spans with this value.

    Attributes:
        quantile_error: Upper bound of the relative error of the quantiles in the answer; 0 = exact.
        unpriced_custom: Custom metric of costs -> what it leaves out.
    """

    window: str | None
    span_count: Natural
    cost: CostMetrics
    tokens: TokenMetrics
    latency: LatencyMetrics
    errors: ErrorMetrics
    quality: QualityMetrics
    quantile_error: float
    transport: TransportCounts
    rejected: RejectedSpans
    saved_from_double_count: SavedFromDoubleCount
    alerts: AlertCounts
    unpriced_custom: dict[str, UnpricedCounts] | UnsetType = UNSET


class Exemplar(msgspec.Struct, kw_only=True):
    """One of the spans with the highest values; it has only the one of the three numbers that was requested."""

    trace_id: str
    span_id: str
    name: str
    started_at: InstantText
    cost_usd: float | UnsetType = UNSET
    latency_ms: Milliseconds | UnsetType = UNSET
    ttft_ms: Milliseconds | UnsetType = UNSET


class GroupAnswer(Compared, kw_only=True):
    """
    The numbers of one group of metrics, as in ``MetricsOverview``. With ``groupby`` there is
    ``by_<dimension or attribute>``: value -> the numbers (for ``cost``, only the total in US dollars, and
    ``unpriced_by_<dimension or attribute>`` beside it), and the numbers of all spans together are left out, except for
    ``cost``.
    """

    window: str | None
    span_count: Natural
    quantile_error: float | UnsetType = UNSET
    exemplars: list[Exemplar] | UnsetType = UNSET


class NumberAnswer(GroupAnswer, kw_only=True):
    """
    One number; with ``groupby`` there is ``by_<dimension or attribute>``: value -> the number. A number of money also
    has ``unpriced_by_<dimension or attribute>``: value -> what its number leaves out, for the values that leave
    something out.

    Attributes:
        value: The number in its documented unit. It is null without data, and if it is money and no cost is known; a
            count of spans is 0 without data.
        span_count: Number of spans that contributed.
        unpriced_span_count: Spans that a number of money leaves out because their cost is unknown.
        partly_priced_span_count: Spans of a number of money whose cost lacks a part.
        per_call_span_count: For ``cost_per_call``: the spans over which it is the mean, which have a known cost.
    """

    metric: str
    value: float | None
    change: NumberChange | UnsetType = UNSET  # type: ignore[assignment]  # the same object, described more closely
    unpriced_span_count: Natural | UnsetType = UNSET
    partly_priced_span_count: Natural | UnsetType = UNSET
    per_call_span_count: Natural | UnsetType = UNSET


class BreakdownAnswer(Compared, kw_only=True):
    """
    Numbers for the values of a dimension or an attribute; ``by_<dimension or attribute>`` repeats ``value``. Costs also
    have ``unpriced_by_<dimension or attribute>``: value -> what its cost leaves out, for the values that leave
    something out.

    Attributes:
        value: Value -> number; a cost is null if none is known.
        span_count: Number of spans that contributed to the numbers.
        unpriced_span_count: Spans that the costs leave out because their cost is unknown.
        partly_priced_span_count: Spans whose cost lacks a part.
    """

    window: str | None
    metric: str
    value: dict[str, Any]
    span_count: Natural
    quantile_error: float | UnsetType = UNSET
    unpriced_span_count: Natural | UnsetType = UNSET
    partly_priced_span_count: Natural | UnsetType = UNSET


class AttributeAnswer(Compared, kw_only=True):
    """
    A numeric attribute. With ``groupby`` there is ``by_<dimension or attribute>``: value -> count, sum, avg, p50, p95.

    Attributes:
        skipped: Number of spans that are not counted because the value is 9.2e9 or more, or -9.2e9 or less.
        left_out: Deprecated: the old name of ``skipped``; it goes with the next release.
    """

    window: str | None
    metric: str
    count: Natural
    sum: float | None
    avg: float | None
    p50: float | None
    p95: float | None
    left_out: Natural
    skipped: Natural


class CounterAnswer(Incomplete, kw_only=True):
    """
    A number of reporters, of alerts, or of refused spans.

    Attributes:
        by_rule: For alerts: rule -> its number.
        by_reason: For refused spans: reason -> its number.
    """

    metric: str
    value: int
    by_rule: dict[str, int] | UnsetType = UNSET
    by_reason: dict[str, int] | UnsetType = UNSET


class SeriesPoint(msgspec.Struct):
    """
    One step of a series.

    Attributes:
        at: When the step begins, or the window if it begins within the step.
        value: A number, or the numbers of a group.
        span_count: Number of spans that contributed.
        partial: True = the numbers cover only a part of the step: the window cuts it, it is not over yet, or spans
            before `since` are missing. Absent for a whole step.
        unpriced_span_count: Spans that a number of money leaves out because their cost is unknown.
        partly_priced_span_count: Spans of a number of money whose cost lacks a part.
    """

    at: InstantText
    value: Any
    span_count: Natural
    partial: bool | UnsetType = UNSET
    unpriced_span_count: Natural | UnsetType = UNSET
    partly_priced_span_count: Natural | UnsetType = UNSET


class SeriesAnswer(Compared, kw_only=True):
    """A metric in steps; with ``groupby`` there is ``by_<dimension>``: value -> points at the same instants."""

    window: str | None
    metric: str
    step: str
    points: list[SeriesPoint]
    quantile_error: float | UnsetType = UNSET


EXEMPLAR_EXAMPLE = {"trace_id": "t1", "span_id": "s1", "name": "answer", "started_at": "2026-03-15T14:20:00.000Z"}
COVERAGE_EXAMPLE = {"from": "2026-03-15T13:23:01.000Z", "to": "2026-03-15T14:23:02.000Z", "since": None}
_AWAY = {503: "no aggregator answers"}
_COST = {
    "total_usd": 1.42,
    "per_call_usd": 0.00455,
    "by_model": {"gpt-4o": 1.28, "gpt-4o-mini": 0.14},
    "unpriced_by_model": {},
    "unpriced_span_count": 0,
    "partly_priced_span_count": 0,
    "span_count": 330,
    "per_call_span_count": 312,
}
OVERVIEW_EXAMPLE: dict[str, Any] = {
    "window": "1h",
    "span_count": 312,
    "cost": _COST,
    "tokens": {
        "prompt_total": 156800,
        "completion_total": 39200,
        "unclassified_total": 0,
        "total": 196000,
        "cache_read_total": 0,
        "cache_write_total": 0,
        "cache_write_1h_total": 0,
        "reasoning_total": 0,
        "prompt_p50": 480.0,
        "prompt_p95": 1210.0,
        "completion_p50": 121.0,
        "completion_p95": 340.0,
    },
    "latency": {
        "p50_ms": 820,
        "p95_ms": 2140,
        "p99_ms": 3810,
        "avg_ms": 910.5,
        "ttft_p50_ms": 210,
        "ttft_p95_ms": 480,
    },
    "errors": {"rate": 0.0128, "count": 4, "timeout_rate": 0.0032, "timeout_count": 1},
    "quality": {"score_avg": 0.884, "score_p10": 0.71, "score_p50": 0.9, "scored_span_count": 180},
    "quantile_error": 0.01,
    "transport": {"sent": 312, "failed": 0, "dropped": 0, "queue_depth": 0},
    "rejected": {"spans": 3, "by_reason": {"model": 3}},
    "saved_from_double_count": {"calls": 12, "nusd": 30720000},
    "alerts": {"firings": {"slow": 2}, "delivery_failed": {"slow": 0}},
    **COVERAGE_EXAMPLE,
}
_GROUP_EXAMPLE: dict[str, Any] = {
    "window": "24h",
    **_COST,
    "exemplars": [EXEMPLAR_EXAMPLE | {"cost_usd": 0.31}],
    **COVERAGE_EXAMPLE,
    "previous": {
        "total_usd": 1.2,
        "by_model": {"gpt-4o": 1.2},
        "from": "2026-03-14T13:23:01.000Z",
        "to": "2026-03-15T13:23:01.000Z",
        "since": None,
    },
    "change": {
        "total_usd": {"absolute": 0.22, "ratio": 0.1833},
        "by_model": {
            "gpt-4o": {"absolute": 0.08, "ratio": 0.0667},
            "gpt-4o-mini": {"absolute": 0.14, "ratio": None},
        },
    },
}
_SERIES_EXAMPLE: dict[str, Any] = {
    "window": "1h",
    "metric": "error_rate",
    "step": "30m",
    "points": [
        {"at": "2026-03-15T13:23:01.000Z", "value": 0.02, "span_count": 100, "partial": True},
        {"at": "2026-03-15T13:30:00.000Z", "value": 0.009, "span_count": 212},
    ],
    **COVERAGE_EXAMPLE,
}
GET_METRICS = operation(
    "getMetrics",
    "Get all metrics of a window",
    """
    Cost, tokens, latency, errors, quality and custom metrics, and counts of reporters, refused spans and alerts.
    Numbers that are grouped or filtered by attribute come from the stored spans, all others from the aggregators.
    """,
    Answer(MetricsOverview, "The metrics.", OVERVIEW_EXAMPLE),
    errors={400: "window: duration: 'x' is not a duration such as 90s, 2h30m or 7d", **_AWAY},
)
GET_METRIC = operation(
    "getMetric",
    "Get one metric or group",
    """
    `name` is a group (`cost`, `tokens`, `latency`, `errors`, `quality`), a number such as `error_rate` or
    `latency_p95`, a breakdown such as `cost_by_model`, a count of reporters, alerts or refused spans, a custom metric,
    or `attr.<key>` for a numeric attribute. An unknown name is a 404 whose text lists all names.
    """,
    Answer((GroupAnswer, NumberAnswer, BreakdownAnswer, AttributeAnswer, CounterAnswer), "The metric.", _GROUP_EXAMPLE),
    errors={
        400: "key: cost_by_attribute needs the attribute to group by, such as ?key=workflow",
        404: "unknown metric 'x'; known are cost, tokens, latency, errors, quality, total_cost",
        **_AWAY,
    },
)
GET_SERIES = operation(
    "getMetricSeries",
    "Get a metric in steps",
    "A number or a group for each step of a window; at most 2,000 steps.",
    Answer(SeriesAnswer, "The series.", _SERIES_EXAMPLE),
    errors={
        400: "step: '1s' makes over 2000 points; the finest for this window is 10s",
        404: "cost_by_model has no series; a number or a group has one, also with groupby",
        **_AWAY,
    },
)
