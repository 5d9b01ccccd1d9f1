"""
The fitting of a span: what is merely long is cut and what contradicts itself is corrected, so no call is lost for it.

How it works. Every sender and every way into ingest runs ``fit_span`` before ``check_span``. Counts, costs and ids are
never changed. Each change is named in ``Span.adjusted``. Fitting a span that fits changes nothing.

A cut text ends with ``…[cut, N bytes]``, where N is the size of the whole text. It is cut before a word, because half
of a secret would not be recognised as one. Limits are in bytes of UTF-8, except that a name may have 256 characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.errors import shorten
from tokentrace.records.span import (
    MAX_ADJUSTED,
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_KEY_BYTES,
    MAX_NAME,
    MAX_VALUE_BYTES,
    MIN_INSTANT_NS,
    Span,
)

#: Limit for a whole span, encoded.
MAX_SPAN_BYTES = 512 * 1024
#: What a larger span is cut to: ids, times and placeholders of removed secrets are added later.
_TARGET_BYTES = MAX_SPAN_BYTES - 16 * 1024
#: A text of at most so many characters is under the limit for a value, whatever the characters are.
_SHORT = MAX_VALUE_BYTES // 4
#: A list of at most so many short texts is short.
_FEW = 100
#: If all texts of a span have at most so many characters together, the span is under its limit.
_SHORT_TOGETHER = _TARGET_BYTES // 8
#: Texts are cut to no fewer bytes than this.
_LEAST_BYTES = 64
_NAMES = ("name", "caller", "model", "provider", "scope")
_TEXTS = ("error", "error_stack")
#: Beginnings of the keys of attributes that are kept first if there are too many: ingest makes fields of them.
_KEPT_FIRST = ("eval.", "user", "session", "enduser")
_MARK = re.compile(r"…\[cut, (\d{1,12}) bytes\]\Z")
_BOUNDARY = re.compile(r"[\s,;\"'<>(){}\[\]|&]")

_encode = msgspec.msgpack.Encoder().encode


def fit_span(span: Span) -> Span:
    """Return *span* with its long texts cut and its contradictions corrected; the same object if it fits already."""
    if (
        len(span.name) <= MAX_NAME
        and len(span.caller) <= MAX_NAME
        and len(span.model) <= MAX_NAME
        and len(span.provider) <= MAX_NAME
        and len(span.scope) <= MAX_NAME
        and not (span.ttft_ns and span.ttft_ns > _latency(span) > 0)
        and not span.started_ns > span.ended_ns > 0
        and _is_short(span)
    ):
        return span
    fields: dict[str, Any] = {}
    notes: list[str] = []
    if 0 < span.ended_ns < span.started_ns:
        fields["started_ns"] = max(span.ended_ns - span.latency_ns, MIN_INSTANT_NS)
        notes.append("started_at: after ended_at, computed")
    if span.ttft_ns > _latency(span) > 0:
        fields["ttft_ns"] = 0
        notes.append("ttft_ms: over the latency, left out")
    fields |= fit_texts({name: getattr(span, name) for name in (*_NAMES, *_TEXTS)}, notes)
    attributes = fit_attributes(span.attributes, notes)
    if attributes is not span.attributes:
        fields["attributes"] = attributes
    fitted = replace(span, **fields)
    size = _size(fitted)
    if size > MAX_SPAN_BYTES:
        fitted = _fit_whole(fitted, size, notes)
    return replace(fitted, adjusted=joined(span.adjusted, notes)) if notes else span


def fit_texts(fields: dict[str, Any], notes: list[str]) -> dict[str, str]:
    """
    Return the names and texts in *fields* that are too long, cut.

    Args:
        fields: Field of a span -> value; a value that is no text is ignored.
        notes: What was cut is appended.
    """
    cut: dict[str, str] = {}
    for name in _NAMES:
        value = fields.get(name)
        if isinstance(value, str) and len(value) > MAX_NAME:
            cut[name] = cut_text(value, MAX_NAME)
            notes.append(_note_of_cut(name, value))
    for name in _TEXTS:
        value = fields.get(name)
        if isinstance(value, str) and len(value) > _SHORT and len(_utf8(value)) > MAX_VALUE_BYTES:
            cut[name] = cut_text(value, MAX_VALUE_BYTES)
            notes.append(_note_of_cut(name, value))
    return cut


def cut_text(text: str, limit: int) -> str:
    """
    Return *text* cut to at most *limit* bytes, with a mark that names its whole size; unchanged if it has no more.

    Args:
        limit: Bytes of UTF-8, at least ``_LEAST_BYTES``.
    """
    data = _utf8(text)
    if len(data) <= limit:
        return text
    mark = f"…[cut, {_whole_size(text)} bytes]"
    head = _MARK.sub("", text).encode(errors="replace")[: limit - len(mark.encode())].decode(errors="ignore")
    back = min(1024, len(head) // 4)
    boundaries = [found.start() for found in _BOUNDARY.finditer(head, len(head) - back)]
    return head[: boundaries[-1] if boundaries else len(head)] + mark


def _whole_size(text: str) -> int:
    """Return the bytes of *text* before it was cut for the first time."""
    marked = _MARK.search(text)
    return int(marked[1]) if marked is not None else len(_utf8(text))


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


def _note_of_cut(name: str, text: str) -> str:
    return f"{name}: cut, {_whole_size(text)} bytes"


def _latency(span: Span) -> int:
    """Return the latency of *span*, stated or between its instants, nanoseconds; 0 = unknown."""
    return span.latency_ns or (span.ended_ns - span.started_ns if 0 < span.started_ns < span.ended_ns else 0)


def _is_short(span: Span) -> bool:
    """Return True if the sizes of texts and attributes are under their limits for certain."""
    together = len(span.error) + len(span.error_stack)
    if len(span.error) > _SHORT or len(span.error_stack) > _SHORT or len(span.attributes) > MAX_ATTRIBUTES:
        return False
    for key, value in span.attributes.items():
        if isinstance(key, str) and len(key) * 4 > MAX_KEY_BYTES and len(_utf8(key)) > MAX_KEY_BYTES:
            return False
        if isinstance(value, str):
            if len(value) > _SHORT:
                return False
            together += len(value)
        elif isinstance(value, (dict, list)):
            if not isinstance(value, list) or len(value) > _FEW or not all(isinstance(item, str) for item in value):
                return False
            size = sum(map(len, value))
            if size > _SHORT - _FEW:
                return False
            together += size
    return together <= _SHORT_TOGETHER


# -- attributes


def fit_attributes(attributes: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """
    Return *attributes* with at most 128 keys of at most 256 bytes and values of at most 32 KiB; unchanged if they fit.

    Args:
        notes: What was cut or left out is appended.
    """
    changed = False
    kept = attributes
    if len(attributes) > MAX_ATTRIBUTES:
        changed = True
        kept = _first(attributes)
        notes.append(f"attributes: {len(attributes) - len(kept)} of {len(attributes)} left out")
    fitted: dict[str, Any] = {}
    for key, value in kept.items():
        name = key
        if isinstance(key, str) and len(_utf8(key)) > MAX_KEY_BYTES:
            name = cut_text(key, MAX_KEY_BYTES)
            changed = True
            if name in kept or name in fitted:
                notes.append(f"attributes.{shorten(key)}: left out, another key begins alike")
                continue
            notes.append(f"attributes.{shorten(key)}: the key is cut, {_whole_size(key)} bytes")
        fitted[name] = _fit_value(str(name), value, MAX_VALUE_BYTES, notes)
        changed = changed or fitted[name] is not value
    return fitted if changed else attributes


def _first(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the first 128 of *attributes*, those that ingest makes fields of before the others."""
    keys = [key for key in attributes if isinstance(key, str) and key.startswith(_KEPT_FIRST)][:MAX_ATTRIBUTES]
    chosen = set(keys)
    keys += [key for key in attributes if key not in chosen][: MAX_ATTRIBUTES - len(keys)]
    chosen = set(keys)
    return {key: value for key, value in attributes.items() if key in chosen}


