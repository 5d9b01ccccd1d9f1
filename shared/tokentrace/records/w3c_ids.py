"""Ids as W3C's trace context and OpenTelemetry write them: a trace has 32 hexadecimal digits, a span has 16."""

from __future__ import annotations

import hashlib
import re

TRACE_DIGITS, SPAN_DIGITS = 32, 16
_HEX = re.compile(r"[0-9a-f]+")


def w3c_digits(id: str, length: int) -> str:
    """
    Return *id* as *length* lower-case hexadecimal digits that are not all zero.

    An id that has these digits already stays. Another one in hexadecimal is shortened to its last digits, or filled
    with zeros on the left, as MIST does. Of any other id it is a hash.
    """
    digits = id.replace("-", "").lower()
    if not _HEX.fullmatch(digits) or not digits[-length:].strip("0"):
        return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:length]
    return digits[-length:].rjust(length, "0")
