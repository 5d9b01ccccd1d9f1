"""A recount of all metrics from the spans, with fractions and numpy; of the product it imports only ``Span``."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kit.recount_world import DIMENSIONS, EXACT_UP_TO, ROLLUPS, SECOND
from tokentrace.records import Span


class Spans(NamedTuple):
    """
    Some spans by what they count for.

    Attributes:
        calls: Count for calls, latency and errors.
        spent: Count for tokens and for the cost of a call.
        paid: Count for cost.
        scored: Count for quality.
        every: Count for attributes.
    """

    calls: list[Span]
    spent: list[Span]
    paid: list[Span]
    scored: list[Span]
    every: list[Span]


def has_costs(of: Spans) -> bool:
    """Return True if a cost of *of* is unknown or over 0."""
    return any(span.cost_nusd is None or span.cost_nusd > 0 for span in of.paid)


def split_by_use(spans: Iterable[Span], kind: str) -> Spans:
    """Split *spans* by use; *kind* "" = calls are of kind llm, everything else is of every kind."""
    every = list(spans)
    calls = every if kind == "all" else [span for span in every if span.kind == (kind or "llm")]
    wide = every if kind in ("", "all") else calls
    return Spans(
        calls=calls,
        spent=[span for span in calls if span.kind not in ROLLUPS],
        paid=[span for span in wide if span.kind not in ROLLUPS],
        scored=[span for span in wide if span.score is not None],
        every=wide,
    )


class Sum(NamedTuple):
    """An expected number that must be exact; None if no span contributes."""

    value: Fraction | None


class Mean(NamedTuple):
    """An expected quotient, which may be rounded; None if nothing contributes."""

    value: Fraction | None


class Quantile(NamedTuple):
    """
    An expected quantile of integers.

    Attributes:
        q: 0 to 1.
        unit: Integers per unit of the answer.
        rounded: Allowed rounding of the answer, in its unit.
    """

    values: Sequence[int]
    q: float
    unit: int
    rounded: float = 0.0


Number = Sum | Mean | Quantile


def assert_number(got: Any, want: Number, error: float, where: object) -> None:
    """Check that *got* equals *want*; *error* is the relative error allowed for quantiles of over 100 values."""
    if isinstance(want, Quantile):
        assert_quantile(got, want, 0.0 if len(want.values) <= EXACT_UP_TO else error, where)
    elif want.value is None:
        assert got is None, (where, got)
    elif isinstance(want, Sum):
        assert got is not None, (where, want)
        assert got == (want.value if isinstance(got, int) else float(want.value)), (where, got, want)
    else:
        assert got is not None, (where, want)
        assert abs(Fraction(got) - want.value) <= abs(want.value) / 10**12, (where, got, float(want.value))


def assert_quantile(got: float | None, want: Quantile, error: float, where: object) -> None:
    if not want.values:
        assert got is None, (where, got)
        return
    assert got is not None, (where, want)
    values = np.sort(np.array(want.values, float))
    true = float(np.quantile(values, want.q)) / want.unit
    rank = want.q * (len(values) - 1)
    low, high = values[int(rank)], values[min(int(rank) + 1, len(values) - 1)]
    size = max(abs(low), abs(high)) / want.unit
    rounding = 1e-12 * max(abs(values[0]), abs(values[-1])) / want.unit + want.rounded
    assert values[0] / want.unit - rounding <= got <= values[-1] / want.unit + rounding, (where, got)
    assert abs(got - true) <= error * size + 1e-12 * size + want.rounded, (where, got, true, len(values))


def ratio(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole else None


def usd(spans: Sequence[Span]) -> Fraction:
    return Fraction(sum(span.cost_nusd or 0 for span in spans), 10**9)


def priced(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.cost_nusd is not None]


def total_cost(of: Spans) -> Fraction | None:
    return usd(of.paid) if priced(of.paid) else None


def cost_per_call(of: Spans) -> Mean:
    return Mean(usd(of.spent) / len(priced(of.spent)) if priced(of.spent) else None)


def latencies(of: Spans) -> list[int]:
    return [span.latency_ns for span in of.calls if span.latency_ns > 0]


def ttfts(of: Spans) -> list[int]:
    return [span.ttft_ns for span in of.calls if span.ttft_ns > 0]


def scores(of: Spans) -> list[int]:
    return [span.score for span in of.scored if span.score is not None]


def tokens(of: Spans, field: str) -> list[int]:
    return [getattr(span, field) for span in of.spent]


def known_tokens(of: Spans, field: str) -> list[int]:
    """Return prompt or completion tokens of the spans of which not only the total is known."""
    return [getattr(span, field) for span in of.spent if span.prompt_tokens or span.completion_tokens]


def failed(of: Spans, *statuses: str) -> int:
    return sum(span.status in statuses for span in of.calls)


def ms(values: Sequence[int], q: float) -> Quantile:
    return Quantile(values, q, 10**6, rounded=0.51e-6)


def token_quantile(of: Spans, field: str, q: float) -> Quantile:
    return Quantile(known_tokens(of, field), q, 1, rounded=0.51e-6)


def unpriced(of: Spans) -> int:
    return sum(span.cost_nusd is None for span in of.paid)


def partly_priced(of: Spans) -> int:
    return sum(span.cost_source == "partly_priced" for span in of.paid)


def if_any(contributing: Sequence[object], value: int | Fraction) -> Sum:
    """Return *value* as the expected number, or None if nothing contributes."""
    return Sum(Fraction(value) if contributing else None)


Recount = Callable[[Spans], tuple[Number, Sequence[object]]]
#: Metric -> function of spans that returns (the number, what contributes to it).
SCALARS: Mapping[str, Recount] = {
    "total_cost": lambda of: (Sum(total_cost(of)), of.paid),
    "cost_per_call": lambda of: (cost_per_call(of), priced(of.spent)),
    "unpriced_span_count": lambda of: (Sum(Fraction(unpriced(of))), of.paid),
    "partly_priced_span_count": lambda of: (Sum(Fraction(partly_priced(of))), of.paid),
    "prompt_tokens": lambda of: (if_any(of.spent, sum(tokens(of, "prompt_tokens"))), of.spent),
    "completion_tokens": lambda of: (if_any(of.spent, sum(tokens(of, "completion_tokens"))), of.spent),
    "total_tokens": lambda of: (if_any(of.spent, sum(tokens(of, "total_tokens"))), of.spent),
    "prompt_token_p50": lambda of: (token_quantile(of, "prompt_tokens", 0.5), known_tokens(of, "prompt_tokens")),
    "prompt_token_p95": lambda of: (token_quantile(of, "prompt_tokens", 0.95), known_tokens(of, "prompt_tokens")),
    "completion_token_p50": lambda of: (
        token_quantile(of, "completion_tokens", 0.5),
        known_tokens(of, "completion_tokens"),
    ),
    "completion_token_p95": lambda of: (
        token_quantile(of, "completion_tokens", 0.95),
        known_tokens(of, "completion_tokens"),
    ),
    "latency_p50": lambda of: (ms(latencies(of), 0.5), latencies(of)),
    "latency_p95": lambda of: (ms(latencies(of), 0.95), latencies(of)),
    "latency_p99": lambda of: (ms(latencies(of), 0.99), latencies(of)),
    "latency_avg": lambda of: (average_ms(of), latencies(of)),
    "ttft_p50": lambda of: (ms(ttfts(of), 0.5), ttfts(of)),
    "ttft_p95": lambda of: (ms(ttfts(of), 0.95), ttfts(of)),
    "error_rate": lambda of: (Mean(ratio(failed(of, "error", "timeout"), len(of.calls))), of.calls),
    "error_count": lambda of: (Sum(Fraction(failed(of, "error", "timeout"))), of.calls),
    "timeout_rate": lambda of: (Mean(ratio(failed(of, "timeout"), len(of.calls))), of.calls),
    "timeout_count": lambda of: (Sum(Fraction(failed(of, "timeout"))), of.calls),
    "span_count": lambda of: (Sum(Fraction(len(of.calls))), of.calls),
    "quality_score": lambda of: (mean_score(of), of.scored),
    "quality_p10": lambda of: (Quantile(scores(of), 0.1, 10**9), of.scored),
    "quality_p50": lambda of: (Quantile(scores(of), 0.5, 10**9), of.scored),
}
#: Beginning of a metric's name, ``$`` = its end -> function that returns the values of each distribution.
DISTRIBUTIONS: Mapping[str, Callable[[Spans], list[Sequence[int]]]] = {
    "prompt_token_p": lambda of: [known_tokens(of, "prompt_tokens")],
    "completion_token_p": lambda of: [known_tokens(of, "completion_tokens")],
    "latency_p": lambda of: [latencies(of)],
    "latency_by": lambda of: [latencies(of)],
    "ttft_p": lambda of: [ttfts(of)],
    "quality_p": lambda of: [scores(of)],
    "tokens$": lambda of: [known_tokens(of, "prompt_tokens"), known_tokens(of, "completion_tokens")],
    "latency$": lambda of: [latencies(of), ttfts(of)],
    "quality$": lambda of: [scores(of)],
}


def average_ms(of: Spans) -> Mean:
    return Mean(ratio(sum(latencies(of)), 10**6 * len(latencies(of))))


def mean_score(of: Spans) -> Mean:
    return Mean(ratio(sum(scores(of)), 10**9 * len(scores(of))))


def cost_group(of: Spans) -> dict[str, Number]:
    return {
        "total_usd": Sum(total_cost(of)),
        "per_call_usd": SCALARS["cost_per_call"](of)[0],
        "unpriced_span_count": Sum(Fraction(unpriced(of))),
        "partly_priced_span_count": Sum(Fraction(partly_priced(of))),
        "span_count": Sum(Fraction(len(of.paid))),
        "per_call_span_count": Sum(Fraction(len(priced(of.spent)))),
    }


def tokens_group(of: Spans) -> dict[str, Number]:
    sums = {
        "prompt_total": "prompt_tokens",
        "completion_total": "completion_tokens",
        "total": "total_tokens",
        "cache_read_total": "cache_read_tokens",
        "cache_write_total": "cache_write_tokens",
        "cache_write_1h_total": "cache_write_1h_tokens",
        "reasoning_total": "reasoning_tokens",
    }
    quantiles = {"prompt_p50": 0.5, "prompt_p95": 0.95, "completion_p50": 0.5, "completion_p95": 0.95}
    numbers: dict[str, Number] = {name: if_any(of.spent, sum(tokens(of, field))) for name, field in sums.items()}
    rest = sum(span.total_tokens - span.prompt_tokens - span.completion_tokens for span in of.spent)
    numbers["unclassified_total"] = if_any(of.spent, rest)
    return numbers | {name: token_quantile(of, f"{name.partition('_')[0]}_tokens", q) for name, q in quantiles.items()}


def latency_group(of: Spans) -> dict[str, Number]:
    return {
        "p50_ms": ms(latencies(of), 0.5),
        "p95_ms": ms(latencies(of), 0.95),
        "p99_ms": ms(latencies(of), 0.99),
        "avg_ms": average_ms(of),
        "ttft_p50_ms": ms(ttfts(of), 0.5),
        "ttft_p95_ms": ms(ttfts(of), 0.95),
    }


def errors_group(of: Spans) -> dict[str, Number]:
    return {
        "rate": Mean(ratio(failed(of, "error", "timeout"), len(of.calls))),
        "count": Sum(Fraction(failed(of, "error", "timeout"))),
        "timeout_rate": Mean(ratio(failed(of, "timeout"), len(of.calls))),
        "timeout_count": Sum(Fraction(failed(of, "timeout"))),
    }


def quality_group(of: Spans) -> dict[str, Number]:
    return {
        "score_avg": mean_score(of),
        "score_p10": Quantile(scores(of), 0.1, 10**9),
        "score_p50": Quantile(scores(of), 0.5, 10**9),
        "scored_span_count": Sum(Fraction(len(of.scored))),
    }


GROUP_RECOUNTS: Mapping[str, Callable[[Spans], dict[str, Number]]] = {
    "cost": cost_group,
    "tokens": tokens_group,
    "latency": latency_group,
    "errors": errors_group,
    "quality": quality_group,
}


def tokens_split(of: Spans) -> dict[str, Number] | None:
    fields = {"prompt": "prompt_tokens", "completion": "completion_tokens", "total": "total_tokens"}
    return {name: Sum(Fraction(sum(tokens(of, field)))) for name, field in fields.items()} if of.spent else None


def latency_split(of: Spans) -> dict[str, Number] | None:
    return {f"p{p}_ms": ms(latencies(of), p / 100) for p in (50, 95, 99)} if latencies(of) else None


#: Breakdown -> (dimension, "" = the attribute in the request; function that returns what is shown for one value, None
#: = the value is not shown).
SPLIT_RECOUNTS: Mapping[str, tuple[str, Callable[[Spans], dict[str, Number] | Number | None]]] = {
    "cost_by_model": ("model", lambda of: Sum(total_cost(of)) if of.paid else None),
    "cost_by_caller": ("caller", lambda of: Sum(total_cost(of)) if of.paid else None),
    "cost_by_provider": ("provider", lambda of: Sum(total_cost(of)) if of.paid else None),
    "cost_by_attribute": ("", lambda of: Sum(total_cost(of)) if of.paid else None),
    "tokens_by_model": ("model", tokens_split),
    "latency_by_model": ("model", latency_split),
    "quality_by_model": ("model", lambda of: mean_score(of) if of.scored else None),
    "quality_by_attribute": ("", lambda of: mean_score(of) if of.scored else None),
}


def event_s(span: Span) -> int:
    """Return the second in which a span counts: its end, or its arrival if it ends over five minutes after that."""
    ahead = span.ended_ns - span.arrived_ns
    return (span.ended_ns if ahead <= 300 * SECOND else span.arrived_ns) // SECOND


def split_by_time(of: Spans, edges: Sequence[int]) -> list[Spans]:
    """Return the spans that count between each two of *edges*, ascending seconds, the first of the two included."""
    steps = [Spans([], [], [], [], []) for _ in edges[1:]]
    for use, spans in enumerate(of):
        for span in spans:
            step = bisect_right(edges, event_s(span)) - 1
            if 0 <= step < len(steps):
                steps[step][use].append(span)
    return steps


def attribute(span: Span, key: str) -> Any:
    """Return the attribute *key*; if there is none, read *key* as a path through maps."""
    value = span.attributes.get(key)
    if value is None and "." in key:
        value = span.attributes
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def text_of(value: Any) -> str | None:
    """Return a value as JSON, but a string as it is; None stays None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def value_of(span: Span, key: str, *, is_attribute: bool) -> str | None:
    """Return the value of *key* that groups and filters use; a dimension that is not set is ``unknown``."""
    return text_of(attribute(span, key)) if is_attribute else getattr(span, key) or "unknown"


