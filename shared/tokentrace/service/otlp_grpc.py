"""
OTLP over gRPC, with the extra ``grpc``: the three ``Export`` methods of OpenTelemetry's collector.

Requests are passed on as they came, so that large ones are decoded as those over HTTP are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import grpc.aio

from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.admit import Admission
from tokentrace.service.credentials import OverRate
from tokentrace.service.otlp_answers import RETRY_AFTER_S, Signal, code_of, encode_answer, encode_retry
from tokentrace.service.otlp_exports import Exports

log = logging.getLogger(__name__)

#: How long the end of the server waits for requests that are not answered yet, seconds.
_GRACE_S = 15.0
_SERVICES: dict[str, Signal] = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
#: Trailer with the encoded ``google.rpc.Status``, in which exporters look for the time to wait.
_DETAILS = "grpc-status-details-bin"


class GrpcServer:
    """
    A server that is bound to *addr*, without encryption.

    Attributes:
        addr: ``host:port``.

    Raises:
        Unavailable: The address is in use, unknown, or not allowed for this process.
    """

    def __init__(self, addr: tuple[str, int], max_bytes: int) -> None:
        host, port = addr
        self.addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = grpc.aio.server(
            compression=grpc.Compression.NoCompression,
            options=[
                ("grpc.max_receive_message_length", min(max_bytes, 2**31 - 1)),
                # Two programs could listen on one port, and each would get a part of the requests.
                ("grpc.so_reuseport", 0),
            ],
        )
        try:
            bound = self._server.add_insecure_port(self.addr)
        except RuntimeError as exc:
            raise Unavailable(f"cannot listen on {self.addr} for gRPC") from exc
        if not bound:
            raise Unavailable(f"cannot listen on {self.addr} for gRPC")

    async def serve(self, exports: Exports, admission: Admission, stopping: asyncio.Event) -> None:
        """Answer requests until *stopping* is set, then finish those under way for at most 15 s."""
        calls = _Calls(exports, admission)
        self._server.add_generic_rpc_handlers([calls.handler(*service) for service in _SERVICES.items()])
        await self._server.start()
        try:
            await stopping.wait()
        finally:
            await self._server.stop(_GRACE_S)


class _Calls:
    """Answers calls."""

    def __init__(self, exports: Exports, admission: Admission) -> None:
        self._exports, self._admission = exports, admission

    def handler(self, service: str, signal: Signal) -> Any:
        """Return what answers the method ``Export`` of *service*, whose messages stay encoded."""

        async def export(body: bytes, context: Any) -> bytes:
            return await self._export(signal, body, context)

        return grpc.method_handlers_generic_handler(service, {"Export": grpc.unary_unary_rpc_method_handler(export)})

    async def _export(self, signal: Signal, body: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata() or ())
        authorization = str(sent.get("authorization", "")).encode()
        try:
            self._admission.authorize(authorization, "ingest", "Export", basic=True)
        except OverRate as exc:
            await _try_again(context, str(exc))
        except Rejected as exc:
            await context.abort(_CODES[code_of(exc.status)], str(exc))
        try:
            with self._exports.room.share() as share:
                share.take(len(body))
                rejected, message = await self._exports.export(signal, "protobuf", body)
        except Rejected as exc:
            self._exports.count_refused()
            await context.abort(_CODES[code_of(exc.status)], str(exc))
        except Unavailable as exc:
            await _try_again(context, str(exc))
        except Exception as exc:
            log.error("OTLP over gRPC failed", exc_info=exc)
            await _try_again(context, "internal error")
        return encode_answer("protobuf", signal, rejected, message)


async def _try_again(context: Any, text: str) -> None:
    details = encode_retry(code_of(503), text, RETRY_AFTER_S)
    await context.abort(grpc.StatusCode.UNAVAILABLE, text, ((_DETAILS, details),))
