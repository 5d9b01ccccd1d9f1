"""Builders of alert events with fixed times."""

from __future__ import annotations

from typing import Any

from tokentrace.records import AlertEvent
from tokentrace.units import HOUR

#: 2026-09-21T14:00:00Z, a whole hour.
START_NS = 497_222 * HOUR
URL = "https://example.org/hook"
FIRED, OVER = "2026-09-21T14:00:00.000Z", "2026-09-21T14:05:00.000Z"
TEN_KEYS = {"alert", "fired_at", "metric", "op", "value", "threshold", "window", "span_count", "filter", "rule_id"}


def make_event(**overrides: Any) -> AlertEvent:
    fields: dict[str, Any] = {
        "alert": "hourly-cost-spike",
        "fired_at": FIRED,
        "metric": "total_cost",
        "op": "gt",
        "value": 12.47,
        "threshold": 10.0,
        "window": "1h",
        "span_count": 312,
        "filter": {},
        "rule_id": "alert_7f3a1c2b",
        "level": "critical",
        "message": "total_cost > 12.47 (threshold: 10)",
        "starts_at": FIRED,
        **overrides,
    }
    return AlertEvent(**fields)


def make_resolved(**overrides: Any) -> AlertEvent:
    return make_event(status="resolved", fired_at=OVER, ends_at=OVER, value=1.5, **overrides)
