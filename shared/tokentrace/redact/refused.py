"""What may be shown of a span that is not valid: any of its fields may hold a secret, those of ids included."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from tokentrace.errors import shorten
from tokentrace.records import MAX_ATTRIBUTES, MAX_DEPTH, MAX_KEY_BYTES, MAX_NAME, Span
from tokentrace.redact.patterns import RedactionCounts
from tokentrace.redact.redactor import Redactor
from tokentrace.units import is_number


def clean_refused(span: Span, redactor: Redactor, redactions: RedactionCounts | None = None) -> Span | None:
    """
    Return the invalid *span* without secrets; None if it cannot be redacted.

    Args:
        redactions: Counts of removed secrets by kind are added to it.
    """
    # Redaction skips these fields: in a valid span they are ids or set by ingest. In a bad span they may hold any
    # text of the sender.
    try:
        ids = {name: getattr(span, name) for name in span.__struct_fields__ if name.endswith("_id")}
        shown = {name: redactor.text(value)[:MAX_NAME] for name, value in ids.items() if value}
        bare = replace(span, cost_model="", unpriced_reason="", source="", **shown)
        return redactor.span(replace(bare, attributes=readable(span.attributes)), redactions)
    except (TypeError, ValueError, RecursionError, AttributeError):
        return None


def readable(value: Any, depth: int = 0) -> Any:
    """Return *value* for JSON: containers are cut to the limits of attributes, other types become the type's name."""
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ATTRIBUTES] if depth < MAX_DEPTH else []
        return {shorten(key, MAX_KEY_BYTES): readable(item, depth + 1) for key, item in items}
    if isinstance(value, list):
        return [readable(item, depth + 1) for item in value[:MAX_ATTRIBUTES]] if depth < MAX_DEPTH else []
    if value is None or isinstance(value, (str, bool)):
        return value
    return value if is_number(value) and abs(value) < 2**63 else type(value).__name__
