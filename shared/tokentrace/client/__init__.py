"""What applications import: the reporter, the client of the sessions API, and functions that make alert rules."""

from tokentrace.client.reporter import Reporter
from tokentrace.client.rules import cost_spike, error_rate_spike, latency_regression, quality_drop
from tokentrace.client.span_queue import Stats
from tokentrace.client.trace_client import StartedSpan, TraceClient

__all__ = [
    "Reporter",
    "StartedSpan",
    "Stats",
    "TraceClient",
    "cost_spike",
    "error_rate_spike",
    "latency_regression",
    "quality_drop",
]
