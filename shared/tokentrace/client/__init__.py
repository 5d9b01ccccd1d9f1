"""What applications import."""

from tokentrace.client.trace_client import StartedSpan, TraceClient

__all__ = ["StartedSpan", "TraceClient"]
