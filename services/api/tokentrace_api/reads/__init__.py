"""Queries to the span store: pages of traces, single spans, sessions, and metrics by attribute; span trees."""

from tokentrace_api.reads.pages import Cursor, Page, TraceRow, encode_cursor, find_page, parse_cursor
from tokentrace_api.reads.search import Search, value_is
from tokentrace_api.reads.sessions import (
    Session,
    SessionFilter,
    find_session,
    list_sessions,
    session_messages,
    session_spans,
    sum_sessions,
)
from tokentrace_api.reads.spans import find_by_id, find_spans, newest_ordinal, open_spans, shards_of
from tokentrace_api.reads.store_metrics import (
    Exemplar,
    Where,
    aggregates_by,
    aggregates_in_steps,
    count_skipped,
    custom_values_by,
    exemplars,
)
from tokentrace_api.reads.sums import Sums, sums_of
from tokentrace_api.reads.tellings import with_later_versions
from tokentrace_api.reads.tree import depths

__all__ = [
    "Cursor",
    "Exemplar",
    "Page",
    "Search",
    "Session",
    "SessionFilter",
    "Sums",
    "TraceRow",
    "Where",
    "aggregates_by",
    "aggregates_in_steps",
    "count_skipped",
    "custom_values_by",
    "depths",
    "encode_cursor",
    "exemplars",
    "find_by_id",
    "find_page",
    "find_session",
    "find_spans",
    "list_sessions",
    "newest_ordinal",
    "open_spans",
    "parse_cursor",
    "session_messages",
    "session_spans",
    "shards_of",
    "sum_sessions",
    "sums_of",
    "value_is",
    "with_later_versions",
]