def _fit_value(key: str, value: Any, limit: int, notes: list[str]) -> Any:
    """Return *value* with at most *limit* bytes; the same object if it has no more, or cannot be encoded."""
    if isinstance(value, str):
        if len(value) * 4 <= limit or len(_utf8(value)) <= limit:
            return value
        notes.append(f"attributes.{shorten(key)}: cut, {_whole_size(value)} bytes")
        return cut_text(value, limit)
    if not isinstance(value, (dict, list)):
        return value
    size = _size(value)
    if size <= limit:
        return value
    notes.append(f"attributes.{shorten(key)}: cut, {size} bytes")
    texts = _texts_in(value, MAX_DEPTH)
    level = _level([len(_utf8(text)) for text in texts], size - limit)
    if level >= _LEAST_BYTES:
        shorter = _with_texts_cut(value, level, MAX_DEPTH)
        if _size(shorter) <= limit:
            return shorter
    # There is more structure than text: what is left is its beginning, as a text.
    return cut_text(msgspec.json.encode(value).decode(), limit)


def _size(value: Any) -> int:
    """Return the size of *value* when encoded; 0 if it cannot be, which ``check_span`` finds."""
    try:
        return len(_encode(value))
    except (TypeError, ValueError, RecursionError, OverflowError):
        return 0


