"""Tracking of calls to providers, through the clients of their SDKs. ``seam`` and ``body`` say how it works."""

from tokentrace.client.tracing import suppress
from tokentrace.client.track.instrument import instrument, uninstrument

__all__ = ["instrument", "suppress", "uninstrument"]
