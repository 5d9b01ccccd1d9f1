"""
Token-level observability for AI inference: report the cost, latency and quality of LLM calls.

    from tokentrace import Reporter, Span

    reporter = Reporter("my-service", "nats://127.0.0.1:4222")
    reporter.report(Span(name="chat", model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128))

A name is imported from its package when it is first used, so that a program loads only what it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tokentrace.version import __version__

if TYPE_CHECKING:
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

#: Package of each public name.
_PACKAGES = {
    "ConfigError": "tokentrace.errors",
    "Conflict": "tokentrace.errors",
    "Rejected": "tokentrace.errors",
    "Reporter": "tokentrace.client",
    "Span": "tokentrace.records",
    "StartedSpan": "tokentrace.client",
    "Stats": "tokentrace.client",
    "TokentraceError": "tokentrace.errors",
    "TraceClient": "tokentrace.client",
    "Unavailable": "tokentrace.errors",
    "cost_spike": "tokentrace.client",
    "error_rate_spike": "tokentrace.client",
    "latency_regression": "tokentrace.client",
    "quality_drop": "tokentrace.client",
}

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


def __getattr__(name: str) -> object:
    package = _PACKAGES.get(name)
    if package is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(package), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
