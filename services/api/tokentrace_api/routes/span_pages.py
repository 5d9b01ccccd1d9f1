"""The parameters that page through the spans of a trace or of a session."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from tokentrace.service.contract import parsed
from tokentrace_api.reads import SpanCursor, parse_span_cursor

#: Number of spans on a page unless a request asks for another number, and the largest number.
DEFAULT_SPANS, MAX_SPANS = 1000, 5000
SPAN_LIMIT_TEXT = f"Spans on a page; over {MAX_SPANS} counts as {MAX_SPANS}."
SPAN_CURSOR_TEXT = "Cursor of the page, from the previous page."


EndedFirstCursor = Annotated[
    SpanCursor | None, parsed(lambda text: parse_span_cursor(text, "ended first")), WithJsonSchema({"type": "string"})
]
StartCursor = Annotated[
    SpanCursor | None, parsed(lambda text: parse_span_cursor(text, "start")), WithJsonSchema({"type": "string"})
]
