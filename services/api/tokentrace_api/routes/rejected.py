"""``GET /rejected``: the spans that ingest refused, with reasons."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.responses import Response

from tokentrace.records import REFUSAL_REASONS, reason_of
from tokentrace.service.contract import Answer, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_instant
from tokentrace_api.parameters import Count, Moment, Text, choice
from tokentrace_api.rejected_history import RejectedHistory, StoredLetter
from tokentrace_api.routes.answers import InstantText, Natural

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
_Reason: Any = choice(REFUSAL_REASONS)


class RejectedParams(Params):
    """Which refused records are listed, and which page of them."""

    since: Moment = Field(None, description="Refused at or after this instant.", examples=["2026-03-15T14:00:00Z"])
    reason: _Reason = Field(None, description="Only records that were refused for this reason.", examples=["model"])
    limit: Count = Field(DEFAULT_LIMIT, description=f"Records on a page; over {MAX_LIMIT} counts as {MAX_LIMIT}.")
    cursor: Text = Field(None, description="`next_cursor` of the previous page.")


class RejectedCounts(msgspec.Struct, kw_only=True):
    """
    How many spans were refused since the first one.

    Attributes:
        by_reason: Reason -> number of spans, the most frequent first.
        last_at: When the last record was refused; null = none was.
        other_records: Kind -> number of refused records that are not spans, such as messages; absent if there are none.
        lost: Number of refused records that are not counted, because they were discarded before; absent if 0.
    """

    spans: Natural
    by_reason: dict[str, Natural]
    last_at: InstantText | None
    other_records: dict[str, Natural] | UnsetType = UNSET
    lost: Natural | UnsetType = UNSET


class RejectedRecord(msgspec.Struct, kw_only=True):
    """
    A refused record.

    Attributes:
        at: When it was refused.
        kind: span, or what else it is, such as message.
        reason: The reason in one word: the name of the field that is wrong, undecodable, too_large, forbidden or other.
        error: What is wrong.
        batch: Id and sequence of the batch in which it was sent.
        index: Its place in that batch, from 0.
        reporter: The name of the reporter that sent it; absent if no reporter did.
        record: Its fields that are not empty, without secrets, with the names of the log; absent if it cannot be shown.
        size_bytes, sha256: Of a record that is not shown.
    """

    at: InstantText
    project: str
    kind: str
    reason: str
    error: str
    batch: str
    index: Natural
    reporter: str | UnsetType = UNSET
    record: dict[str, Any] | UnsetType = UNSET
    size_bytes: Natural | UnsetType = UNSET
    sha256: str | UnsetType = UNSET


class RejectedPage(RejectedCounts, kw_only=True):
    """
    Counts of all refused spans, and a page of the refused records that are still kept, newest first.

    Attributes:
        next_cursor: For the next page, with the same other parameters; null = there are no more records. A page may
            hold fewer records than asked for although there are more.
    """

    rejected: list[RejectedRecord]
    count: Natural
    next_cursor: str | None


_EXAMPLE: dict[str, Any] = {
    "spans": 100,
    "by_reason": {"model": 90, "attributes": 10},
    "last_at": "2026-03-15T14:23:01.441Z",
    "rejected": [
        {
            "at": "2026-03-15T14:23:01.441Z",
            "project": "default",
            "kind": "span",
            "reason": "model",
            "error": "model: required when kind is llm and status is ok",
            "batch": "default.checkout.0123456789abcdef0123456789abcdef:7",
            "index": 3,
            "reporter": "checkout",
            "record": {"name": "answer question", "kind": "llm", "status": "ok", "prompt_tokens": 512},
        }
    ],
    "count": 1,
    "next_cursor": "1773584581441000000-41",
}
_REJECTED = operation(
    "listRejected",
    "List refused spans",
    """
    What ingest refused of the batches of reporters and NATS clients, newest first, without secrets: kept for 7 days.
    The counts cover all refused spans. A request over HTTP that was answered with an error is not listed.
    """,
    Answer(RejectedPage, "The counts, and a page of refused records.", _EXAMPLE),
    errors={400: "reason: 'x' is none of trace_id, span_id, parent_span_id", 503: "no answer from nats"},
)


def router(history: RejectedHistory) -> Router:
    """Return the route."""
    routes = Router("spans")

    @routes.get("/rejected", **_REJECTED)
    async def rejected(params: Annotated[RejectedParams, QueryParams()]) -> Response:
        page = await history.page(
            limit=min(params.limit, MAX_LIMIT),
            cursor=params.cursor or "",
            reason=params.reason or "",
            since_ns=params.since,
        )
        records = [_render(stored) for stored in page.items]
        return reply(
            {
                **render_counts(history),
                "rejected": records,
                "count": len(records),
                "next_cursor": page.next or None,
            }
        )

    return routes


def render_counts(history: RejectedHistory) -> dict[str, Any]:
    """Return the fields that ``RejectedCounts`` describes."""
    shown: dict[str, Any] = {
        "spans": history.total,
        "by_reason": history.spans,
        "last_at": render_instant(history.last_ns) if history.last_ns else None,
    }
    if history.others:
        shown["other_records"] = history.others
    if history.lost:
        shown["lost"] = history.lost
    return shown


def _render(stored: StoredLetter) -> RejectedRecord:
    letter = stored.letter
    return RejectedRecord(
        at=render_instant(stored.at_ns),
        project=stored.project,
        kind=letter.about,
        reason=reason_of(letter.reason),
        error=letter.reason,
        batch=letter.batch,
        index=letter.index,
        reporter=letter.reporter or UNSET,
        record=UNSET if letter.record is None else letter.record,
        size_bytes=UNSET if letter.size_bytes is None else letter.size_bytes,
        sha256=letter.sha256 or UNSET,
    )
