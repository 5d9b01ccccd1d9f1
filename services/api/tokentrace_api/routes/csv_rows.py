"""Tables as CSV, which a spreadsheet shows as text: what strangers wrote is never run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec


def cell(value: object) -> object:
    """Return *value* as a CSV field; a leading quote keeps a spreadsheet from running text as a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode() if value else ""
    return "" if value is None else value


def csv_rows(rows: Iterable[Sequence[object]]) -> bytes:
    """Return *rows* as CSV in UTF-8."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
