"""Cursors as text for a URL: JSON in base64."""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def to_text(cursor: Any) -> str:
    """Return *cursor*, a named tuple, as text for a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def from_text(text: str, kind: type[T]) -> T | None:
    """Return the cursor of the type *kind* that ``to_text`` encoded; None = *text* has another form."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(decoded, type=kind)
    except (msgspec.DecodeError, ValueError):  # a ValueError is not base64, or not UTF-8
        return None
