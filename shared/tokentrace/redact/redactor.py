"""
One pure function for every record that carries text.

It runs in the reporter's own thread and again in ingest on every way in, before anything is stored. When it fails on a
record, the record's content is dropped: nothing is ever stored as it came because nobody could look at it.
"""

from __future__ import annotations

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
)
from tokentrace.redact.keys import DEFAULT_KEYS, REDACTED, Keys
from tokentrace.redact.patterns import KEY_HINT, KEYS, MIN_KEY, PRIVATE_KEY, SCHEMES, URL_CREDENTIALS, RedactionCounts
from tokentrace.redact.people import People

Mode = Literal["redact", "metadata_only", "off"]
Record = TypeVar("Record", Span, Started, ChatMessage, Annotation, SessionEnd)

#: Counted when a record could not be looked at and lost its content.
FAILED = "failed"
#: Counted when the mode ``metadata_only`` dropped a text.
DROPPED = "dropped"

#: Nothing shorter holds a secret.
_MIN_TEXT = 5
#: Names come again and again: which ones of up to so many characters hold no secret is remembered.
_SHORT = 64
_REMEMBERED = 10_000
#: What folding the case leaves, and a pattern that ignores case takes for an i all the same.
_TURKISH = str.maketrans({"\u0307": None, "\u0131": "i"})