def _texts_in(value: Any, depth: int) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _texts_in(item, depth - 1)] if depth >= 0 else []


def _with_texts_cut(value: Any, limit: int, depth: int) -> Any:
    if isinstance(value, str):
        return cut_text(value, limit)
    if isinstance(value, dict) and depth >= 0:
        return {key: _with_texts_cut(item, limit, depth - 1) for key, item in value.items()}
    if isinstance(value, list) and depth >= 0:
        return [_with_texts_cut(item, limit, depth - 1) for item in value]
    return value


# -- the whole span


def _fit_whole(span: Span, size: int, notes: list[str]) -> Span:
    """Cut the largest values of *span*, which has *size* bytes, to one common size."""
    sizes = {("attributes", key): _size(value) for key, value in span.attributes.items()}
    sizes |= {("", name): len(_utf8(getattr(span, name))) for name in _TEXTS}
    level = max(_level(list(sizes.values()), size - _TARGET_BYTES), _LEAST_BYTES)
    fields: dict[str, Any] = {}
    attributes = dict(span.attributes)
    for (group, name), bytes_now in sizes.items():
        if bytes_now <= level:
            continue
        if group:
            attributes[name] = _fit_value(str(name), attributes[name], level, notes)
        else:
            text = getattr(span, name)
            notes.append(_note_of_cut(name, text))
            fields[name] = cut_text(text, level)
    return replace(span, **fields, attributes=attributes)


def _level(sizes: Sequence[int], excess: int) -> int:
    """Return the size to which all larger *sizes* must be cut so that their sum falls by *excess*; 0 = impossible."""
    ascending = sorted(sizes)
    room = sum(ascending) - excess
    for index, size in enumerate(ascending):
        left = len(ascending) - index
        if size * left > room:
            return max(room // left, 0)
        room -= size
    return ascending[-1] if ascending else 0


def joined(known: Sequence[str], notes: Sequence[str]) -> tuple[str, ...]:
    """Return the notes of both lists, one for each thing, the first ones if there are too many."""
    by_thing: dict[str, str] = {}
    for note in (*known, *notes):
        # The first note about a thing has its first size.
        by_thing.setdefault(note.rpartition(": ")[0], note if len(note) <= MAX_NAME else f"{note[: MAX_NAME - 1]}…")
    kept = tuple(by_thing.values())
    if len(kept) <= MAX_ADJUSTED:
        return kept
    rest = len(kept) - MAX_ADJUSTED + 1
    return (*kept[: MAX_ADJUSTED - 1], f"{rest} more values: cut or left out")
