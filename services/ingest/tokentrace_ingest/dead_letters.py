"""
Dead letters: what could not be taken in, why, and as much of it as may be kept.

A record that was read is shown without its secrets; of anything else there is a size and a digest, never the bytes.
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

MAX_LETTER_BYTES = 64 * 1024
_EMPTY: tuple[Any, ...] = ("", 0, None, {})


class DeadLetter(NamedTuple):
    """
    A dead letter.

    Attributes:
        id: The same for the same bad record, so that it is stored once.
        body: JSON: the redacted record if it could be read, else its size and SHA-256, and the reason.
        position: Index of the bad record among those of its kind in its batch.
        reason: What is wrong with it.
        kind: What it is.
    """

    id: str
    body: bytes
    position: int
    reason: str
    kind: str = "span"

    @property
    def where(self) -> str:
        """Which record of its request is bad, and why."""
        return f"{self.kind} {self.position}: {self.reason}"


class DeadLetterWriter:
    """
    Writes dead letters.

    Args:
        redactor: Takes secrets out of what is shown.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def span(self, key: str, index: int, reason: str, span: Span, found: RedactionCounts) -> DeadLetter:
        """The dead letter of a span that was read and is not valid."""
        # What ingest decides itself may hold anything in a span that was never finished, and its ids name nothing.
        bare = replace(span, cost_model="", unpriced_reason="", source="", **self._ids(span))
        try:
            clean = self._redactor.span(replace(bare, attributes=_readable(span.attributes)), found)
            return self._write(key, index, reason, _shown(clean, "span"))
        except (TypeError, ValueError, RecursionError):
            shown = {"trace_id": shorten(bare.trace_id), "span_id": shorten(bare.span_id)}
            return self._write(key, index, reason, {"span": shown})

    def _ids(self, record: Span | other_records.OtherRecord) -> dict[str, str]:
        """The ids of a record that is not stored, without secrets."""
        fields = {name: getattr(record, name) for name in record.__struct_fields__ if name.endswith("_id")}
        return {name: self._redactor.text(value) for name, value in fields.items() if value}

    def rare(
        self,
        key: str,
        index: int,
        reason: str,
        record: other_records.OtherRecord,
        kind: other_records.RecordKind,
        found: RedactionCounts,
    ) -> DeadLetter:
        """The dead letter of another record that was read and is not valid."""
        try:
            readable = {kind.attributes: _readable(getattr(record, kind.attributes))} if kind.attributes else {}
            clean = kind.clean(self._redactor, replace(record, **self._ids(record), **readable), found)
            if isinstance(clean, ChatMessage):
                clean = replace(clean, raw="")
            body = _shown(clean, kind.name)
        except (TypeError, ValueError, RecursionError):
            body = {}
        return self._write(key, index, reason, body, kind=kind.name)

    def _write(self, key: str, index: int, reason: str, body: dict[str, Any], *, kind: str = "span") -> DeadLetter:
        """A dead letter; not even its reason, which may quote the record, holds a secret."""
        reason = self._redactor.text(reason)
        content = msgspec.json.encode({"batch": key, "index": index, "reason": reason, **body}, order="deterministic")
        return DeadLetter(hashlib.sha256(content).hexdigest(), content, index, reason, kind)

    def unread(self, key: str, index: int, reason: str, data: bytes | msgspec.Raw, *, kind: str = "span") -> DeadLetter:
        """The dead letter of bytes that are no record, or of a record that nobody may send."""
        return self._write(key, index, reason, _fingerprint(data), kind=kind)

    def undecoded(self, message: Message, reason: str) -> DeadLetter:
        """The dead letter of a raw message that could not be read at all."""
        return self.unread(f"{message.subject}@{message.time_ns}", 0, reason, message.payload)


def _readable(value: Any, depth: int = 0) -> Any:
    """*value* as far as JSON can show it: the reason a span is bad may be in here."""
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ATTRIBUTES] if depth < MAX_DEPTH else []
        return {shorten(key, MAX_KEY_BYTES): _readable(item, depth + 1) for key, item in items}
    if isinstance(value, list):
        return [_readable(item, depth + 1) for item in value[:MAX_ATTRIBUTES]] if depth < MAX_DEPTH else []
    if value is None or isinstance(value, (str, bool)):
        return value
    return value if is_number(value) and abs(value) < 2**63 else type(value).__name__


def _shown(record: msgspec.Struct, name: str) -> dict[str, Any]:
    """*record*, which holds no secret, as it stands in a dead letter."""
    fields = dict(zip(record.__struct_fields__, msgspec.to_builtins(record), strict=True))
    found: dict[str, Any] = {name: {key: value for key, value in fields.items() if value not in _EMPTY}}
    encoded = msgspec.json.encode(found)
    return found if len(encoded) <= MAX_LETTER_BYTES else _fingerprint(encoded)


def _fingerprint(data: bytes | msgspec.Raw) -> dict[str, Any]:
    return {"size_bytes": len(bytes(data)), "sha256": hashlib.sha256(bytes(data)).hexdigest()}
