"""
Token-level observability for AI inference: report the cost, latency and quality of LLM calls.

    from tokentrace import Reporter, Span

    reporter = Reporter("my-service", "nats://127.0.0.1:4222")
    reporter.report(Span(name="chat", model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128))
"""

from tokentrace.client import (
    Reporter,
    StartedSpan,
    Stats,
    TraceClient,
    cost_spike,
    error_rate_spike,
    latency_regression,
    quality_drop,
)
from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.records import Span
from tokentrace.version import __version__

__all__ = [
    "ConfigError",
    "Conflict",
    "Rejected",
    "Reporter",
    "Span",
    "StartedSpan",
    "Stats",
    "TokentraceError",
    "TraceClient",
    "Unavailable",
    "__version__",
    "cost_spike",
    "error_rate_spike",
    "latency_regression",
    "quality_drop",
]
