"""The span store: DuckDB files, one per day of arrival."""

from tokentrace_api.store.columns import COLUMNS, attribute_is, attribute_text, columns_of, span_of, trace_hash
from tokentrace_api.store.database import Database
from tokentrace_api.store.segment import MESSAGES, STARTED, Segment, day_of
from tokentrace_api.store.store import Item, Store, StoreDamaged

__all__ = [
    "COLUMNS",
    "MESSAGES",
    "STARTED",
    "Database",
    "Item",
    "Segment",
    "Store",
    "StoreDamaged",
    "attribute_is",
    "attribute_text",
    "columns_of",
    "day_of",
    "span_of",
    "trace_hash",
]
