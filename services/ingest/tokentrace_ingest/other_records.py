"""Cleaning of records that are not spans: checks them, fills in what is missing and removes secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Rejected, quoted
from tokentrace.records import (
    MIN_INSTANT_NS,
    Annotation,
    ChatMessage,
    SessionEnd,
    Started,
    check_attributes,
    fit_attributes,
    is_id,
)
from tokentrace.redact import RedactionCounts, Redactor

#: Limit for the content of a chat message, bytes of UTF-8.
MAX_CONTENT_BYTES = 256 * 1024

OtherRecord = Started | ChatMessage | Annotation | SessionEnd


class RecordKind(NamedTuple):
    """
    How the records of one list of a batch are cleaned.

    Attributes:
        name: What a dead letter calls one of these records.
        ids: Fields that must hold an id.
        maybe_ids: Fields that hold an id or are empty.
        instants: Fields with Unix nanoseconds, in which the arrival time replaces 0.
        attributes: The field that holds attributes or metadata; "" = there is none.
        clean: The method of ``Redactor`` that removes secrets from such a record.
    """

    name: str
    ids: tuple[str, ...]
    maybe_ids: tuple[str, ...]
    instants: tuple[str, ...]
    attributes: str
    clean: Callable[[Redactor, Any, RedactionCounts], Any]


#: Field of a batch -> how the records in it are cleaned.
KINDS = {
    "started": RecordKind(
        "started",
        ("trace_id", "span_id"),
        ("parent_span_id", "session_id", "user_id"),
        ("started_ns",),
        "metadata",
        Redactor.started,
    ),
    "messages": RecordKind(
        "message",
        ("message_id", "session_id"),
        ("span_id", "trace_id"),
        ("created_ns",),
        "metadata",
        Redactor.message,
    ),
    "annotations": RecordKind("annotation", ("trace_id", "span_id"), (), (), "attributes", Redactor.annotation),
    "session_ends": RecordKind("session_end", ("session_id",), (), ("ended_ns",), "", Redactor.session_end),
}
#: Fields of a batch that only the api may fill, because it looks up the span or session that such a record refers to.
FORBIDDEN = ("scores", "tombstones")


def finish(
    record: OtherRecord,
    kind: RecordKind,
    redactor: Redactor,
    arrived_ns: int,
    source: str,
    redactions: RedactionCounts,
) -> OtherRecord:
    """
    Return *record* as it is stored; attributes that are too long are cut.

    Args:
        arrived_ns: Unix nanoseconds; replaces instants that are 0.
        source: Replaces a missing caller of a ``Started``; must hold no secrets.
        redactions: Counts of removed secrets by kind, to which those of *record* are added.

    Raises:
        Rejected: A field is invalid; the text names it. The status is 413 if the content of a message is too long.
    """
    filled: dict[str, Any] = {}
    for field in kind.instants:
        instant = getattr(record, field) or arrived_ns
        if instant < MIN_INSTANT_NS:
            raise Rejected(f"{field}: not between the years 2000 and 2100")
        filled[field] = instant
    if kind.attributes:
        filled[kind.attributes] = fit_attributes(getattr(record, kind.attributes), [])
    record = replace(record, **filled)
    _check(record, kind)
    clean: OtherRecord = kind.clean(redactor, record, redactions)
    if isinstance(clean, Started):
        return replace(clean, caller=clean.caller or source, arrived_ns=arrived_ns)
    return clean


def _check(record: OtherRecord, kind: RecordKind) -> None:
    for field in (*kind.ids, *kind.maybe_ids):
        value = getattr(record, field)
        if not is_id(value or "") and (value or field in kind.ids):
            raise Rejected(f"{field}: {quoted(value)} is not 1-256 printable ASCII characters")
    if kind.attributes:
        try:
            check_attributes(getattr(record, kind.attributes))
        except Rejected as exc:
            raise Rejected(f"{kind.attributes}{str(exc).removeprefix('attributes')}") from exc
    if isinstance(record, ChatMessage):
        _check_content(record.content)


def _check_content(content: str) -> None:
    try:
        size = len(content.encode())
    except UnicodeEncodeError as exc:
        raise Rejected("content: cannot be encoded in UTF-8") from exc
    if size > MAX_CONTENT_BYTES:
        raise Rejected(f"content: {size} bytes, at most {MAX_CONTENT_BYTES} are accepted", status=413)
