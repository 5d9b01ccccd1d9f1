"""
Token-level observability for AI inference: report what your LLM calls cost, how slow they were, how good they were.

    from tokentrace import Reporter, Span

    reporter = Reporter("my-service", "nats://127.0.0.1:4222")
    reporter.report(Span(name="chat", model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128))
"""

from tokentrace.client.reporter import Reporter, Stats
from tokentrace.client.rules import cost_spike, error_rate_spike, latency_regression, quality_drop
from tokentrace.client.trace_client import TraceClient
from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.records import Span
from tokentrace.version import __version__

__all__ = [
    "ConfigError",
    "Conflict",
    "Rejected",
    "Reporter",
    "Span",
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
