"""``POST /scores``: records scores of spans that have ended."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bad_data import UNREADABLE
from tokentrace.dialect import explain
from tokentrace.errors import Rejected, quoted
from tokentrace.records import MAX_KEY_BYTES, Span, is_id
from tokentrace.redact import Redactor
from tokentrace.service.body import read_body
from tokentrace.service.contract import Answer, Content, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import score_to_int
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.reads import find_by_id
from tokentrace_api.scoring import Scoring, record_score

_MAX_BODY_BYTES = 1024 * 1024
MAX_SCORES = 1000


class ScoreInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """
    A score; at least one of the ids is required.

    Attributes:
        trace_id: Trace of the span; "" = any trace, and then span_id must be unique.
        span_id: The span; "" = the root of the trace, or its first span if it has no root.
        name: Name of the score; ``eval.`` is added in front if it is missing.
        value: The score, 0 to 1; null removes it.
    """

    value: Annotated[float, Meta(ge=0, le=1)] | None
    trace_id: str = ""
    span_id: str = ""
    name: str = "eval.score"

    @property
    def attribute(self) -> str:
        """The attribute of the span that holds the score."""
        return self.name if self.name.startswith("eval.") else f"eval.{self.name}"


_score_decoder = msgspec.json.Decoder(ScoreInput)
_scores_decoder = msgspec.json.Decoder(list[ScoreInput])


def decode_scores(body: bytes) -> list[ScoreInput]:
    """
    Return the scores in *body*, which is one score or an array of scores.

    Raises:
        Rejected: *body* cannot be decoded, has over 1,000 scores, or has a score without an id or with an invalid id or
            name.
    """
    try:
        scores = _scores_decoder.decode(body) if body.lstrip()[:1] == b"[" else [_score_decoder.decode(body)]
    except UNREADABLE as exc:
        raise Rejected(explain(str(exc))) from exc
    if len(scores) > MAX_SCORES:
        raise Rejected(f"scores: {len(scores)}, at most {MAX_SCORES} are taken in one request", status=413)
    for index, score in enumerate(scores):
        where = f"score {index}: " if len(scores) > 1 else ""
        if not score.trace_id and not score.span_id:
            raise Rejected(f"{where}span_id or trace_id: one of them is required")
        for name in ("trace_id", "span_id"):
            value = getattr(score, name)
            if value and not is_id(value):
                raise Rejected(f"{where}{name}: {quoted(value)} is not 1-256 printable ASCII characters")
        if score.name in ("", "eval.") or len(score.attribute.encode(errors="replace")) > MAX_KEY_BYTES:
            raise Rejected(f"{where}name: {quoted(score.name)} is empty or too long")
    return scores


class ScoredSpan(msgspec.Struct):
    """A span that was scored."""

    trace_id: str
    span_id: str


class ScoresAccepted(msgspec.Struct):
    """How many scores were stored, and the span of each."""

    accepted: int
    spans: list[ScoredSpan]


_SCORE_EXAMPLE = {"trace_id": "t1", "span_id": "s1", "value": 0.92}
_SCORES = operation(
    "postScores",
    "Score spans after they ended",
    """
    One score or an array of up to 1,000. A score replaces the one that the span had under the same name; `eval.score`
    counts in quality. All spans are looked up before any score is recorded, so a wrong id refuses the whole request.
    """,
    Answer(
        ScoresAccepted,
        "The scores are stored.",
        {"accepted": 1, "spans": [{"trace_id": "t1", "span_id": "s1"}]},
        status=202,
    ),
    body=[
        Content(
            (ScoreInput, list[ScoreInput]),
            {"one": _SCORE_EXAMPLE, "several": [_SCORE_EXAMPLE, {"trace_id": "t2", "name": "eval.tone", "value": 0}]},
        )
    ],
    errors={
        400: "span_id or trace_id: one of them is required",
        404: "span not found",
        413: "scores: 1001, at most 1000 are taken in one request",
        415: "Content-Encoding: 'br' is not supported, only gzip is",
        503: "span store: is behind",
    },
)


def router(store: StoreReader, scoring: Scoring, redactor: Redactor) -> Router:
    """Return the route of scores; *redactor* redacts their names."""
    routes = Router("traces")

    @routes.post("/scores", **_SCORES)
    async def scores(request: Request) -> Response:
        inputs = decode_scores(await read_body(request, _MAX_BODY_BYTES))
        spans = [await _span_of(store, score, index, len(inputs)) for index, score in enumerate(inputs)]
        for score, span in zip(inputs, spans, strict=True):
            name = redactor.text(score.attribute)
            await record_score(scoring, span, name, None if score.value is None else score_to_int(score.value))
        scored = [ScoredSpan(span.trace_id, span.span_id) for span in spans]
        return reply(ScoresAccepted(len(inputs), scored), 202)

    return routes


async def _span_of(store: StoreReader, score: ScoreInput, index: int, count: int) -> Span:
    matches = await store.find(lambda spans: find_by_id(spans, score.trace_id, score.span_id, store.now_ns()))
    where = f"score {index}: " if count > 1 else ""
    if not matches:
        raise Rejected(f"{where}span not found", status=404)
    if len(matches) > 1:
        raise Rejected(f"{where}span_id: {quoted(score.span_id)} is in {len(matches)} traces; give trace_id too")
    return matches[0]
