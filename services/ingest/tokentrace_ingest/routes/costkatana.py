"""``POST /api/traces/*``: what Cost Katana's clients send."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Place, SpanInput, has_ended
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Batch, Span, Started, is_id
from tokentrace.service.body import read_body
from tokentrace.service.web import Endpoint, reply
from tokentrace_ingest.open_spans import OpenSpan
from tokentrace_ingest.other_records import MAX_CONTENT_BYTES
from tokentrace_ingest.routes.checks import check_count, check_sizes, request_id

if TYPE_CHECKING:
    from tokentrace_ingest.service import Ingest

WAY = "costkatana"
#: Spans of one request that are opened or ended at once: their writes share the broker's fsyncs.
_TOGETHER = 64


def routes(ingest: Ingest) -> list[BaseRoute]:
    """The routes of a span's life, and of what was said in it."""

    async def start(request: Request) -> Response:
        body = await read_body(request, ingest.config.max_body_bytes)
        given = costkatana.decode_start(body)
        seed = await request_id(ingest, request, body, has_ids=bool(given.trace_id))
        plan = await _plan(ingest, request, [given], seed)
        opened = await ingest.open_spans.start(plan.started[0], _early(plan, 0))
        return _started(opened.started.span_id, opened.place.session_id)

    async def end(request: Request) -> Response:
        span_id = request.path_params["trace_id"]
        given = costkatana.decode_end(await read_body(request, ingest.config.max_body_bytes))
        await ingest.open_spans.end(span_id, given, time.time_ns())
        return reply({"traceId": span_id, "status": given.status or "ok"})

    async def ingest_spans(request: Request) -> Response:
        body = await read_body(request, ingest.config.max_body_bytes)
        inputs = costkatana.decode_ingest(body)
        check_count(len(inputs), ingest.config.max_batch_size)
        seed = await request_id(ingest, request, body, has_ids=all(given.trace_id for given in inputs))
        plan = await _plan(ingest, request, inputs, seed)
        await _take_in(ingest, plan, seed, len(body))
        first = plan.started[0] if plan.started else None
        answer = {"traceId": first.span_id, "sessionId": first.session_id} if first else {}
        return reply({"accepted": len(inputs), **answer})

    async def record_message(request: Request) -> Response:
        body = await read_body(request, ingest.config.max_body_bytes)
        given = costkatana.decode_message(body)
        size = len(given.content.encode())
        if size > MAX_CONTENT_BYTES:
            raise Rejected(f"content: {size} bytes, at most {MAX_CONTENT_BYTES} are taken", status=413)
        seed = await request_id(ingest, request, body, has_ids=bool(given.message_id))
        found = await ingest.open_spans.find([given.trace_id] if given.trace_id else [])
        trace_id = next((opened.place.trace_id for opened in found.values()), "")
        message = costkatana.message_of(given, _new_id(seed, 0, "message"), trace_id, time.time_ns())
        cleaned = await ingest.accept(Batch(id=seed, messages=[message]), WAY)
        shown = costkatana.render_message(cleaned.parts[0].messages[0])
        return reply({name: shown[name] for name in _RECEIPT})

    def route(path: str, endpoint: Endpoint) -> Route:
        async def answer(request: Request) -> Response:
            ingest.check_backpressure()
            try:
                return await endpoint(request)
            except Rejected:
                ingest.count_refused(WAY)
                raise

        return Route(path, answer, methods=["POST"])

    return [
        route("/api/traces/start", start),
        route("/api/traces/ingest", ingest_spans),
        route("/api/traces/messages", record_message),
        route("/api/traces/{trace_id:path}/end", end),
    ]


_RECEIPT = ("messageId", "sessionId", "traceId", "role", "isRedacted", "createdAt")


def _started(span_id: str, session_id: str) -> Response:
    headers = {"X-Trace-Id": span_id, "X-Session-Id": session_id}
    return reply({"traceId": span_id, "sessionId": session_id}, headers=headers)


