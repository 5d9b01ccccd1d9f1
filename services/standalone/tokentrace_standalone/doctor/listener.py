"""Listens for OTLP over HTTP, shows each request, and passes it on unchanged if there is a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokentrace.errors import Rejected
from tokentrace.service.body import read_raw
from tokentrace.service.listen import bind, parse_addr, serve_http
from tokentrace.service.otlp_answers import (
    MEDIA,
    RETRY_AFTER_S,
    Encoding,
    code_of,
    encode_answer,
    encode_status,
    encoding_of,
)
from tokentrace.shown import shown_url
from tokentrace_standalone.api_client import check_http_url
from tokentrace_standalone.doctor.payload import MAX_BYTES, PATHS, Payload, decode_payload

#: The port of OTLP over HTTP.
PORT = 4318
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: The exporters give up after ten seconds.
_FORWARD_S = 30.0
#: Headers that are about one connection, or that the client computes anew.
_OF_CONNECTION = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: Shows a request: (method and path, what it holds or why it is no OTLP, status of the receiver; None = not passed on).
Show = Callable[[str, Payload | Rejected, int | None], None]


async def listen(
    addr: str, forward: str | None, show: Show, started: Callable[[str], None], stop: asyncio.Event
) -> None:
    """
    Serve until *stop* is set.

    Args:
        addr: ``host:port``, ``:port`` or ``port``; without a host, 127.0.0.1.
        forward: Base URL to which requests are passed on, their path appended; None = they are answered here.
        show: Called with each request after its answer is known.
        started: Called once with the address.

    Raises:
        ConfigError: *addr* or *forward* is invalid.
        Unavailable: The address cannot be used.
    """
    if forward is not None:
        check_http_url("--forward", forward)
    sock = bind(parse_addr(addr, PORT))
    # A program that is started now may connect as soon as it reads the address.
    sock.listen()
    host, port = sock.getsockname()[:2]
    async with httpx.AsyncClient(timeout=_FORWARD_S, follow_redirects=False, trust_env=False) as client:

        async def answer(request: Request) -> Response:
            raw = await read_raw(request, MAX_BYTES)
            found = _decoded(raw, request)
            status = None
            if forward is None:
                response = _own_answer(request, found)
            else:
                response = await _passed_on(client, forward, request, raw)
                status = response.status_code
            show(f"{request.method} {request.url.path}", found, status)
            return response

        async def refuse(request: Request, exc: Exception) -> Response:
            assert isinstance(exc, Rejected)
            show(f"{request.method} {request.url.path}", exc, None)
            return _status(request, exc.status, str(exc))

        app = Starlette(
            routes=[Route("/{path:path}", answer, methods=list(_METHODS))], exception_handlers={Rejected: refuse}
        )
        started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await serve_http(app, [sock], stopping=stop)


def _decoded(raw: bytes, request: Request) -> Payload | Rejected:
    """Return what the body holds, or why it is no OTLP request at this path; never raises, so that it is passed on."""
    try:
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            return Rejected(f"Content-Encoding: {encoding[:40]!r} is not supported, only gzip is", status=415)
        return decode_payload(raw, request.url.path)
    except Rejected as exc:
        return exc


def _own_answer(request: Request, found: Payload | Rejected) -> Response:
    if not request.url.path.endswith(tuple(PATHS.values())):
        return _status(request, 404, "OTLP is posted to /v1/traces, /v1/logs or /v1/metrics")
    if isinstance(found, Rejected):
        return _status(request, found.status, str(found))
    encoding = _encoding(request)
    return Response(encode_answer(encoding, found.signal), media_type=MEDIA[encoding])


async def _passed_on(client: httpx.AsyncClient, base: str, request: Request, raw: bytes) -> Response:
    """Send the request to the receiver as it came, and return its answer as it came."""
    # As it came: the decoded path would lose escaped characters.
    path = (request.scope.get("raw_path") or request.url.path.encode()).decode("latin-1")
    query = f"?{request.url.query}" if request.url.query else ""
    try:
        sent = httpx.Request(
            request.method,
            f"{base.rstrip('/')}{path}{query}",
            headers=_passing(request.headers.raw),
            content=raw if raw or request.method in ("POST", "PUT", "PATCH") else None,
        )
        answer = await client.send(sent, stream=True)
        try:
            body = b"".join([part async for part in answer.aiter_raw()])
        finally:
            await answer.aclose()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        text = f"{shown_url(base)} does not answer: {type(exc).__name__}"
        return _status(request, 503, text, {"Retry-After": str(RETRY_AFTER_S)})
    response = Response(body, answer.status_code)
    length = [(name, value) for name, value in response.raw_headers if name == b"content-length"]
    response.raw_headers = [*_passing(answer.headers.raw), *length]
    return response


def _passing(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the *headers* that are passed on: all but those of the connection."""
    named = {
        name.strip().lower() for key, value in headers if key.lower() == b"connection" for name in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in _OF_CONNECTION | named]


def _status(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as ``google.rpc.Status`` in the encoding of the request."""
    encoding = _encoding(request)
    return Response(encode_status(encoding, code_of(status), message), status, headers, MEDIA[encoding])


def _encoding(request: Request) -> Encoding:
    """Return the encoding of the request, in which it is answered; JSON if it names none."""
    return encoding_of(request.headers.get("content-type", "")) or "json"
