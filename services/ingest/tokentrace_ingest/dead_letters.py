"""
Dead letters: input that is not stored as a record, with the reason.

A dead letter shows a decoded record without secrets, if it can be redacted and takes at most 64 KiB. Otherwise it shows
no content, because that may hold secrets: it has the size and the SHA-256, or the ids of a span.
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

#: Limit for the record that a dead letter shows.
MAX_DEAD_LETTER_BYTES = 64 * 1024
_EMPTY: tuple[Any, ...] = ("", 0, None, {})


class DeadLetter(NamedTuple):
    """
    One dead letter.

    Attributes:
        id: SHA-256 of *body*. A message that is delivered again gives the same id, by which the broker recognises it.
        body: JSON with the batch, the index, the kind and the reason, and with the redacted record or its size and
            SHA-256.
        position: Index of the bad record in its list; 0 if the dead letter is about a list or message as a whole.
        reason: What is wrong with the record, without secrets.
        kind: span, a ``RecordKind.name``, or the name of a list in ``other_records.FORBIDDEN``.
    """

    id: str
    body: bytes
    position: int
    reason: str
    kind: str = "span"

    @property
    def where(self) -> str:
        """Error text that names the bad record of a request and the reason."""
        return f"{self.kind} {self.position}: {self.reason}"


class DeadLetterWriter:
    """
    Makes dead letters; ``Ingest`` publishes them.

    Args:
        redactor: Removes secrets from the record and the reason.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def span(self, key: str, index: int, reason: str, span: Span, redactions: RedactionCounts) -> DeadLetter:
        """Return the dead letter of a span that was decoded and is not valid."""
        # Redaction skips these fields: in a valid span they are ids or set by ingest. In a bad span they may hold any
        # text of the sender.
        bare = replace(span, cost_model="", unpriced_reason="", source="", **self._ids(span))
        try:
            clean = self._redactor.span(replace(bare, attributes=_readable(span.attributes)), redactions)
            return self._write(key, index, reason, _shown(clean, "span"))
        except (TypeError, ValueError, RecursionError):
            shown = {"trace_id": shorten(bare.trace_id), "span_id": shorten(bare.span_id)}
            return self._write(key, index, reason, {"span": shown})

    def _ids(self, record: Span | other_records.OtherRecord) -> dict[str, str]:
        """Return field -> id without secrets, for the ids that *record* has."""
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
        """Return the dead letter of a decoded record that is not valid and not a span."""
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
        """Return a dead letter. The reason is redacted, because it may quote the record."""
        reason = self._redactor.text(reason)
        shown = {"batch": key, "index": index, "kind": kind, "reason": reason, **body}
        content = msgspec.json.encode(shown, order="deterministic")
        return DeadLetter(hashlib.sha256(content).hexdigest(), content, index, reason, kind)

    def unread(self, key: str, index: int, reason: str, data: bytes | msgspec.Raw, *, kind: str = "span") -> DeadLetter:
        """Return a dead letter with size and SHA-256 of *data*: undecodable bytes, or records of a forbidden list."""
        return self._write(key, index, reason, _fingerprint(data), kind=kind)

    def undecoded(self, message: Message, reason: str) -> DeadLetter:
        """Return a dead letter about a raw message as a whole, with its size and SHA-256."""
        return self.unread(f"{message.subject}@{message.time_ns}", 0, reason, message.payload)


def _readable(value: Any, depth: int = 0) -> Any:
    """Return *value* for JSON: containers are cut to the limits of attributes, other types become the type's name."""
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ATTRIBUTES] if depth < MAX_DEPTH else []
        return {shorten(key, MAX_KEY_BYTES): _readable(item, depth + 1) for key, item in items}
    if isinstance(value, list):
        return [_readable(item, depth + 1) for item in value[:MAX_ATTRIBUTES]] if depth < MAX_DEPTH else []
    if value is None or isinstance(value, (str, bool)):
        return value
    return value if is_number(value) and abs(value) < 2**63 else type(value).__name__


def _shown(record: msgspec.Struct, name: str) -> dict[str, Any]:
    """Return the fields of a redacted *record* that are not empty, under *name*; if too long, size and SHA-256."""
    fields = dict(zip(record.__struct_fields__, msgspec.to_builtins(record), strict=True))
    body: dict[str, Any] = {name: {key: value for key, value in fields.items() if value not in _EMPTY}}
    encoded = msgspec.json.encode(body)
    return body if len(encoded) <= MAX_DEAD_LETTER_BYTES else _fingerprint(encoded)


def _fingerprint(data: bytes | msgspec.Raw) -> dict[str, Any]:
    return {"size_bytes": len(bytes(data)), "sha256": hashlib.sha256(bytes(data)).hexdigest()}