class _Plan(NamedTuple):
    """
    What a request's spans come to, before anything is written.

    Attributes:
        inputs, started: As they came, and the record of each one's start.
        known: Of them and of their parents, what was started before.
        arrived_ns: When the request was read.
    """

    inputs: list[SpanInput]
    started: list[Started]
    known: dict[str, OpenSpan]
    arrived_ns: int


async def _plan(ingest: Ingest, request: Request, inputs: list[SpanInput], seed: str) -> _Plan:
    """
    Ids, traces and sessions of *inputs*; all that is made up is a function of *seed*, so a repetition makes the same.

    Raises:
        Rejected: Names the index.
    """
    arrived_ns = time.time_ns()
    caller = request.headers.get("x-service-name", "").strip()
    session_id = request.headers.get("x-session-id", "").strip()
    if session_id and not is_id(session_id):
        raise Rejected(f"X-Session-Id: {shorten(session_id)!r} is not 1-256 printable ASCII characters")
    ids = [given.trace_id or _new_id(seed, index, "span") for index, given in enumerate(inputs)]
    asked = [given.trace_id for given in inputs if given.trace_id]
    parents = [given.parent_id for given in inputs if given.parent_id]
    known = await ingest.open_spans.find([*asked, *parents])
    places: dict[str, Place] = {span_id: opened.place for span_id, opened in known.items()}
    where = costkatana.place(
        list(zip(ids, inputs, strict=True)), places, lambda index: _new_id(seed, index, "session"), session_id
    )
    started = [
        costkatana.start_of(given, span_id, place, arrived_ns, caller)
        for given, span_id, place in zip(inputs, ids, where, strict=True)
    ]
    return _Plan(inputs, started, known, arrived_ns)


def _early(plan: _Plan, index: int) -> Span | None:
    """What a start tells already of its end; None = nothing."""
    given = plan.inputs[index]
    if not (given.model or given.ai_model or given.tokens or given.error or given.cost_usd is not None):
        return None
    return costkatana.end_of(plan.started[index], given, plan.arrived_ns)


async def _take_in(ingest: Ingest, plan: _Plan, seed: str, body_bytes: int) -> None:
    """
    Store the spans of one ``ingest``: all that can be wrong is found before anything is written.

    Finished spans go into one batch; one that was started before is ended; the others are opened.
    """
    finished: list[Span] = []
    opening: list[tuple[Started, Span | None]] = []
    ending: list[tuple[str, SpanInput]] = []
    for index, (given, started) in enumerate(zip(plan.inputs, plan.started, strict=True)):
        opened = plan.known.get(started.span_id)
        try:
            if not has_ended(given):
                opening.append((started, _early(plan, index)))
            elif opened is not None:
                ingest.open_spans.check_end(opened, given, plan.arrived_ns)
                ending.append((started.span_id, given))
            else:
                finished.append(costkatana.end_of(started, given, plan.arrived_ns))
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}", status=exc.status) from exc
    check_sizes(finished, body_bytes)
    await _together(ingest.open_spans.start(started, early) for started, early in opening)
    if finished:
        await ingest.accept(Batch(id=seed, spans=finished), WAY, size_bytes=body_bytes)
    await _together(ingest.open_spans.end(span_id, given, plan.arrived_ns) for span_id, given in ending)


async def _together(work: Iterable[Awaitable[object]]) -> None:
    """All of *work*, some at a time; the first failure is raised once everything has come to an end."""
    room = asyncio.Semaphore(_TOGETHER)

    async def do(one: Awaitable[object]) -> None:
        async with room:
            await one

    for outcome in await asyncio.gather(*map(do, work), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _new_id(seed: str, index: int, what: str) -> str:
    """A version 4 UUID that is a function of the request."""
    digest = hashlib.sha256(f"{seed}:{index}:{what}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))