class Redactor:
    """
    Takes secrets out of records.

    Args:
        extra_keys: More sensitive keys, any case and separator.
        replace_keys: True = *extra_keys* instead of the default ones; what is known by its form goes all the same.
        mode: redact; metadata_only, which drops content as well (see ``CONTENT_KEYS``); off, which lets all pass.
        keep_raw: True = a chat message keeps what it was before, next to what may be shown.
    """

    def __init__(
        self,
        extra_keys: Collection[str] = (),
        *,
        replace_keys: bool = False,
        mode: Mode = "redact",
        keep_raw: bool = False,
    ) -> None:
        self.enabled = mode != "off"
        self._drops = mode == "metadata_only"
        self._keeps_raw = keep_raw and mode == "redact"
        self._keys = Keys([*(() if replace_keys else DEFAULT_KEYS), *extra_keys])
        self._people = People(self._keys.flat)
        self._clean: set[str] = set()

    # -- texts

    def text(self, text: str, found: RedactionCounts | None = None) -> str:
        """
        *text* without the secrets that can be seen in it; the same object when there are none.

        Args:
            found: Is told what was taken out, by kind.
        """
        if text in self._clean or not self.enabled:
            return text
        if len(text) >= _MIN_TEXT:
            clean = self._search(text, {} if found is None else found)
            if clean != text:
                return clean
        if len(text) <= _SHORT:
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return text

    def _search(self, text: str, found: RedactionCounts) -> str:
        folded = text.casefold()
        if not text.isascii():
            folded = folded.translate(_TURKISH)
        # A key in several lines goes first, or a pair would take its beginning and leave the rest.
        if PRIVATE_KEY.hints[0] in text:
            text = PRIVATE_KEY.sub(text, found)
        if "@" in text and URL_CREDENTIALS.hints[0] in text:
            text = URL_CREDENTIALS.sub(text, found)
        if ":" in text or "=" in text:
            text = self._keys.clean(text, folded, found)
        long = " ".join([word for word in text.split() if len(word) >= MIN_KEY])
        if long and KEY_HINT.search(long) is not None:
            for pattern in KEYS:
                if pattern.hinted(long):
                    text = pattern.sub(text, found)
        for pattern in SCHEMES:
            if pattern.hints[0] in folded:
                text = pattern.sub(text, found)
        return self._people.clean(text, found)

    # -- values

    def is_sensitive(self, key: str) -> bool:
        """True when *key* contains the words of a sensitive key: ``user_email`` is, ``max_tokens`` is not."""
        return self._keys.is_sensitive(key)

    def value(self, key: str, value: Any, found: RedactionCounts | None = None) -> Any:
        """The value of *key*, without secrets, at any depth; the same object when there are none."""
        if not self.enabled:
            return value
        return self._value(key, value, {} if found is None else found, drop=self._drops and self._keys.is_content(key))

    def _value(self, key: str, value: Any, found: RedactionCounts, *, drop: bool) -> Any:
        if isinstance(value, str):
            if not value or value == REDACTED:
                return value
            if self._keys.is_sensitive(key):
                return _note(found, "key_value", REDACTED)
            return _note(found, DROPPED, "") if drop else self.text(value, found)
        if isinstance(value, dict):
            if self._keys.is_sensitive(key):
                return _note(found, "key_value", REDACTED)
            return self._mapping(value, found, drop=drop)
        if isinstance(value, list):
            items = [self._value(key, item, found, drop=drop) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, (bytes, bytearray)):
            hidden = drop or self._keys.is_sensitive(key)
            return _note(found, "key_value", REDACTED) if hidden else value
        # A number is a secret only under exactly the key (phone: 5551234567), not in email_count: 3.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self._keys.is_exactly(key):
            return _note(found, "key_value", REDACTED)
        return value

    def mapping(self, mapping: dict[str, Any], found: RedactionCounts | None = None) -> dict[str, Any]:
        """Attributes or metadata without secrets, in keys and values; the same object when there are none."""
        return self._mapping(mapping, {} if found is None else found, drop=False) if self.enabled else mapping

    def _mapping(self, mapping: dict[str, Any], found: RedactionCounts, *, drop: bool) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        changed = False
        for key, value in mapping.items():
            name = str(key)
            shown = self.text(name, found)
            content = drop or (self._drops and self._keys.is_content(name))
            new = self._value(name, value, found, drop=content)
            changed = changed or new is not value or shown is not name
            # Two addresses as keys must not become one entry.
            clean[key if shown is name else _free(_fit(shown, MAX_KEY_BYTES - 8), clean, mapping)] = new
        return clean if changed else mapping

    # -- records

    def span(self, span: Span, found: RedactionCounts | None = None) -> Span:
        """*span* without secrets in names, attributes, error and stack; the same object when there are none."""
        return self._watch_lag(span, self._span, found)

    def started(self, started: Started, found: RedactionCounts | None = None) -> Started:
        """*started* without secrets in its names and metadata."""
        return self._watch_lag(started, self._started, found)

    def message(self, message: ChatMessage, found: RedactionCounts | None = None) -> ChatMessage:
        """*message* without secrets in content and metadata; says whether content lost any, and how long it was."""
        return self._watch_lag(message, self._message, found)

    def annotation(self, annotation: Annotation, found: RedactionCounts | None = None) -> Annotation:
        """*annotation* without secrets in its attributes."""
        return self._watch_lag(annotation, self._annotation, found)

    def session_end(self, end: SessionEnd, found: RedactionCounts | None = None) -> SessionEnd:
        """*end* without secrets in its error."""
        return self._watch_lag(end, self._session_end, found)

    def _watch_lag(
        self, record: Record, clean: Callable[[Record, RedactionCounts], Record], found: RedactionCounts | None
    ) -> Record:
        found = {} if found is None else found
        try:
            return clean(record, found)
        except Exception:  # noqa: BLE001 - whatever went wrong, what nobody could look at must not be stored
            return replace(record, **_note(found, FAILED, _without_content(record)))

    def _span(self, span: Span, found: RedactionCounts) -> Span:
        if not self.enabled:
            return span
        changed: dict[str, Any] = {}
        known = self._clean
        # They are few and come again with every call: four look-ups spare four searches.
        if not (span.name in known and span.caller in known and span.model in known and span.provider in known):
            for field in ("name", "caller", "model", "provider"):
                value = getattr(span, field)
                clean = self.text(value, found)
                if clean is not value:
                    changed[field] = clean[:MAX_NAME]
        if span.attributes:
            attributes = self._attributes(span.attributes, found)
            if attributes is not span.attributes:
                changed["attributes"] = attributes
        if span.error or span.error_stack:
            for field in ("error", "error_stack"):
                value = getattr(span, field)
                clean = self._content(value, found)
                if clean is not value:
                    changed[field] = clean[:MAX_VALUE_BYTES]
        if span.usage:
            usage = self._mapping(span.usage, found, drop=False)
            if usage is not span.usage:
                # A count under a key that is a secret by its name stays a count.
                changed["usage"] = dict(zip(usage, span.usage.values(), strict=True))
        return replace(span, **changed) if changed else span

    def _started(self, started: Started, found: RedactionCounts) -> Started:
        if not self.enabled:
            return started
        return replace(
            started,
            name=self.text(started.name, found)[:MAX_NAME],
            caller=self.text(started.caller, found)[:MAX_NAME],
            metadata=self._attributes(started.metadata, found),
        )

    def _message(self, message: ChatMessage, found: RedactionCounts) -> ChatMessage:
        length = len(message.content)
        if not self.enabled:
            return replace(message, length=length, redacted=False, raw="")
        content = self._content(message.content, found)
        redacted = content is not message.content
        return replace(
            message,
            content=content,
            redacted=redacted,
            length=length,
            raw=message.content if redacted and self._keeps_raw else "",
            metadata=self._attributes(message.metadata, found),
        )

    def _annotation(self, annotation: Annotation, found: RedactionCounts) -> Annotation:
        if not self.enabled:
            return annotation
        return replace(annotation, attributes=self._attributes(annotation.attributes, found))

    def _session_end(self, end: SessionEnd, found: RedactionCounts) -> SessionEnd:
        return replace(end, error=self._content(end.error, found)[:MAX_VALUE_BYTES]) if self.enabled else end

    def _content(self, text: str, found: RedactionCounts) -> str:
        """A text that is content as a whole."""
        if self._drops and text:
            return _note(found, DROPPED, "")
        return self.text(text, found)

    def _attributes(self, attributes: dict[str, Any], found: RedactionCounts) -> dict[str, Any]:
        clean = self._mapping(attributes, found, drop=False)
        if clean is attributes:
            return clean
        # What stands in for a secret may be longer than it, and what is out of bounds would be refused.
        return {key: _fit(value, MAX_VALUE_BYTES) if isinstance(value, str) else value for key, value in clean.items()}


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
    },
    Started: {"name": REDACTED, "caller": REDACTED, "metadata": {}},
    ChatMessage: {"content": REDACTED, "redacted": True, "raw": "", "length": 0, "metadata": {}},
    Annotation: {"attributes": {}},
    SessionEnd: {"error": REDACTED},
}


def _without_content(record: object) -> dict[str, Any]:
    """What stands for every text of *record*; texts that are empty stay so."""
    return {
        field: value for field, value in _CONTENT[type(record)].items() if value != REDACTED or getattr(record, field)
    }


_T = TypeVar("_T")


def _note(found: RedactionCounts, kind: str, stand_in: _T) -> _T:
    found[kind] = found.get(kind, 0) + 1
    return stand_in


def _fit(text: str, limit_bytes: int) -> str:
    """*text* cut to what is allowed, in UTF-8."""
    if len(text) * 4 <= limit_bytes:
        return text
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _free(name: str, *taken: dict[str, Any]) -> str:
    """*name*, with a number behind it when an entry is called so already."""
    free, number = name, 1
    while any(free in one for one in taken):
        number += 1
        free = f"{name}_{number}"
    return free
