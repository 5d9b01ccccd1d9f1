"""``POST /api/traces/*``: spans and messages of Cost Katana's clients."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Place, SpanInput, has_ended
from tokentrace.errors import Rejected, quoted
from tokentrace.records import Batch, Span, Started, is_id
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.ingest_operations import COSTKATANA, SpanEnded, SpanId, SpansIngested, SpanStarted
from tokentrace.service.web import Endpoint, reply
from tokentrace_ingest.open_spans import OpenSpan, OpenSpans
from tokentrace_ingest.other_records import MAX_CONTENT_BYTES
from tokentrace_ingest.routes.checks import RequestKeys, check_count, check_sizes, request_id
from tokentrace_ingest.routes.intake import Intake, Limits

_SOURCE = "costkatana"
#: Limit of spans of one request that are opened or ended concurrently. Concurrent writes share fsyncs of the broker.
_TOGETHER = 64
#: How often the places of a request are chosen anew because other requests claim places at the same time.
_TRIES = 3


def router(intake: Intake, open_spans: OpenSpans, keys: RequestKeys, limits: Limits) -> Router:
    """
    Return the routes that start, end and ingest spans, and that record messages.

    Args:
        keys: The Idempotency-Keys of the last day.
    """
    routes = Router("Cost Katana", lenient=True)

    async def start(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        span = costkatana.decode_start(body)
        seed = await request_id(keys, request, body, has_ids=bool(span.trace_id))
        plan = await _plan(open_spans, request, [span], seed, intake.now_ns())
        opened = await open_spans.start(plan.started[0], _early(plan, 0))
        return _started(opened.started.span_id, opened.place.session_id)

    async def ingest_spans(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        inputs = costkatana.decode_ingest(body)
        check_count(len(inputs), limits.spans)
        seed = await request_id(keys, request, body, has_ids=all(span.trace_id for span in inputs))
        plan = await _plan(open_spans, request, inputs, seed, intake.now_ns())
        await _take_in(intake, open_spans, plan, seed, len(body))
        ingested = SpansIngested(accepted=len(inputs))
        if plan.started:
            ingested.trace_id, ingested.session_id = plan.started[0].span_id, plan.started[0].session_id
        return reply(ingested)

    async def record_message(request: Request) -> Response:
        body = await read_body(request, limits.body_bytes)
        message_input = costkatana.decode_message(body)
        size = len(message_input.content.encode())
        if size > MAX_CONTENT_BYTES:
            raise Rejected(f"content: {size} bytes, at most {MAX_CONTENT_BYTES} are taken", status=413)
        seed = await request_id(keys, request, body, has_ids=bool(message_input.message_id))
        opened_by_id = await open_spans.find([message_input.trace_id] if message_input.trace_id else [])
        trace_id = next((opened.place.trace_id for opened in opened_by_id.values()), "")
        message = costkatana.message_of(message_input, _new_id(seed, 0, "message"), trace_id, intake.now_ns())
        cleaned = await intake.accept(Batch(id=seed, messages=[message]), _SOURCE)
        shown = costkatana.render_message(cleaned.parts[0].messages[0])
        return reply({name: shown[name] for name in _MESSAGE_FIELDS})

    def counted(endpoint: Endpoint) -> Endpoint:
        async def call(request: Request) -> Response:
            intake.check_backpressure()
            try:
                return await endpoint(request)
            except Rejected:
                intake.count_refused(_SOURCE)
                raise

        return call

    for path, endpoint in (
        ("/api/traces/start", start),
        ("/api/traces/ingest", ingest_spans),
        ("/api/traces/messages", record_message),
    ):
        routes.post(path, **COSTKATANA[path])(counted(endpoint))

    end_path = "/api/traces/{trace_id:path}/end"

    @routes.post(end_path, **COSTKATANA[end_path])
    async def end(request: Request, trace_id: SpanId) -> Response:
        async def end_span(request: Request) -> Response:
            outcome = costkatana.decode_end(await read_body(request, limits.body_bytes))
            await open_spans.end(trace_id, outcome, intake.now_ns())
            return reply(SpanEnded(trace_id=trace_id, status=_ended_as(outcome.status)))

        return await counted(end_span)(request)

    return routes


def _ended_as(status: str | None) -> Literal["ok", "error", "timeout"]:
    return "error" if status == "error" else "timeout" if status == "timeout" else "ok"


#: The fields of a recorded message that its sender gets back.
_MESSAGE_FIELDS = ("messageId", "sessionId", "traceId", "role", "isRedacted", "createdAt")


def _started(span_id: str, session_id: str) -> Response:
    headers = {"X-Trace-Id": span_id, "X-Session-Id": session_id}
    return reply(SpanStarted(trace_id=span_id, session_id=session_id), headers=headers)


class _Plan(NamedTuple):
    """
    The spans of a request, before anything is written.

    Attributes:
        inputs: The spans as they were sent.
        started: The record of the start of each span, in the same order.
        known: Span id -> entry, for those of these spans and their parents that were started before.
        arrived_ns: When the request was read, Unix nanoseconds.
    """

    inputs: list[SpanInput]
    started: list[Started]
    known: dict[str, OpenSpan]
    arrived_ns: int


async def _plan(open_spans: OpenSpans, request: Request, inputs: list[SpanInput], seed: str, arrived_ns: int) -> _Plan:
    """
    Choose ids, traces and sessions for *inputs*; new ids are a function of *seed*, so a repeated request gets the same.

    Raises:
        Rejected: The header X-Session-Id is not an id, or the parents of a span form a cycle.
    """
    caller = request.headers.get("x-service-name", "").strip()
    session_id = request.headers.get("x-session-id", "").strip()
    if session_id and not is_id(session_id):
        raise Rejected(f"X-Session-Id: {quoted(session_id)} is not 1-256 printable ASCII characters")
    ids = [span.trace_id or _new_id(seed, index, "span") for index, span in enumerate(inputs)]
    sent_ids = [span.trace_id for span in inputs if span.trace_id]
    parents = [span.parent_id for span in inputs if span.parent_id]
    known = await open_spans.find([*sent_ids, *parents])
    known_places: dict[str, Place] = {span_id: opened.place for span_id, opened in known.items()}
    known_places |= await open_spans.places_of({*sent_ids, *parents} - known.keys())
    spans = list(zip(ids, inputs, strict=True))
    for _ in range(_TRIES):
        places = costkatana.place(spans, known_places, lambda index: _new_id(seed, index, "session"), session_id)
        claimed_before = await open_spans.claim(_claims(spans, places, known_places))
        if not claimed_before:
            break
        # Another request placed a relative of these spans in the meantime.
        known_places |= claimed_before
    started = [
        costkatana.start_of(span, span_id, place, arrived_ns, caller)
        for span, span_id, place in zip(inputs, ids, places, strict=True)
    ]
    return _Plan(inputs, started, known, arrived_ns)


def _claims(
    spans: Sequence[tuple[str, SpanInput]], places: Sequence[Place], known: Mapping[str, Place]
) -> dict[str, Place]:
    """Return the places to claim: those of parents that are not known, and of ended children."""
    claims = {}
    own = dict(spans)
    for (span_id, span), place in zip(spans, places, strict=True):
        if span.parent_id and span_id not in known and has_ended(span):
            claims[span_id] = place
        if span.parent_id and span.parent_id not in known and span.parent_id not in own:
            claims[span.parent_id] = place
    return claims


def _early(plan: _Plan, index: int) -> Span | None:
    """Return a span with the model, tokens, cost and error that a start gives; None if it gives none of them."""
    span = plan.inputs[index]
    if not (span.model or span.ai_model or span.tokens or span.error or span.cost_usd is not None):
        return None
    return costkatana.end_of(plan.started[index], span, plan.arrived_ns)


async def _take_in(intake: Intake, open_spans: OpenSpans, plan: _Plan, seed: str, body_bytes: int) -> None:
    """
    Store the spans of one ``ingest`` request.

    A span without an end is opened, a span that was started before is ended, and the others go into one batch. Ends are
    checked before anything is written; starts are checked when they are written.
    """
    finished: list[Span] = []
    opening: list[tuple[Started, Span | None]] = []
    ending: list[tuple[str, SpanInput]] = []
    for index, (span, started) in enumerate(zip(plan.inputs, plan.started, strict=True)):
        opened = plan.known.get(started.span_id)
        try:
            if not has_ended(span):
                opening.append((started, _early(plan, index)))
            elif opened is not None:
                open_spans.check_end(opened, span, plan.arrived_ns)
                ending.append((started.span_id, span))
            else:
                finished.append(costkatana.end_of(started, span, plan.arrived_ns))
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}", status=exc.status) from exc
    check_sizes(finished, body_bytes)
    await _together(open_spans.start(started, early) for started, early in opening)
    if finished:
        await intake.accept(Batch(id=seed, spans=finished), _SOURCE, size_bytes=body_bytes)
    await _together(open_spans.end(span_id, span, plan.arrived_ns) for span_id, span in ending)


async def _together(work: Iterable[Awaitable[object]]) -> None:
    """Await all of *work*, up to 64 at a time; once all have ended, raise the first failure in the order of *work*."""
    room = asyncio.Semaphore(_TOGETHER)

    async def do(item: Awaitable[object]) -> None:
        async with room:
            await item

    for outcome in await asyncio.gather(*map(do, work), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _new_id(seed: str, index: int, what: str) -> str:
    """Return a version 4 UUID that is a function of the arguments."""
    digest = hashlib.sha256(f"{seed}:{index}:{what}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))
