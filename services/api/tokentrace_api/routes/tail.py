"""``GET /traces/tail``: spans as they arrive, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from msgspec import Meta
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tokentrace.dialect import docs
from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.contract import Answer, Router, operation
from tokentrace_api.live_tail import Tail, Tails
from tokentrace_api.parameters import Count
from tokentrace_api.routes.answers import SPAN_EXAMPLE
from tokentrace_api.routes.searching import SearchParams

DEFAULT_RATE, MAX_RATE = 50, 1000
MAX_TAILS = 100
#: Seconds without an event after which a comment line is sent, so that proxies do not close the connection.
_BEAT_S = 10.0
_TURN_S = 0.5
_TYPE = "text/event-stream"


class TailParams(SearchParams):
    """Which spans are sent, and how many."""

    rate: Count = Field(
        DEFAULT_RATE, description=f"Maximum number of spans per second; over {MAX_RATE} counts as {MAX_RATE}."
    )


EventStream = Annotated[str, Meta(description="Server-sent events.")]
_TAIL = operation(
    "tailSpans",
    "Follow spans as they arrive",
    """
    Server-sent events, until the client disconnects. `span` holds a span as in `GET /traces/{trace_id}`, but with
    `trace_id` and without `depth`. `dropped` says how many spans were left out so far, because they exceeded `rate` or
    the client read too slowly.
    """,
    Answer(
        EventStream,
        "The stream.",
        f": following\n\nevent: span\ndata: {msgspec.json.encode(SPAN_EXAMPLE).decode()}\n\n",
        media=_TYPE,
    ),
    errors={400: "rate: must be over 0", 503: f"tail: {MAX_TAILS} are followed already"},
)


def router(tails: Tails, is_stopping: Callable[[], bool], now_ns: Callable[[], int]) -> Router:
    """Return the route; streams end once *is_stopping* returns True; *now_ns* returns the broker's time."""
    routes = Router("traces")

    @routes.get("/traces/tail", **_TAIL)
    async def tail(request: Request, params: Annotated[TailParams, QueryParams()]) -> Response:
        rate = min(params.rate, MAX_RATE)
        if rate == 0:
            raise Rejected("rate: must be over 0")
        if len(tails) >= MAX_TAILS:
            raise Unavailable(f"tail: {MAX_TAILS} are followed already", retry_after_s=5)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(media_type=_TYPE, headers=headers)
        followed = Tail(params.search(), rate, now_ns())
        # Added before the first await, so that simultaneous requests cannot pass the limit.
        tails.add(followed)
        return StreamingResponse(_events(tails, followed, is_stopping), media_type=_TYPE, headers=headers)

    return routes


async def _events(tails: Tails, tail: Tail, is_stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    try:
        yield b": following\n\n"
        reported, sent_at = 0, time.monotonic()
        while not is_stopping():
            spans = await tail.take(_TURN_S)
            parts = [_event("span", docs.render_span(span)) for span in spans]
            if tail.dropped > reported:
                reported = tail.dropped
                parts.append(_event("dropped", {"dropped": reported}))
            if not parts and time.monotonic() - sent_at > _BEAT_S:
                parts.append(b": nothing new\n\n")
            if parts:
                sent_at = time.monotonic()
                yield b"".join(parts)
            await asyncio.sleep(0)
    finally:
        tails.discard(tail)


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
