"""
Dead letters: a bad record of the input, and the reason why it is not stored as a record.

A record that could be decoded is shown without its secrets. Other bytes are never shown, because they may hold secrets;
their dead letter has their size and SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.bus import Message
from tokentrace.errors import shorten
from tokentrace.records import MAX_ATTRIBUTES, MAX_DEPTH, MAX_KEY_BYTES, ChatMessage, Span
from tokentrace.redact import RedactionCounts, Redactor
from tokentrace.units import is_number
from tokentrace_ingest import other_records

MAX_DEAD_LETTER_BYTES = 64 * 1024
_EMPTY: tuple[Any, ...] = ("", 0, None, {})


class DeadLetter(NamedTuple):
    """
    One dead letter.

    Attributes:
        id: SHA-256 of *body*: the same bad record has the same id, so it is stored once.
        body: JSON with the batch, the index, the reason, and the redacted record or its size and SHA-256.
        position: Index of the bad record among the records of its kind in its batch.
        reason: Why the record is bad, without secrets.
        kind: Kind of the record, as in ``RecordKind.name``, or span.
    """

    id: str
    body: bytes
    position: int
    reason: str
    kind: str = "span"

    @property
    def where(self) -> str:
        """Which record of the request is bad, and the reason, as an error text."""
        return f"{self.kind} {self.position}: {self.reason}"


class DeadLetterWriter:
    """
    Writes dead letters.

    Args:
        redactor: Removes secrets from the record and the reason.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def span(self, key: str, index: int, reason: str, span: Span, redactions: RedactionCounts) -> DeadLetter:
        """Return the dead letter of a span that was decoded and is not valid."""
        # These fields are not redacted in a valid span, because ingest sets them or they are ids. Here they may hold
        # any text of the sender.
        bare = replace(span, cost_model="", unpriced_reason="", source="", **self._ids(span))
        try:
            clean = self._redactor.span(replace(bare, attributes=_readable(span.attributes)), redactions)
            return self._write(key, index, reason, _shown(clean, "span"))
        except (TypeError, ValueError, RecursionError):
            shown = {"trace_id": shorten(bare.trace_id), "span_id": shorten(bare.span_id)}
            return self._write(key, index, reason, {"span": shown})

    def _ids(self, record: Span | other_records.OtherRecord) -> dict[str, str]:
        """Return the ids of *record* without secrets, by field."""
        fields = {name: getattr(record, name) for name in record.__struct_fields__ if name.endswith("_id")}
        return {name: self._redactor.text(value) for name, value in fields.items() if value}

    def other_record(
        self,
        key: str,
        index: int,
        reason: str,
        record: other_records.OtherRecord,
        kind: other_records.RecordKind,
        redactions: RedactionCounts,
    ) -> DeadLetter:
        """Return the dead letter of another record that was decoded and is not valid."""
        try:
            readable = {kind.attributes: _readable(getattr(record, kind.attributes))} if kind.attributes else {}
            clean = kind.clean(self._redactor, replace(record, **self._ids(record), **readable), redactions)
            if isinstance(clean, ChatMessage):
                clean = replace(clean, raw="")
            body = _shown(clean, kind.name)
        except (TypeError, ValueError, RecursionError):
            body = {}
        return self._write(key, index, reason, body, kind=kind.name)

    def _write(self, key: str, index: int, reason: str, body: dict[str, Any], *, kind: str = "span") -> DeadLetter:
        """Return a dead letter; the reason is redacted too, because it may quote the record."""
        reason = self._redactor.text(reason)
        content = msgspec.json.encode({"batch": key, "index": index, "reason": reason, **body}, order="deterministic")
        return DeadLetter(hashlib.sha256(content).hexdigest(), content, index, reason, kind)

    def unread(self, key: str, index: int, reason: str, data: bytes | msgspec.Raw, *, kind: str = "span") -> DeadLetter:
        """Return the dead letter of bytes that cannot be decoded, or of records that senders may not write."""
        return self._write(key, index, reason, _fingerprint(data), kind=kind)

    def undecoded(self, message: Message, reason: str) -> DeadLetter:
        """Return the dead letter of a raw message that is not stored at all."""
        return self.unread(f"{message.subject}@{message.time_ns}", 0, reason, message.payload)


def _readable(value: Any, depth: int = 0) -> Any:
    """Return *value* with what JSON cannot show replaced or cut; a bad span may have any value as an attribute."""
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ATTRIBUTES] if depth < MAX_DEPTH else []
        return {shorten(key, MAX_KEY_BYTES): _readable(item, depth + 1) for key, item in items}
    if isinstance(value, list):
        return [_readable(item, depth + 1) for item in value[:MAX_ATTRIBUTES]] if depth < MAX_DEPTH else []
    if value is None or isinstance(value, (str, bool)):
        return value
    return value if is_number(value) and abs(value) < 2**63 else type(value).__name__


def _shown(record: msgspec.Struct, name: str) -> dict[str, Any]:
    """Return the fields of a redacted *record* that are not empty, or a digest if they are too long."""
    fields = dict(zip(record.__struct_fields__, msgspec.to_builtins(record), strict=True))
    body: dict[str, Any] = {name: {key: value for key, value in fields.items() if value not in _EMPTY}}
    encoded = msgspec.json.encode(body)
    return body if len(encoded) <= MAX_DEAD_LETTER_BYTES else _fingerprint(encoded)


def _fingerprint(data: bytes | msgspec.Raw) -> dict[str, Any]:
    return {"size_bytes": len(bytes(data)), "sha256": hashlib.sha256(bytes(data)).hexdigest()}
