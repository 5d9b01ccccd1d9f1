"""
Dead letters: input that is not stored as a record, with the reason.

A dead letter shows a decoded record without secrets, if it can be redacted and takes at most 64 KiB. Otherwise it shows
no content, because that may hold secrets: it has the size and the SHA-256, or the ids of a span. It names the reporter,
if one sent the record.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.bus import Message
from tokentrace.errors import shorten
from tokentrace.records import ChatMessage, RefusedSpan, Span
from tokentrace.redact import RedactionCounts, Redactor, clean_refused, readable
from tokentrace_ingest import other_records

#: Limit for the record that a dead letter shows.
MAX_DEAD_LETTER_BYTES = 64 * 1024
_EMPTY: tuple[Any, ...] = ("", 0, None, {}, (), [])


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
        batch: Id and number of the batch, or subject and time of a raw message.
        known: True = the sender has refused the span itself.
    """

    id: str
    body: bytes
    position: int
    reason: str
    kind: str = "span"
    batch: str = ""
    known: bool = False

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

    def span(
        self, key: str, index: int, reason: str, span: Span, redactions: RedactionCounts, source: str = ""
    ) -> DeadLetter:
        """Return the dead letter of a span that was decoded and is not valid."""
        return self._write(key, index, reason, self._body_of(span, redactions), source=source)

    def refused(self, key: str, refused: RefusedSpan, redactions: RedactionCounts, source: str = "") -> DeadLetter:
        """Return the dead letter of a span that its reporter refused."""
        if refused.span is not None:
            body = self._body_of(refused.span, redactions)
        else:
            body = {"size_bytes": refused.size_bytes, "sha256": refused.sha256} if refused.sha256 else {}
        return self._write(key, refused.index, refused.reason, body, source=source)._replace(known=True)

    def _body_of(self, span: Span, redactions: RedactionCounts) -> dict[str, Any]:
        clean = clean_refused(span, self._redactor, redactions)
        if clean is not None:
            with contextlib.suppress(TypeError, ValueError, RecursionError):
                return _shown(clean, "span")
        ids = (("trace_id", span.trace_id), ("span_id", span.span_id))
        return {"span": {name: shorten(self._redactor.text(value)) for name, value in ids}}

    def _ids(self, record: other_records.OtherRecord) -> dict[str, str]:
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
        source: str = "",
    ) -> DeadLetter:
        """Return the dead letter of a decoded record that is not valid and not a span."""
        try:
            shown = {kind.attributes: readable(getattr(record, kind.attributes))} if kind.attributes else {}
            clean = kind.clean(self._redactor, replace(record, **self._ids(record), **shown), redactions)
            if isinstance(clean, ChatMessage):
                clean = replace(clean, raw="")
            body = _shown(clean, kind.name)
        except (TypeError, ValueError, RecursionError):
            body = {}
        return self._write(key, index, reason, body, kind=kind.name, source=source)

    def _write(
        self, key: str, index: int, reason: str, body: dict[str, Any], *, kind: str = "span", source: str = ""
    ) -> DeadLetter:
        """Return a dead letter. The reason is redacted, because it may quote the record."""
        reason = self._redactor.text(reason)
        sender = {"source": source} if source else {}
        letter = {"batch": key, "index": index, "kind": kind, "reason": reason, **sender, **body}
        content = msgspec.json.encode(letter, order="deterministic")
        return DeadLetter(hashlib.sha256(content).hexdigest(), content, index, reason, kind, key)

    def unread(
        self, key: str, index: int, reason: str, data: bytes | msgspec.Raw, *, kind: str = "span", source: str = ""
    ) -> DeadLetter:
        """Return a dead letter with size and SHA-256 of *data*: undecodable bytes, or records of a forbidden list."""
        return self._write(key, index, reason, _fingerprint(data), kind=kind, source=source)

    def undecoded(self, message: Message, reason: str) -> DeadLetter:
        """Return a dead letter about a raw message as a whole, with its size and SHA-256."""
        return self.unread(f"{message.subject}@{message.time_ns}", 0, reason, message.payload)


def _shown(record: msgspec.Struct, name: str) -> dict[str, Any]:
    """Return the fields of a redacted *record* that are not empty, under *name*; if too long, size and SHA-256."""
    fields = dict(zip(record.__struct_fields__, msgspec.to_builtins(record), strict=True))
    body: dict[str, Any] = {name: {key: value for key, value in fields.items() if value not in _EMPTY}}
    encoded = msgspec.json.encode(body)
    return body if len(encoded) <= MAX_DEAD_LETTER_BYTES else _fingerprint(encoded)


def _fingerprint(data: bytes | msgspec.Raw) -> dict[str, Any]:
    return {"size_bytes": len(bytes(data)), "sha256": hashlib.sha256(bytes(data)).hexdigest()}
