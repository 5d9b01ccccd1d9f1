"""Latency: quantiles of the wall clock of calls, in milliseconds; a latency of 0 is unset and left out."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.rollup import RELATIVE_ERROR
from tokentrace.units import MS

FIELDS = ("latency", "ttft")


def quantile_ms(figures: Aggregates, field: str, q: float) -> float | int | None:
    """A quantile of *field* in milliseconds; None without values."""
    value = figures.summary(field).quantile(q)
    if value is None:
        return None
    ms = round(value / MS, 6)
    return int(ms) if ms.is_integer() else ms


def average_ms(figures: Aggregates) -> float | None:
    """Mean latency in milliseconds of the spans that have one."""
    sums = figures.sums
    return sums.latency / (sums.latency_n * MS) if sums.latency_n else None


def render_latency(figures: Aggregates) -> dict[str, Any]:
    """The group ``latency`` of ``GET /metrics``."""
    return {
        "p50_ms": quantile_ms(figures, "latency", 0.50),
        "p95_ms": quantile_ms(figures, "latency", 0.95),
        "p99_ms": quantile_ms(figures, "latency", 0.99),
        "avg_ms": average_ms(figures),
        "ttft_p50_ms": quantile_ms(figures, "ttft", 0.50),
        "ttft_p95_ms": quantile_ms(figures, "ttft", 0.95),
    }


def render_split(figures: Aggregates) -> dict[str, Any] | None:
    """An entry of ``latency_by_model``; None without calls that have a latency."""
    if not figures.sums.latency_n:
        return None
    return {f"p{percent}_ms": quantile_ms(figures, "latency", percent / 100) for percent in (50, 95, 99)}


def quantile_error(figures: Aggregates, field: str) -> float:
    """The largest relative error of a quantile of *field*: 0 below 100 values."""
    return 0.0 if figures.summary(field).exact else RELATIVE_ERROR
