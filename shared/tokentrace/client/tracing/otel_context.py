"""The current span of OpenTelemetry, if the program has loaded it. Nothing of OpenTelemetry is imported here."""

from __future__ import annotations

import sys
from typing import NamedTuple

#: The attribute that holds the id of the OpenTelemetry span in which a trace was started.
OTEL_SPAN_ID = "otel.span_id"


class OtelParent(NamedTuple):
    """
    A span of OpenTelemetry.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
    """

    trace_id: str
    span_id: str


def otel_parent() -> OtelParent | None:
    """Return the current span of OpenTelemetry; None = there is none, or OpenTelemetry is not loaded."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    try:
        where = trace.get_current_span().get_span_context()
        if not where.is_valid:
            return None
        return OtelParent(f"{where.trace_id:032x}", f"{where.span_id:016x}")
    except (AttributeError, TypeError, ValueError):
        # A module that is being imported, or another one of this name.
        return None
