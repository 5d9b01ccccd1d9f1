"""How the value of an attribute is read: each function returns what it means, or None if it says nothing."""

from __future__ import annotations

import ast
import base64
import math
import re
from json import dumps
from typing import Any

import msgspec

from tokentrace.records import MAX_DEPTH, MAX_NAME, MAX_TOKENS
from tokentrace.units import is_number

#: A longer text is not parsed as a literal of Python, whose parser is slow.
_MAX_LITERAL = 16 * 1024
#: What Python prints -> what it is in JSON.
_JSON = {"'": '"', "None": "null", "True": "true", "False": "false"}
_PYTHON = re.compile("|".join(_JSON))
_MAX_INT, _MIN_INT = 2**64 - 1, -(2**63)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def present(value: Any) -> Any:
    """Return *value*; None if it is an empty text, list or object."""
    return None if value in ("", [], {}) else value


def text(value: Any) -> str | None:
    """Return a text that is not empty."""
    return value if isinstance(value, str) and value else None


def text_or_number(value: Any) -> str | None:
    """Return a text that is not empty, or a number as text."""
    return value or None if isinstance(value, str) else str(value) if is_number(value) else None


def id_text(value: Any) -> str | None:
    """Return the id of a user or session, at most 256 characters; a number is its text."""
    found = text_or_number(value)
    return found[:MAX_NAME] if found else None


def number(value: Any) -> float | int | None:
    """Return a finite number, which may be given as text."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) <= 40 else None
        except ValueError:
            return None
    return value if is_number(value) else None


def count(value: Any) -> int | None:
    """Return a whole number from 0 to 2**40, which may be given as text or as a float without a fraction."""
    if value.__class__ is not int:
        found = number(value)
        if found is None or found != math.floor(found):
            return None
        value = int(found)
    return value if 0 <= value <= MAX_TOKENS else None


def flag(value: Any) -> bool | None:
    """Return a bool, which may be given as text in any case."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def unquoted(value: Any) -> str | None:
    """Return a text, which may be the JSON of a text: ``"\\"stop\\""`` is ``stop``."""
    if isinstance(value, str) and value[:1] == '"':
        value = json(value)
    return text(value)


def first_word(value: Any) -> str | None:
    """Return the first text of a list, which may be JSON; a text is its own first; "" = it is given and empty."""
    if isinstance(value, str):
        if value[:1] not in ("[", '"'):
            return value
        value = json(value)
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else None


def json(value: str) -> Any:
    """Return what *value* is as JSON; None if it is none."""
    try:
        return _decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def mapping(value: Any) -> dict[str, Any]:
    """Return an object, which may be given as JSON; {} if *value* is none."""
    if isinstance(value, str):
        value = json(value) if value[:1] == "{" else None
    return value if isinstance(value, dict) else {}


def python_mapping(value: Any) -> dict[str, Any]:
    """Return an object, which may be given as JSON or as Python prints it; {} if *value* is none."""
    found = mapping(value)
    if found or not isinstance(value, str) or value[:1] != "{" or len(value) > _MAX_LITERAL:
        return found
    if '"' not in value and "\\" not in value:
        # JSON is read in a hundredth of the time.
        found = mapping(_PYTHON.sub(lambda match: _JSON[match[0]], value))
        if found:
            return found
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {}
    return literal if isinstance(literal, dict) and all(isinstance(key, str) for key in literal) else {}


def content(value: Any) -> str | None:
    """Return a text; a list or object is its JSON."""
    if isinstance(value, str):
        return value or None
    return encoded(value) if isinstance(value, (list, dict)) and value else None


def encoded(value: Any) -> str:
    """Return *value* as JSON."""
    try:
        return _encode(value).decode()
    except (OverflowError, TypeError):
        # A number of more than 64 bits.
        return dumps(value, default=str, ensure_ascii=False)


def tags(value: Any) -> list[str] | None:
    """Return the texts of a list, which may be JSON; a text is the only one."""
    if isinstance(value, str):
        value = json(value) if value[:1] == "[" else [value]
    if not isinstance(value, list):
        return None
    return [item for item in value if isinstance(item, str) and item] or None


def plain(value: Any, depth: int = MAX_DEPTH - 1) -> Any:
    """
    Return *value* as an attribute of a record can hold it; None if there is nothing to hold.

    Bytes are text in base64, and numbers of more than 64 bits and what is nested too deep are text as well.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if _MIN_INT <= value <= _MAX_INT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if not isinstance(value, (list, dict)):
        return None
    if not depth:
        return encoded(value)
    if isinstance(value, list):
        return [plain(item, depth - 1) for item in value] or None
    return {str(key): plain(item, depth - 1) for key, item in value.items()} or None
