"""Tracers, traces and open spans, and the context that carries them over tasks, threads and programs."""

from tokentrace.client.fields import SpanFields
from tokentrace.client.tracing.context import is_suppressed, suppress
from tokentrace.client.tracing.default import default_tracer, set_default_tracer, start, traced
from tokentrace.client.tracing.failures import failure
from tokentrace.client.tracing.open_span import OpenSpan
from tokentrace.client.tracing.propagate import RemoteParent
from tokentrace.client.tracing.starting import TraceFields
from tokentrace.client.tracing.trace import Parent, Trace, current
from tokentrace.client.tracing.tracer import Tracer

__all__ = [
    "OpenSpan",
    "Parent",
    "RemoteParent",
    "SpanFields",
    "Trace",
    "TraceFields",
    "Tracer",
    "current",
    "default_tracer",
    "failure",
    "is_suppressed",
    "set_default_tracer",
    "start",
    "suppress",
    "traced",
]
