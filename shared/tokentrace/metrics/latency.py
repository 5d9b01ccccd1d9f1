"""Latency metrics in milliseconds; a latency or time to first token of 0 means unknown and is not counted."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.rollup import RELATIVE_ERROR
from tokentrace.units import MS

FIELDS = ("latency", "ttft")


def quantile_ms(aggregates: Aggregates, field: str, q: float) -> float | int | None:
    """Return the *q* quantile of *field* (``latency`` or ``ttft``) in milliseconds; None without values."""
    value = aggregates.summary(field).quantile(q)
    if value is None:
        return None
    ms = round(value / MS, 6)
    return int(ms) if ms.is_integer() else ms


def average_ms(aggregates: Aggregates) -> float | None:
    """Return the mean latency in milliseconds of the spans that have a latency; None without such spans."""
    sums = aggregates.sums
    return sums.latency / (sums.latency_n * MS) if sums.latency_n else None


def render_latency(aggregates: Aggregates) -> dict[str, Any]:
    """Return the metric group ``latency`` of ``GET /metrics``."""
    return {
        "p50_ms": quantile_ms(aggregates, "latency", 0.50),
        "p95_ms": quantile_ms(aggregates, "latency", 0.95),
        "p99_ms": quantile_ms(aggregates, "latency", 0.99),
        "avg_ms": average_ms(aggregates),
        "ttft_p50_ms": quantile_ms(aggregates, "ttft", 0.50),
        "ttft_p95_ms": quantile_ms(aggregates, "ttft", 0.95),
    }


def render_split(aggregates: Aggregates) -> dict[str, Any] | None:
    """Return the value of a model in ``latency_by_model``; None without spans that have a latency."""
    if not aggregates.sums.latency_n:
        return None
    return {f"p{percent}_ms": quantile_ms(aggregates, "latency", percent / 100) for percent in (50, 95, 99)}


def quantile_error(aggregates: Aggregates, field: str) -> float:
    """Return the largest relative error of a quantile of *field*; 0 if all values are unrounded."""
    return 0.0 if aggregates.summary(field).exact else RELATIVE_ERROR
