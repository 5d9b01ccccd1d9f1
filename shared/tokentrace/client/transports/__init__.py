"""Transports: where a tracer hands its finished spans to. ``open_transport`` makes one from a URL."""

from tokentrace.client.transports.buffer import BufferTransport
from tokentrace.client.transports.contract import Transport
from tokentrace.client.transports.file import FileTransport
from tokentrace.client.transports.http import HttpTransport
from tokentrace.client.transports.multi import MultiTransport
from tokentrace.client.transports.noop import NoopTransport
from tokentrace.client.transports.opening import open_transport
from tokentrace.client.transports.pipeline import NatsTransport, PipelineTransport, ReporterOptions
from tokentrace.client.transports.scores import ScoreQueue
from tokentrace.client.transports.stdout import StdoutTransport

__all__ = [
    "BufferTransport",
    "FileTransport",
    "HttpTransport",
    "MultiTransport",
    "NatsTransport",
    "NoopTransport",
    "PipelineTransport",
    "ReporterOptions",
    "ScoreQueue",
    "StdoutTransport",
    "Transport",
    "open_transport",
]
