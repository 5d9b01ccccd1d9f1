"""``GET /traces/tail``: spans as they arrive, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import docs
from tokentrace.errors import Rejected, Unavailable
from tokentrace_api.live_tail import Tail
from tokentrace_api.parameters import parameters, parse_count
from tokentrace_api.routes.searching import SEARCHED, parse_search

if TYPE_CHECKING:
    from tokentrace_api.service import Api

DEFAULT_RATE, MAX_RATE = 50, 1000
MAX_TAILS = 100
#: Without anything to say a line is sent this often, so that nobody in between takes the connection for dead.
_BEAT_S = 10.0
_TURN_S = 0.5
_TYPE = "text/event-stream"


def routes(api: Api) -> list[BaseRoute]:
    """The route of the tail."""

    async def tail(request: Request) -> Response:
        given = parameters(request, (*SEARCHED, "rate"), prefix="attr.")
        search = parse_search(given)
        rate = parse_count(given, "rate", DEFAULT_RATE, most=MAX_RATE)
        if rate == 0:
            raise Rejected("rate: must be over 0")
        if len(api.tails) >= MAX_TAILS:
            raise Unavailable(f"tail: {MAX_TAILS} are followed already", retry_after_s=5)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(media_type=_TYPE, headers=headers)
        followed = Tail(search, rate, time.time_ns())
        # Counted at once: of many who come in the same moment none slips past the limit.
        api.tails.add(followed)
        return StreamingResponse(_events(api, followed), media_type=_TYPE, headers=headers)

    return [Route("/traces/tail", tail)]


async def _events(api: Api, tail: Tail) -> AsyncIterator[bytes]:
    try:
        yield b": following\n\n"
        told, spoke = 0, time.monotonic()
        while not api.stopping.is_set():
            spans = await tail.take(_TURN_S)
            parts = [_event("span", docs.render_span(span)) for span in spans]
            if tail.dropped > told:
                told = tail.dropped
                parts.append(_event("dropped", {"dropped": told}))
            if not parts and time.monotonic() - spoke > _BEAT_S:
                parts.append(b": nothing new\n\n")
            if parts:
                spoke = time.monotonic()
                yield b"".join(parts)
            await asyncio.sleep(0)
    finally:
        api.tails.discard(tail)


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
