"""``POST /api/traces/*``: spans and messages of Cost Katana's clients."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Awaitable, Iterable
from typing import Literal, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bus import KeyValue
from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Place, SpanInput, has_ended
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Batch, Span, Started, is_id
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.ingest_operations import COSTKATANA, SpanEnded, SpanId, SpansIngested, SpanStarted
from tokentrace.service.web import Endpoint, reply
from tokentrace_ingest.open_spans import OpenSpan, OpenSpans
from tokentrace_ingest.other_records import MAX_CONTENT_BYTES
from tokentrace_ingest.routes.checks import check_count, check_sizes, request_id
from tokentrace_ingest.routes.intake import Intake, Limits

WAY = "costkatana"
#: Spans of one request that are opened or ended concurrently, so that their writes share the broker's fsyncs.
_TOGETHER = 64


def router(intake: Intake, open_spans: OpenSpans, keys: KeyValue, limits: Limits) -> Router:
    """
    Return the routes of a span's life, and of the messages in it.

    Args:
        keys: The bucket of Idempotency-Keys.
    """
    routes = Router("Cost Katana", lenient=True)

    async def start(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        span = costkatana.decode_start(body)
        seed = await request_id(keys, request, body, has_ids=bool(span.trace_id))
        plan = await _plan(open_spans, request, [span], seed)
        opened = await open_spans.start(plan.started[0], _early(plan, 0))
        return _started(opened.started.span_id, opened.place.session_id)

    async def ingest_spans(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        inputs = costkatana.decode_ingest(body)
        check_count(len(inputs), limits.spans)
        seed = await request_id(keys, request, body, has_ids=all(span.trace_id for span in inputs))
        plan = await _plan(open_spans, request, inputs, seed)
        await _take_in(intake, open_spans, plan, seed, len(body))
        answer = SpansIngested(accepted=len(inputs))
        if plan.started:
            answer.trace_id, answer.session_id = plan.started[0].span_id, plan.started[0].session_id
        return reply(answer)

    async def record_message(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        message_input = costkatana.decode_message(body)
        size = len(message_input.content.encode())
        if size > MAX_CONTENT_BYTES:
            raise Rejected(f"content: {size} bytes, at most {MAX_CONTENT_BYTES} are taken", status=413)
        seed = await request_id(keys, request, body, has_ids=bool(message_input.message_id))
        opened_by_id = await open_spans.find([message_input.trace_id] if message_input.trace_id else [])
        trace_id = next((opened.place.trace_id for opened in opened_by_id.values()), "")
        message = costkatana.message_of(message_input, _new_id(seed, 0, "message"), trace_id, time.time_ns())
        cleaned = await intake.accept(Batch(id=seed, messages=[message]), WAY)
        shown = costkatana.render_message(cleaned.parts[0].messages[0])
        return reply({name: shown[name] for name in _RECEIPT})

    def counted(endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            intake.check_backpressure()
            try:
                return await endpoint(request)
            except Rejected:
                intake.count_refused(WAY)
                raise

        return answer

    for path, endpoint in (
        ("/api/traces/start", start),
        ("/api/traces/ingest", ingest_spans),
        ("/api/traces/messages", record_message),
    ):
        routes.post(path, **COSTKATANA[path])(counted(endpoint))

    end_path = "/api/traces/{trace_id:path}/end"

    @routes.post(end_path, **COSTKATANA[end_path])
    async def end(request: Request, trace_id: SpanId) -> Response:
        async def answer(request: Request) -> Response:
            outcome = costkatana.decode_end(await read_body(request, limits.body_bytes))
            await open_spans.end(trace_id, outcome, time.time_ns())
            return reply(SpanEnded(trace_id=trace_id, status=_ended_as(outcome.status)))

        return await counted(answer)(request)

    return routes


def _ended_as(status: str | None) -> Literal["ok", "error", "timeout"]:
    return "error" if status == "error" else "timeout" if status == "timeout" else "ok"


_RECEIPT = ("messageId", "sessionId", "traceId", "role", "isRedacted", "createdAt")


def _started(span_id: str, session_id: str) -> Response:
    headers = {"X-Trace-Id": span_id, "X-Session-Id": session_id}
    return reply(SpanStarted(trace_id=span_id, session_id=session_id), headers=headers)


class _Plan(NamedTuple):
    """
    The spans of a request, before anything is written.

    Attributes:
        inputs, started: The spans as they were sent, and the record of each start.
        known: By id, those of these spans and of their parents that were started before.
        arrived_ns: When the request was read, Unix nanoseconds.
    """

    inputs: list[SpanInput]
    started: list[Started]
    known: dict[str, OpenSpan]
    arrived_ns: int


async def _plan(open_spans: OpenSpans, request: Request, inputs: list[SpanInput], seed: str) -> _Plan:
    """
    Choose ids, traces and sessions for *inputs*; new ids are a function of *seed*, so a repetition chooses the same.

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
    known = await open_spans.find([*asked, *parents])
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
    """Return the finished span as far as the start describes it; None when it says nothing of the end."""
    span = plan.inputs[index]
    if not (span.model or span.ai_model or span.tokens or span.error or span.cost_usd is not None):
        return None
    return costkatana.end_of(plan.started[index], span, plan.arrived_ns)


async def _take_in(intake: Intake, open_spans: OpenSpans, plan: _Plan, seed: str, body_bytes: int) -> None:
    """
    Store the spans of one ``ingest`` request; every check is made before anything is written.

    Finished spans go into one batch; a span that was started before is ended; the others are opened.
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
                open_spans.check_end(opened, given, plan.arrived_ns)
                ending.append((started.span_id, given))
            else:
                finished.append(costkatana.end_of(started, given, plan.arrived_ns))
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}", status=exc.status) from exc
    check_sizes(finished, body_bytes)
    await _together(open_spans.start(started, early) for started, early in opening)
    if finished:
        await intake.accept(Batch(id=seed, spans=finished), WAY, size_bytes=body_bytes)
    await _together(open_spans.end(span_id, given, plan.arrived_ns) for span_id, given in ending)


async def _together(work: Iterable[Awaitable[object]]) -> None:
    """Await all of *work*, up to 64 at a time; raise the first failure once all have ended."""
    room = asyncio.Semaphore(_TOGETHER)

    async def do(item: Awaitable[object]) -> None:
        async with room:
            await item

    for outcome in await asyncio.gather(*map(do, work), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _new_id(seed: str, index: int, what: str) -> str:
    """Return a version 4 UUID that is a function of the request."""
    digest = hashlib.sha256(f"{seed}:{index}:{what}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))
