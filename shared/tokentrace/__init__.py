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
    from tokentrace.client.middleware import TraceMiddleware, WsgiTraceMiddleware, instrument_celery
    from tokentrace.client.money import (
        Budget,
        BudgetExceeded,
        BudgetUnavailable,
        Lease,
        cost,
        cost_or_none,
        cost_with_rate,
        estimate_cost,
    )
    from tokentrace.client.money.shared_budget import BudgetState, BudgetStats, SharedBudget
    from tokentrace.client.reporter import Reporter, Stats
    from tokentrace.client.rules import cost_spike, error_rate_spike, latency_regression, quality_drop
    from tokentrace.client.sessions import StartedSpan, TraceClient, TraceService
    from tokentrace.client.sessions.local import LocalTraceService
    from tokentrace.client.tracing import (
        OpenSpan,
        RemoteParent,
        SpanFields,
        Trace,
        Tracer,
        current,
        default_tracer,
        set_default_tracer,
        start,
        suppress,
    )
    from tokentrace.client.tracing.default import traced
    from tokentrace.client.track.instrument import instrument, uninstrument
    from tokentrace.client.track.observed import TraceContext
    from tokentrace.client.track.tracked import tracked
    from tokentrace.client.track.wrappers import TrackedAnthropic, TrackedOpenAI
    from tokentrace.client.transports import (
        BufferTransport,
        FileTransport,
        HttpTransport,
        MultiTransport,
        NatsTransport,
        NoopTransport,
        StdoutTransport,
        Transport,
        open_transport,
    )
    from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, Unavailable
    from tokentrace.pricing import Rate
    from tokentrace.records import Span

#: Package of each public name.
_PACKAGES = {
    "Budget": "tokentrace.client.money",
    "BudgetExceeded": "tokentrace.client.money",
    "BudgetState": "tokentrace.client.money.shared_budget",
    "BudgetStats": "tokentrace.client.money.shared_budget",
    "BudgetUnavailable": "tokentrace.client.money",
    "BufferTransport": "tokentrace.client.transports",
    "ConfigError": "tokentrace.errors",
    "Conflict": "tokentrace.errors",
    "FileTransport": "tokentrace.client.transports",
    "HttpTransport": "tokentrace.client.transports",
    "Lease": "tokentrace.client.money",
    "LocalTraceService": "tokentrace.client.sessions.local",
    "MultiTransport": "tokentrace.client.transports",
    "NatsTransport": "tokentrace.client.transports",
    "NoopTransport": "tokentrace.client.transports",
    "OpenSpan": "tokentrace.client.tracing",
    "Rate": "tokentrace.pricing",
    "Rejected": "tokentrace.errors",
    "RemoteParent": "tokentrace.client.tracing",
    "Reporter": "tokentrace.client.reporter",
    "SharedBudget": "tokentrace.client.money.shared_budget",
    "Span": "tokentrace.records",
    "SpanFields": "tokentrace.client.tracing",
    "StartedSpan": "tokentrace.client.sessions",
    "Stats": "tokentrace.client.reporter",
    "StdoutTransport": "tokentrace.client.transports",
    "TokentraceError": "tokentrace.errors",
    "Trace": "tokentrace.client.tracing",
    "TraceClient": "tokentrace.client.sessions",
    "TraceContext": "tokentrace.client.track.observed",
    "TraceMiddleware": "tokentrace.client.middleware",
    "TraceService": "tokentrace.client.sessions",
    "Tracer": "tokentrace.client.tracing",
    "TrackedAnthropic": "tokentrace.client.track.wrappers",
    "TrackedOpenAI": "tokentrace.client.track.wrappers",
    "Transport": "tokentrace.client.transports",
    "Unavailable": "tokentrace.errors",
    "WsgiTraceMiddleware": "tokentrace.client.middleware",
    "cost": "tokentrace.client.money",
    "cost_or_none": "tokentrace.client.money",
    "cost_spike": "tokentrace.client.rules",
    "cost_with_rate": "tokentrace.client.money",
    "current": "tokentrace.client.tracing",
    "default_tracer": "tokentrace.client.tracing",
    "error_rate_spike": "tokentrace.client.rules",
    "estimate_cost": "tokentrace.client.money",
    "instrument": "tokentrace.client.track",
    "instrument_celery": "tokentrace.client.middleware",
    "latency_regression": "tokentrace.client.rules",
    "open_transport": "tokentrace.client.transports",
    "quality_drop": "tokentrace.client.rules",
    "set_default_tracer": "tokentrace.client.tracing",
    "start": "tokentrace.client.tracing",
    "suppress": "tokentrace.client.tracing",
    "traced": "tokentrace.client.tracing",
    "tracked": "tokentrace.client.track.tracked",
    "uninstrument": "tokentrace.client.track",
}

__all__ = [
    "Budget",
    "BudgetExceeded",
    "BudgetState",
    "BudgetStats",
    "BudgetUnavailable",
    "BufferTransport",
    "ConfigError",
    "Conflict",
    "FileTransport",
    "HttpTransport",
    "Lease",
    "LocalTraceService",
    "MultiTransport",
    "NatsTransport",
    "NoopTransport",
    "OpenSpan",
    "Rate",
    "Rejected",
    "RemoteParent",
    "Reporter",
    "SharedBudget",
    "Span",
    "SpanFields",
    "StartedSpan",
    "Stats",
    "StdoutTransport",
    "TokentraceError",
    "Trace",
    "TraceClient",
    "TraceContext",
    "TraceMiddleware",
    "TraceService",
    "Tracer",
    "TrackedAnthropic",
    "TrackedOpenAI",
    "Transport",
    "Unavailable",
    "WsgiTraceMiddleware",
    "__version__",
    "cost",
    "cost_or_none",
    "cost_spike",
    "cost_with_rate",
    "current",
    "default_tracer",
    "error_rate_spike",
    "estimate_cost",
    "instrument",
    "instrument_celery",
    "latency_regression",
    "open_transport",
    "quality_drop",
    "set_default_tracer",
    "start",
    "suppress",
    "traced",
    "tracked",
    "uninstrument",
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
