"""
Lenient reading: what clients of other languages write in another way than ours is taken as what it means.

Decode strictly first, which is fast, and use these functions only for what a strict decoder refused. ``null`` where a
value is expected means absent, ``1000.0`` is 1000 where a whole number is expected, Go's zero time (0001-01-01) means
absent, second 60 is the second after 59, half of a surrogate pair becomes U+FFFD, and a byte order mark is skipped.
Nothing else is changed, so a strict decoder still finds every other error.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from tokentrace.errors import Rejected
from tokentrace.units import SECOND, US, parse_instant

T = TypeVar("T")

BOM = b"\xef\xbb\xbf"
#: How instants begin that a Go program never set.
GO_ZERO = "0001-01-01T"
_LEAP = re.compile(r"[Tt ]\d\d:\d\d:60(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)
_ESCAPE = re.compile(
    rb"\\(?:u(?P<high>[dD][89abAB][0-9a-fA-F]{2})(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
    rb"|u(?P<half>[dD][c-fC-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Values are relaxed to this depth; strict decoders refuse deeper ones, or keep them as they are.
_DEPTH = 64


def decode_json(decoder: msgspec.json.Decoder[T], kind: Any, body: bytes | msgspec.Raw) -> T:
    """
    Decode *body* with *decoder*, or leniently if that fails.

    Args:
        kind: The type of *decoder*.

    Raises:
        msgspec.DecodeError, RecursionError, UnicodeDecodeError: Even read leniently, *body* is no such value. The error
            is about the lenient reading if that got further.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded: T = msgspec.convert(plain_json(body, kind), kind)
        return decoded


def plain_json(body: bytes | msgspec.Raw, kind: Any) -> Any:
    """Return the plain data of *body*, relaxed for the type *kind*; raises what decoders of msgspec raise."""
    return relax(msgspec.json.decode(repaired(bytes(body))), kind)


def repaired(body: bytes) -> bytes:
    """Return JSON without byte order mark, in which halves of surrogate pairs, escaped or not, are U+FFFD."""
    body = body.removeprefix(BOM)
    if b"\\u" in body:
        body = _ESCAPE.sub(_without_half, body)
    if b"\xed" in body:
        try:
            text = body.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return body
        if _SURROGATE.search(text):
            # Two halves that were encoded one by one become the character that they stand for.
            body = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    return body


def _without_half(match: re.Match[bytes]) -> bytes:
    is_half = match["half"] is not None or (match["high"] is not None and match["low"] is None)
    return b"\\ufffd" if is_half else match[0]


def without_surrogates(value: Any, depth: int = _DEPTH) -> Any:
    """Return *value* with U+FFFD for halves of surrogate pairs in texts at any depth, keys included."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if depth and isinstance(value, dict):
        return {without_surrogates(key, 0): without_surrogates(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [without_surrogates(item, depth - 1) for item in value]
    return value


def relax(value: Any, kind: Any) -> Any:
    """Return the plain data *value* as a strict decoder of the type *kind* takes it, where the meaning is clear."""
    return _relaxed(value, _info(kind), _DEPTH)


@cache
def _info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


class _Absent:
    """A value that means that there is none."""


_ABSENT = _Absent()


def _relaxed(value: Any, info: inspect.Type, depth: int) -> Any:
    if value is None:
        return None if _takes(info, inspect.NoneType, inspect.AnyType) else _ABSENT
    if isinstance(value, float):
        whole = value.is_integer() and _takes(info, inspect.IntType) and not _takes(info, inspect.FloatType)
        return int(value) if whole and not _takes(info, inspect.AnyType) else value
    if isinstance(value, str):
        return _instant(value) if _takes(info, inspect.DateTimeType) else value
    if depth and isinstance(value, (dict, list)):
        for option in _options(info):
            relaxed = _container(value, option, depth - 1)
            if relaxed is not None:
                return relaxed
    return value


def _options(info: inspect.Type) -> tuple[inspect.Type, ...]:
    return info.types if isinstance(info, inspect.UnionType) else (info,)


def _takes(info: inspect.Type, *kinds: type[inspect.Type]) -> bool:
    return any(isinstance(_plain(option), kinds) for option in _options(_plain(info)))


def _plain(info: inspect.Type) -> inspect.Type:
    return info.type if isinstance(info, inspect.Metadata) else info


def _container(value: Any, info: inspect.Type, depth: int) -> Any:
    """Return the dict or list *value*, relaxed, if *info* describes one such; otherwise None."""
    info = _plain(info)
    if isinstance(info, inspect.StructType) and info.array_like is isinstance(value, list):
        if isinstance(value, dict):
            types = {field.encode_name: field for field in info.fields}
            relaxed = {
                key: _relaxed(item, types[key].type if key in types else _ANY, depth) for key, item in value.items()
            }
            # A required field stays null, so that the error names it.
            return {
                key: None if item is _ABSENT else item
                for key, item in relaxed.items()
                if item is not _ABSENT or types[key].required
            }
        return [
            _default(field) if (new := _relaxed(item, field.type, depth)) is _ABSENT else new
            for item, field in zip(value, info.fields, strict=False)
        ]
    if isinstance(info, inspect.DictType) and isinstance(value, dict):
        relaxed = {key: _relaxed(item, info.value_type, depth) for key, item in value.items()}
        return {key: item for key, item in relaxed.items() if item is not _ABSENT}
    if isinstance(info, (inspect.ListType, inspect.VarTupleType)) and isinstance(value, list):
        # Absent stays null in a list: leaving it out would move the others.
        items = [_relaxed(item, info.item_type, depth) for item in value]
        return [item if new is _ABSENT else new for item, new in zip(value, items, strict=True)]
    return None


_ANY = inspect.AnyType()


def _default(field: inspect.Field) -> Any:
    """Return the default of an element of an array, which cannot be left out; None if it has no default."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return None if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _instant(text: str) -> datetime | str | _Absent:
    if text.startswith(GO_ZERO):
        return _ABSENT
    if _LEAP.search(text):
        try:
            seconds, ns = divmod(parse_instant(text), SECOND)
            return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=ns // US)
        except (Rejected, ValueError, OverflowError):
            return text
    return text
