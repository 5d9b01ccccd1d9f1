"""``POST /scores``: what a span was worth, said after it ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bad_data import UNREADABLE
from tokentrace.dialect import explain
from tokentrace.errors import Rejected, shorten
from tokentrace.records import MAX_KEY_BYTES, Span, is_id
from tokentrace.service.body import read_body
from tokentrace.service.web import reply
from tokentrace.units import score_to_int
from tokentrace_api.parameters import parameters
from tokentrace_api.reads import find_by_id
from tokentrace_api.scoring import record_score

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_MAX_BODY_BYTES = 1024 * 1024
MAX_SCORES = 1000


class ScoreInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """
    A score.

    Attributes:
        trace_id, span_id: Of the span; without span_id the root of the trace is meant, without trace_id any trace's.
        name: ``eval.`` is put before it where it is not there.
        value: 0 to 1; null takes the score away.
    """

    value: Annotated[float, Meta(ge=0, le=1)] | None
    trace_id: str = ""
    span_id: str = ""
    name: str = "eval.score"

    @property
    def attribute(self) -> str:
        """The attribute it is kept as."""
        return self.name if self.name.startswith("eval.") else f"eval.{self.name}"


_one = msgspec.json.Decoder(ScoreInput)
_many = msgspec.json.Decoder(list[ScoreInput])


def decode_scores(body: bytes) -> list[ScoreInput]:
    """
    One score, or an array of them.

    Raises:
        Rejected: Names the index and the field.
    """
    try:
        given = _many.decode(body) if body.lstrip()[:1] == b"[" else [_one.decode(body)]
    except UNREADABLE as exc:
        raise Rejected(explain(str(exc))) from exc
    if len(given) > MAX_SCORES:
        raise Rejected(f"scores: {len(given)}, at most {MAX_SCORES} are taken in one request", status=413)
    for index, one in enumerate(given):
        where = f"score {index}: " if len(given) > 1 else ""
        if not one.trace_id and not one.span_id:
            raise Rejected(f"{where}span_id or trace_id: one of them is required")
        for name in ("trace_id", "span_id"):
            value = getattr(one, name)
            if value and not is_id(value):
                raise Rejected(f"{where}{name}: {shorten(value)!r} is not 1-256 printable ASCII characters")
        if one.name in ("", "eval.") or len(one.attribute.encode(errors="replace")) > MAX_KEY_BYTES:
            raise Rejected(f"{where}name: {shorten(one.name)!r} is empty or too long")
    return given


def routes(api: Api) -> list[BaseRoute]:
    """The route of scores."""

    async def scores(request: Request) -> Response:
        parameters(request, ())
        given = decode_scores(await read_body(request, _MAX_BODY_BYTES))
        # All are found before any is recorded: a wrong id refuses the request and leaves nothing half done.
        spans = [await _span_of(api, one, index, len(given)) for index, one in enumerate(given)]
        for one, span in zip(given, spans, strict=True):
            name = api.config.redactor.text(one.attribute)
            await record_score(api, span, name, None if one.value is None else score_to_int(one.value))
        shown = [{"trace_id": span.trace_id, "span_id": span.span_id} for span in spans]
        return reply({"accepted": len(given), "spans": shown}, 202)

    return [Route("/scores", scores, methods=["POST"])]


async def _span_of(api: Api, given: ScoreInput, index: int, count: int) -> Span:
    found = await api.find(lambda store: find_by_id(store, given.trace_id, given.span_id, time.time_ns()))
    where = f"score {index}: " if count > 1 else ""
    if not found:
        raise Rejected(f"{where}span not found", status=404)
    if len(found) > 1:
        raise Rejected(f"{where}span_id: {shorten(given.span_id)!r} is in {len(found)} traces; give trace_id too")
    return found[0]
