"""Custom metrics: a sum, count, average or p95 of a field or attribute, over the spans that match a filter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec

from tokentrace.errors import ConfigError, quoted
from tokentrace.metrics.cost import NotPriced
from tokentrace.metrics.query import ALL_KINDS, Query
from tokentrace.metrics.registry import (
    ALERT_METRICS,
    ALIASES,
    BREAKDOWNS,
    GROUPS,
    METRICS,
    RESERVED,
    TRANSPORT_METRICS,
    Metric,
)
from tokentrace.metrics.result import Aggregates, CustomValue
from tokentrace.records import Span, attribute, counts_as_cost
from tokentrace.rollup import DIMENSIONS, UNKNOWN
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE, is_number, score_to_int

#: A numeric attribute counts if its absolute value is below this; larger values in units of 1e-9 may not fit int64.
MAX_ATTRIBUTE = 9_200_000_000
#: Type of a custom metric that is a quantile -> the quantile.
QUANTILES: Mapping[str, float] = {"p50": 0.50, "p95": 0.95}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ESCAPE = re.compile(r"\\(u[0-9a-f]{4}|.)")
#: Fields of a span with tokens that are known by type.
_SPLIT = ("prompt_tokens", "completion_tokens")
#: Field in the configuration -> (field of a span, divisor that converts it to the unit shown, fields of a span that are
#: all 0 if the value is unknown; () = it is always known).
_FIELDS: Mapping[str, tuple[str, int, tuple[str, ...]]] = {
    "cost": ("cost_nusd", NUSD_PER_USD, ()),
    "prompt_tokens": ("prompt_tokens", 1, _SPLIT),
    "comp_tokens": ("completion_tokens", 1, _SPLIT),
    "total_tokens": ("total_tokens", 1, ("total_tokens",)),
    "latency_ms": ("latency_ns", MS, ("latency_ns",)),
    "ttft_ms": ("ttft_ns", MS, ("ttft_ns",)),
}
_TIMES = ("latency_ms", "ttft_ms")


class CustomMetric(msgspec.Struct, frozen=True, kw_only=True):
    """
    A metric that the configuration defines.

    Attributes:
        type: How the values of spans are combined into the metric; p50 only in rules on attributes.
        field: The value of a span: ``cost``, ``prompt_tokens``, ``comp_tokens``, ``total_tokens``, ``latency_ms``,
            ``ttft_ms`` or ``attr.<key>``; "" = no value, the type is ``count``.
        filter_key: Dimension or attribute that a span must have; "" = every span is measured.
        filter_val: Text that the dimension or attribute must be equal to; None = any.
    """

    name: str
    type: Literal["sum", "count", "avg", "p50", "p95"]
    field: str = ""
    filter_key: str = ""
    filter_val: str | None = None

    @property
    def divisor(self) -> int:
        """Number that converts a value to the unit shown, for example 10**9 for nano-dollars to dollars."""
        if self.type == "count":
            return 1
        return _FIELDS[self.field][1] if self.field in _FIELDS else SCORE_ONE

    @property
    def column(self) -> str:
        """Name of the ``Span`` field with the value; ``attributes`` for an attribute, "" for a count of spans."""
        return _FIELDS[self.field][0] if self.field in _FIELDS else "attributes" if self.field else ""

    @property
    def known_by(self) -> tuple[str, ...]:
        """Fields of a span of which at least one must be over 0, or the value is unknown; () = no such condition."""
        return _FIELDS[self.field][2] if self.field in _FIELDS else ()

    @property
    def money(self) -> bool:
        """Whether the values are costs."""
        return self.field == "cost"

    @property
    def rollups_count(self) -> bool:
        """Whether spans of roll-up kinds have values; their costs and tokens are those of the calls below them."""
        return self.field not in _FIELDS or self.field in _TIMES

    @property
    def every_kind(self) -> bool:
        """
        Whether spans of every kind count unless the query names one, as costs and attributes do elsewhere.

        Tokens, times and counts of spans are of the kind llm, unless the filter of the metric is about the kind.
        """
        return self.money or self.field.startswith("attr.") or self.filter_key == "kind"

    def counts(self, kind: str, query: Query) -> bool:
        """Return whether spans of *kind* count in the answer to *query*."""
        if not self.rollups_count and not counts_as_cost(kind):
            return False
        if self.every_kind and not query.only_kind:
            return True
        return kind == query.kind or query.kind == ALL_KINDS

    @property
    def falls(self) -> bool:
        """Whether the cumulative value can decrease: attributes may be negative, and scores may be removed."""
        if self.type == "sum":
            return self.field.startswith("attr.")
        keys = (self.field, self.filter_key)
        return self.follows_scores and any(key.removeprefix("attr.").startswith("eval.") for key in keys)

    @property
    def follows_scores(self) -> bool:
        """Whether late scores can change it; a late score has its span's attributes, not its cost, tokens or times."""
        return self.field not in _FIELDS

    @property
    def prometheus(self) -> str:
        """Name of the metric in Prometheus; the name of a counter ends in ``_total``."""
        counter = self.type in ("sum", "count") and not self.falls
        return f"tokentrace_custom_{self.name}" + ("_total" if counter else "")

    def matches(self, span: Span) -> bool:
        """Return whether *span* passes the filter."""
        if not self.filter_key:
            return True
        text = value_text(span, self.filter_key)
        return text is not None and (self.filter_val is None or text == self.filter_val)

    def measure(self, span: Span) -> int | None:
        """Return the value of *span* as an integer; None if the span does not match the filter or has no value."""
        if not self.matches(span) or not (self.rollups_count or counts_as_cost(span.kind)):
            return None
        if self.type == "count" and not self.field:
            return 0
        if self.field in _FIELDS:
            name, _, known_by = _FIELDS[self.field]
            value: int | None = getattr(span, name)
            return value if not known_by or any(getattr(span, field) for field in known_by) else None
        return attribute_to_int(attribute(span, self.field.removeprefix("attr.")))

    def lacks_price(self, span: Span) -> bool:
        """Return whether *span*, which has no value, matches the filter and would have one if its cost were known."""
        return self.money and span.cost_nusd is None and counts_as_cost(span.kind) and self.matches(span)

    def value(self, measured: CustomValue) -> float | None:
        """Return the metric in the unit shown, for example US dollars; None without values, but 0 for a count."""
        if self.type == "count":
            return float(max(measured.size, 0))
        if measured.size <= 0:
            return None
        if self.type == "sum":
            return measured.total / self.divisor
        if self.type == "avg":
            return measured.total / (measured.size * self.divisor)
        quantile = measured.summary.quantile(QUANTILES[self.type])
        return None if quantile is None else quantile / self.divisor

    def as_metric(self) -> Metric:
        """Return a ``Metric`` that reads this metric from aggregates; their query must have named it."""
        return Metric(
            (),
            lambda aggregates: self.value(aggregates.custom.get(self.name, CustomValue())),
            lambda aggregates: max(aggregates.custom.get(self.name, CustomValue()).size, 0),
            self.not_priced if self.money else None,
        )

    def not_priced(self, aggregates: Aggregates) -> NotPriced:
        """Return what this metric of costs leaves out."""
        measured = aggregates.custom.get(self.name, CustomValue())
        return NotPriced(measured.unpriced, measured.partly_priced)