def billionths(value: Any) -> int | None:
    """Return a numeric attribute in units of 1e-9; None for other values, a bool included."""
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else _in_billionths(value)


@lru_cache(4096, typed=True)
def _in_billionths(value: int | float) -> int:
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
        return int((exact * 10**9).to_integral_value(ROUND_HALF_EVEN))


def custom_spans(custom: Mapping[str, Any], of: Spans) -> list[Span]:
    """Return the spans that count for a custom metric: those of the kinds that count for the metrics beside it."""
    field, key = custom.get("field", ""), custom.get("filter_key")
    every = field.startswith("attr.") or field == "cost" or key == "kind"
    spans = of.every if every else of.calls
    if field == "cost" or field.endswith("_tokens"):
        spans = [span for span in spans if span.kind not in ROLLUPS]
    if not key:
        return spans
    values = ((span, value_of(span, key.removeprefix("attr."), is_attribute=key not in DIMENSIONS)) for span in spans)
    return [span for span, value in values if value is not None and value == custom.get("filter_val", value)]


def measured(span: Span, custom: Mapping[str, Any]) -> int | None:
    """Return what *span*, which counts for a custom metric, contributes to it; None = nothing."""
    field = custom.get("field", "")
    if field.startswith("attr."):
        # Values that do not fit into 64 bits have a separate test.
        number = billionths(attribute(span, field.removeprefix("attr.")))
        return number if number is not None and abs(number) < 2**63 else None
    if field == "cost":
        return span.cost_nusd
    if field in ("latency_ms", "ttft_ms"):
        return getattr(span, field.replace("_ms", "_ns")) or None
    if field == "total_tokens":
        return span.total_tokens or None
    if field and not span.prompt_tokens and not span.completion_tokens:
        return None
    return int(getattr(span, field.replace("comp_", "completion_"))) if field else 0


def custom_number(custom: Mapping[str, Any], values: Sequence[int]) -> Number:
    """Return the expected value of a custom metric, in its unit."""
    field = custom.get("field", "")
    unit = 10**9 if field.startswith("attr.") or field == "cost" else 10**6 if field.endswith("_ms") else 1
    if custom["type"] == "count":
        return Sum(Fraction(len(values)))
    if custom["type"] == "sum":
        return if_any(values, Fraction(sum(values), unit))
    return Mean(ratio(sum(values), unit * len(values))) if custom["type"] == "avg" else Quantile(values, 0.95, unit)
