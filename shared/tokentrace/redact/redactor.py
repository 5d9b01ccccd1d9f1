"""
Removes secrets from records.

How it works. A value is a secret if its key is sensitive (``keys``). A part of a text is a secret if it has the form of
a known secret (``patterns``) or of personal data (``people``). Redaction runs in the sender thread of a reporter, and
again in ingest on all input, because not every sender uses the reporter. Redacting a record twice gives the same record
as redacting it once. If redaction fails on a record, its content is dropped, so no content is stored without a search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

from msgspec.structs import replace

from tokentrace.records import (
    MAX_KEY_BYTES,
    MAX_NAME,
    MAX_VALUE_BYTES,
    Annotation,
    ChatMessage,
    SessionEnd,
    Span,
    Started,
    cut_text,
)
from tokentrace.redact.ids import IdHash, is_technical
from tokentrace.redact.keys import DEFAULT_KEYS, REDACTED, Keys
from tokentrace.redact.patterns import KEY_HINT, KEYS, MIN_KEY, PRIVATE_KEY, SCHEMES, URL_CREDENTIALS, RedactionCounts
from tokentrace.redact.people import People
from tokentrace.redact.windows import search

Mode = Literal["redact", "metadata_only", "off"]
Record = TypeVar("Record", Span, Started, ChatMessage, Annotation, SessionEnd)

#: Key in ``RedactionCounts`` for records on which redaction failed and whose content was dropped.
FAILED = "failed"
#: Key in ``RedactionCounts`` for texts that the mode ``metadata_only`` dropped.
DROPPED = "dropped"

#: A text of fewer characters contains no secret.
_MIN_TEXT = 5
#: Texts of up to this many characters that contain no secret are cached, because names repeat.
_SHORT = 64
_MAX_CACHED = 10_000
_SPACE = re.compile(" ")
#: Applied after ``casefold``, which turns İ into i and U+0307 and keeps ı, while ``re.IGNORECASE`` matches both as i.
_TURKISH = str.maketrans({"\u0307": None, "\u0131": "i"})


class Redactor:
    """
    Removes secrets from texts, values and records.

    The methods that remove secrets add the number of removed secrets by kind to *redactions*.

    Args:
        extra_keys: More sensitive keys, in any case and with any separator.
        replace_keys: True = *extra_keys* replace the default keys; secrets of a known form are still removed.
        patterns: False = secrets are not recognised by their form, only by their key.
        id_key: Key with which user ids and values under keys of ids are hashed; "" = they stay as they are.
        addresses, phones: False = e-mail addresses or phone numbers are not recognised by their form.
        mode: ``redact``; ``metadata_only``, which also drops content (see ``CONTENT_KEYS``); ``off``, which removes
            nothing.
        keep_raw: True = a redacted chat message keeps its original text in ``raw``, in the mode ``redact`` only.

    Attributes:
        enabled: False = the mode is ``off``.
        drops_content: True = the mode is ``metadata_only``.
    """

    def __init__(
        self,
        extra_keys: Collection[str] = (),
        *,
        replace_keys: bool = False,
        mode: Mode = "redact",
        keep_raw: bool = False,
        patterns: bool = True,
        id_key: str = "",
        addresses: bool = True,
        phones: bool = True,
    ) -> None:
        self.enabled = mode != "off"
        self.drops_content = mode == "metadata_only"
        self._keeps_raw = keep_raw and mode == "redact"
        self._keys = Keys([*(() if replace_keys else DEFAULT_KEYS), *extra_keys])
        self._people = People(addresses=addresses, phones=phones)
        self._patterns = patterns
        self._hash = IdHash(id_key) if id_key and self.enabled else None
        self._clean: set[str] = set()

    # -- texts

    def text(self, text: str, redactions: RedactionCounts | None = None) -> str:
        """
        Return *text* without secrets; the same object if there are none.

        Args:
            redactions: Counts of removed secrets by kind are added to it.
        """
        if text in self._clean or not self.enabled:
            return text
        if len(text) >= _MIN_TEXT:
            clean = self._search(text, {} if redactions is None else redactions)
            if clean != text:
                return clean
        if len(text) <= _SHORT:
            if len(self._clean) >= _MAX_CACHED:
                self._clean.clear()
            self._clean.add(text)
        return text

    def user_id(self, user_id: str, redactions: RedactionCounts | None = None) -> str:
        """Return the hash of *user_id* if ids are hashed, else *user_id* itself."""
        return self._id(user_id, {} if redactions is None else redactions) if self._hash is not None else user_id

    def hashes(self, key: str) -> bool:
        """Return True if values of the attribute *key* are hashed."""
        return self._hash is not None and self._keys.is_id(key) and not is_technical(key)

    def _id(self, text: str, redactions: RedactionCounts) -> str:
        if self._hash is None:
            return text
        hashed = self._hash(text)
        return text if hashed == text else _note(redactions, "id", hashed)

    def _search(self, text: str, redactions: RedactionCounts, *, is_id: bool = False) -> str:
        folded = text.casefold()
        if not text.isascii():
            folded = folded.translate(_TURKISH)
        if not self._patterns:
            return self._keys.clean(text, folded, redactions) if ":" in text or "=" in text else text
        # Remove a private key first: it has several lines, and the pattern of pairs would remove only the first line.
        if PRIVATE_KEY.hints[0] in text:
            text = PRIVATE_KEY.sub(text, redactions)
        if "@" in text and URL_CREDENTIALS.hints[0] in text:
            text = URL_CREDENTIALS.sub(text, redactions)
        if ":" in text or "=" in text:
            text = self._keys.clean(text, folded, redactions)
        long = " ".join([word for word in text.split() if len(word) >= MIN_KEY])
        if long and search(KEY_HINT, _SPACE, long) is not None:
            for pattern in KEYS:
                if pattern.hinted(long):
                    text = pattern.sub(text, redactions)
        for pattern in SCHEMES:
            if pattern.hints[0] in folded:
                text = pattern.sub(text, redactions)
        return self._people.clean(text, redactions, is_id=is_id)

    # -- values

    def is_sensitive(self, key: str) -> bool:
        """Return True if *key* ends with the words of a sensitive key: ``user_email``, not ``email_verified``."""
        return self._keys.is_sensitive(key)

    def is_content(self, key: str) -> bool:
        """Return True if texts under *key* are content (see ``CONTENT_KEYS``)."""
        return self._keys.is_content(key)

    def value(self, key: str, value: Any, redactions: RedactionCounts | None = None) -> Any:
        """Return the value of *key* without secrets at any depth; the same object if there are none."""
        if not self.enabled:
            return value
        return self._value(
            key, value, {} if redactions is None else redactions, drop=self.drops_content and self._keys.is_content(key)
        )

    def _value(self, key: str, value: Any, redactions: RedactionCounts, *, drop: bool) -> Any:
        if isinstance(value, str):
            if not value or value == REDACTED:
                return value
            if self._keys.is_sensitive(key):
                return _note(redactions, "key_value", REDACTED)
            if drop:
                return _note(redactions, DROPPED, "")
            if not self._keys.is_id(key):
                return self.text(value, redactions)
            if self.hashes(key):
                return self._id(value, redactions)
            return self._search(value, redactions, is_id=True) if len(value) >= _MIN_TEXT else value
        if isinstance(value, dict):
            if self._keys.is_sensitive(key):
                return _note(redactions, "key_value", REDACTED)
            return self._mapping(value, redactions, drop=drop)
        if isinstance(value, list):
            items = [self._value(key, item, redactions, drop=drop) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, (bytes, bytearray)):
            hidden = drop or self._keys.is_sensitive(key)
            return _note(redactions, "key_value", REDACTED) if hidden else value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.hashes(key):
            return self._id(str(value), redactions)
        # A number is a secret only if the key has no further words: phone: 5551234567 is, email_count: 3 is not.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self._keys.is_exactly(key):
            return _note(redactions, "key_value", REDACTED)
        return value

    def mapping(self, mapping: dict[str, Any], redactions: RedactionCounts | None = None) -> dict[str, Any]:
        """Return *mapping* without what the mode removes from it; the same object if nothing is removed."""
        return self._mapping(mapping, {} if redactions is None else redactions, drop=False) if self.enabled else mapping

    def _mapping(self, mapping: dict[str, Any], redactions: RedactionCounts, *, drop: bool) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        changed = False
        for key, value in mapping.items():
            name = str(key)
            shown = self.text(name, redactions)
            # The key without its secrets decides, so that redacting twice gives the same.
            content = drop or (self.drops_content and self._keys.is_content(shown))
            new = self._value(shown, value, redactions, drop=content)
            changed = changed or new is not value or shown is not name
            # Secrets in keys may get the same placeholder, so a number is appended.
            clean[key if shown is name else _free(_fit(shown, MAX_KEY_BYTES - 8), clean, mapping)] = new
        return clean if changed else mapping

    # -- records

    def span(self, span: Span, redactions: RedactionCounts | None = None) -> Span:
        """Return *span* without secrets in names, attributes, errors and usage keys; unchanged if there are none."""
        return self._fail_closed(span, self._span, redactions)

    def started(self, started: Started, redactions: RedactionCounts | None = None) -> Started:
        """Return *started* without secrets in name, caller and metadata."""
        return self._fail_closed(started, self._started, redactions)

    def message(self, message: ChatMessage, redactions: RedactionCounts | None = None) -> ChatMessage:
        """Return *message* without secrets in content and metadata; set ``redacted``, ``length`` and ``raw``."""
        return self._fail_closed(message, self._message, redactions)

    def annotation(self, annotation: Annotation, redactions: RedactionCounts | None = None) -> Annotation:
        """Return *annotation* without secrets in its attributes."""
        return self._fail_closed(annotation, self._annotation, redactions)

    def session_end(self, end: SessionEnd, redactions: RedactionCounts | None = None) -> SessionEnd:
        """Return *end* without secrets in its error."""
        return self._fail_closed(end, self._session_end, redactions)

    def _fail_closed(
        self, record: Record, clean: Callable[[Record, RedactionCounts], Record], redactions: RedactionCounts | None
    ) -> Record:
        redactions = {} if redactions is None else redactions
        try:
            return clean(record, redactions)
        except Exception:  # noqa: BLE001 - whatever the error is, content must not be stored without a search
            return replace(record, **_note(redactions, FAILED, _without_content(record)))

    def _span(self, span: Span, redactions: RedactionCounts) -> Span:
        if not self.enabled:
            return span
        changed: dict[str, Any] = {}
        known = self._clean
        # These names repeat from span to span, so four look-ups usually suffice.
        if not (span.name in known and span.caller in known and span.model in known and span.provider in known):
            for field in ("name", "caller", "model", "provider"):
                value = getattr(span, field)
                clean = self.text(value, redactions)
                if clean is not value:
                    changed[field] = clean[:MAX_NAME]
        if self._hash is not None and span.user_id:
            changed["user_id"] = self._id(span.user_id, redactions)
        if span.attributes:
            attributes = self._attributes(span.attributes, redactions)
            if attributes is not span.attributes:
                changed["attributes"] = attributes
        if span.error or span.error_stack:
            for field in ("error", "error_stack"):
                value = getattr(span, field)
                clean = self._content(value, redactions)
                if clean is not value:
                    changed[field] = cut_text(clean, MAX_VALUE_BYTES)
        if span.adjusted:
            changed["adjusted"] = tuple(self.text(note, redactions)[:MAX_NAME] for note in span.adjusted)
        if span.usage:
            usage = self._mapping(span.usage, redactions, drop=False)
            if usage is not span.usage:
                # Values are token counts, so keep them even under a sensitive key.
                changed["usage"] = dict(zip(usage, span.usage.values(), strict=True))
        return replace(span, **changed) if changed else span

    def _started(self, started: Started, redactions: RedactionCounts) -> Started:
        if not self.enabled:
            return started
        return replace(
            started,
            name=self.text(started.name, redactions)[:MAX_NAME],
            caller=self.text(started.caller, redactions)[:MAX_NAME],
            user_id=self._id(started.user_id, redactions) if started.user_id else started.user_id,
            metadata=self._attributes(started.metadata, redactions),
        )

    def _message(self, message: ChatMessage, redactions: RedactionCounts) -> ChatMessage:
        length = len(message.content)
        if not self.enabled:
            return replace(message, length=length, redacted=False, raw="")
        content = self._content(message.content, redactions)
        redacted = content is not message.content
        return replace(
            message,
            content=content,
            redacted=redacted,
            length=length,
            raw=message.content if redacted and self._keeps_raw else "",
            metadata=self._attributes(message.metadata, redactions),
        )

    def _annotation(self, annotation: Annotation, redactions: RedactionCounts) -> Annotation:
        if not self.enabled:
            return annotation
        return replace(annotation, attributes=self._attributes(annotation.attributes, redactions))

    def _session_end(self, end: SessionEnd, redactions: RedactionCounts) -> SessionEnd:
        return replace(end, error=self._content(end.error, redactions)[:MAX_VALUE_BYTES]) if self.enabled else end

    def _content(self, text: str, redactions: RedactionCounts) -> str:
        """Return "" in the mode ``metadata_only``, otherwise *text* without secrets; *text* is content."""
        if self.drops_content and text:
            return _note(redactions, DROPPED, "")
        return self.text(text, redactions)

    def _attributes(self, attributes: dict[str, Any], redactions: RedactionCounts) -> dict[str, Any]:
        clean = self._mapping(attributes, redactions, drop=False)
        if clean is attributes:
            return clean
        # A placeholder may be longer than the secret, and a value that is too long would be rejected.
        return {
            key: cut_text(value, MAX_VALUE_BYTES)
            if isinstance(value, str) and len(value) * 4 > MAX_VALUE_BYTES
            else value
            for key, value in clean.items()
        }


_CONTENT: dict[type, dict[str, Any]] = {
    Span: {
        "name": REDACTED,
        "caller": REDACTED,
        "model": REDACTED,
        "provider": REDACTED,
        "error": REDACTED,
        "error_stack": REDACTED,
        "attributes": {},
        "usage": None,
        "adjusted": (),
    },
    Started: {"name": REDACTED, "caller": REDACTED, "metadata": {}},
    ChatMessage: {"content": REDACTED, "redacted": True, "raw": "", "length": 0, "metadata": {}},
    Annotation: {"attributes": {}},
    SessionEnd: {"error": REDACTED},
}


def _without_content(record: object) -> dict[str, Any]:
    """Return field -> replacement for the fields of *record* with content; empty texts stay empty."""
    return {
        field: value for field, value in _CONTENT[type(record)].items() if value != REDACTED or getattr(record, field)
    }


_T = TypeVar("_T")


def _note(redactions: RedactionCounts, kind: str, placeholder: _T) -> _T:
    redactions[kind] = redactions.get(kind, 0) + 1
    return placeholder


def _fit(text: str, limit_bytes: int) -> str:
    """Return *text* cut to at most *limit_bytes* in UTF-8, at the end of a character."""
    if len(text) * 4 <= limit_bytes:
        return text
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _free(name: str, *taken: dict[str, Any]) -> str:
    """Return *name*, with a number appended if it is a key of a mapping in *taken*."""
    free, number = name, 1
    while any(free in mapping for mapping in taken):
        number += 1
        free = f"{name}_{number}"
    return free
