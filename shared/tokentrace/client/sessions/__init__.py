"""
Sessions, with the methods of Cost Katana's SDK: ``TraceClient`` sends them, ``local.LocalTraceService`` keeps them.

``local`` is not imported here, because a program that sends its sessions needs no prices and no redaction.
"""

from tokentrace.client.sessions.client import TraceClient
from tokentrace.client.sessions.protocol import TraceService
from tokentrace.client.sessions.words import StartedSpan

__all__ = ["StartedSpan", "TraceClient", "TraceService"]