def value_text(span: Span, key: str) -> str | None:
    """Return a dimension or attribute of *span* as the text that filters compare; None if the attribute is missing."""
    if key in DIMENSIONS:
        return str(getattr(span, key) or UNKNOWN)
    return attribute_text_of(span, key.removeprefix("attr."))


def attribute_text_of(span: Span, key: str) -> str | None:
    """Return the attribute *key* of *span* as the span store converts it to text; None if the attribute is missing."""
    value = attribute(span, key)
    if value is None or isinstance(value, str):
        return value
    return _json_text(value)


def _json_text(value: object) -> str:
    """Return *value* as JSON, exactly as DuckDB writes it when it extracts a value."""
    if isinstance(value, float):
        return _number_text(value)
    if isinstance(value, list):
        return f"[{','.join(map(_json_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json_text(str(key))}:{_json_text(item)}" for key, item in value.items()) + "}"
    return _ESCAPE.sub(_large_digits, msgspec.json.encode(value).decode())


def _large_digits(escape: re.Match[str]) -> str:
    return f"\\u{escape[1][1:].upper()}" if len(escape[1]) > 1 else escape[0]


def _number_text(value: float) -> str:
    """Return *value* as DuckDB writes it: the shortest text that reads back, plain from 1e-6 to below 1e21."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else text + ".0"
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa


def attribute_to_int(value: object) -> int | None:
    """Return *value* in units of 1e-9; None if it is not a number or its absolute value reaches MAX_ATTRIBUTE."""
    return score_to_int(value) if is_number(value) and abs(value) < MAX_ATTRIBUTE else None


def parse_custom_metric(entry: Mapping[str, Any], where: str) -> CustomMetric:
    """
    Return the custom metric that *entry* of the configuration defines.

    Args:
        entry: An entry of ``custom_metrics``, valid by the schema of the configuration.
        where: Path of the entry, for error texts.

    Raises:
        ConfigError: The name is malformed or taken, or the field is unknown; the text begins with the path of the key.
    """
    metric = CustomMetric(
        name=entry["name"],
        type=entry["type"],
        field=entry.get("field") or "",
        filter_key=entry.get("filter_key") or "",
        filter_val=entry.get("filter_val"),
    )
    if not _NAME.fullmatch(metric.name):
        raise ConfigError(
            f"{where}.name: {quoted(metric.name)} is not 1-128 letters, digits and _, without a digit first"
        )
    taken = {*METRICS, *ALIASES, *GROUPS, *BREAKDOWNS, *RESERVED, *TRANSPORT_METRICS, *ALERT_METRICS}
    if metric.name in taken or metric.name.startswith("by_"):
        raise ConfigError(f"{where}.name: {metric.name!r} is a reserved name, such as that of a built-in metric")
    known = metric.field in _FIELDS or (metric.field.startswith("attr.") and len(metric.field) > len("attr."))
    if not known and not (metric.type == "count" and not metric.field):
        raise ConfigError(f"{where}.field: {quoted(metric.field)} is none of {', '.join(_FIELDS)}, attr.<key>")
    return metric


def parse_custom_metrics(entries: Sequence[Mapping[str, Any]]) -> dict[str, CustomMetric]:
    """
    Return the custom metrics of a configuration by name.

    Raises:
        ConfigError: As for ``parse_custom_metric``, or two metrics have the same name, here or in Prometheus.
    """
    metrics = {
        entry["name"]: parse_custom_metric(entry, f"custom_metrics[{index}]") for index, entry in enumerate(entries)
    }
    if len(metrics) < len(entries):
        raise ConfigError("custom_metrics: a name is used twice")
    shown: dict[str, str] = {}
    for name, metric in metrics.items():
        other = shown.setdefault(metric.prometheus, name)
        if other != name:
            raise ConfigError(
                f"custom_metrics: the names {other!r} and {name!r} both become {metric.prometheus} in Prometheus"
            )
    return metrics
