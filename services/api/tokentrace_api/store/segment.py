"""
Segments: names, tables and errors of the DuckDB files, each of which holds what arrived on a UTC day or a part of it.

Retention removes whole files, so the records of a large day are split into several files.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from tokentrace.units import SECOND
from tokentrace_api.store.columns import COLUMNS

SCHEMA_VERSION = 5
#: Size from which on no more records are appended to a file, bytes.
MAX_BYTES = 1024 * 1024 * 1024
GLOB = "spans-*.duckdb"
#: Names of damaged files, which are kept, and of their WALs.
DAMAGED_GLOB = "spans-*.damaged-*"
#: Errors of the operating system that do not mean that a file is damaged.
_REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_NAME = re.compile(r"spans-(\d{4})-(\d\d)-(\d\d)-(\d{3,})\.duckdb")

#: Columns for spans that have started; a span that has ended also has a row in ``spans``.
STARTED = {
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "parent_span_id": "VARCHAR",
    "session_id": "VARCHAR",
    "user_id": "VARCHAR",
    "name": "VARCHAR",
    "kind": "VARCHAR",
    "caller": "VARCHAR",
    "started_ns": "BIGINT",
    "arrived_ns": "BIGINT",
    "metadata": "VARCHAR",
}
MESSAGES = {
    "message_id": "VARCHAR",
    "trace_id": "VARCHAR",
    "session_id": "VARCHAR",
    "span_id": "VARCHAR",
    "role": "VARCHAR",
    "content": "VARCHAR",
    "raw": "VARCHAR",
    "redacted": "BOOLEAN",
    "length": "BIGINT",
    "created_ns": "BIGINT",
    "arrived_ns": "BIGINT",
    "metadata": "VARCHAR",
}
SESSION_ENDS = {"session_id": "VARCHAR", "ended_ns": "BIGINT", "error": "VARCHAR", "arrived_ns": "BIGINT"}
#: Columns for updates that wait for their span.
AMENDMENTS = {"trace_id": "VARCHAR", "span_id": "VARCHAR", "change": "BLOB"}
#: Columns for the calls that the reader of a shard remembers, numbered in the order of the log.
CALLS = {
    "shard": "INTEGER",
    "number": "BIGINT",
    "key": "UBIGINT",
    "span_key": "UINTEGER",
    "usage": "UINTEGER",
    "cost": "UINTEGER",
    "duration": "UINTEGER",
    "start": "UBIGINT",
}
#: Table that queries may read -> its columns; each row is one record.
RECORDS: Mapping[str, Mapping[str, str]] = {
    "spans": COLUMNS,
    "started": STARTED,
    "messages": MESSAGES,
    "session_ends": SESSION_ENDS,
}
_TABLES: Mapping[str, Mapping[str, str]] = {
    **RECORDS,
    "amendments": AMENDMENTS,
    "position": {"shard": "INTEGER", "created_ns": "BIGINT", "sequence": "BIGINT"},
    "folded": {
        "shard": "INTEGER",
        "id": "VARCHAR",
        "sequence": "BIGINT",
        "part": "INTEGER",
        "time_ns": "BIGINT",
        "layout": "INTEGER",
    },
    "seen": {"shard": "INTEGER", "state": "BLOB"},
    "calls": CALLS,
    "call_state": {"shard": "INTEGER", "state": "BLOB"},
    "schema_version": {"version": "INTEGER"},
}


class Segment(NamedTuple):
    """A file of the store: its UTC day, and its number on that day from 0. Segments sort from old to new."""

    day: str
    part: int

    @property
    def name(self) -> str:
        """Name under which the file is attached to the database."""
        return f"d{self.day.replace('-', '')}_{self.part}"

    @property
    def file_name(self) -> str:
        """Name of the file in the directory of the store."""
        return f"spans-{self.day}-{self.part:03d}.duckdb"

    def next(self) -> Segment:
        """Return the next segment of the same day."""
        return Segment(self.day, self.part + 1)


def parse_segment(file: Path) -> Segment | None:
    """Return the segment that *file* is named after; None if the name is not that of a file of this version."""
    match = _NAME.fullmatch(file.name)
    if match is None or not _is_day(int(match[1]), int(match[2]), int(match[3])):
        return None
    return Segment(f"{match[1]}-{match[2]}-{match[3]}", int(match[4]))


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def day_of(time_ns: int) -> str:
    """Return the UTC day of an instant in Unix nanoseconds, such as ``2026-03-15``."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // SECOND):%Y-%m-%d}"


def table_statements(segment: Segment) -> list[str]:
    """Return SQL that creates the tables of *segment* that are missing."""
    return [
        f"CREATE TABLE IF NOT EXISTS {segment.name}.{table} "
        f"({', '.join(f'{name} {kind}' for name, kind in columns.items())})"
        for table, columns in _TABLES.items()
    ]


def check_statements(segment: Segment) -> list[str]:
    """Return SQL that reads every block of *segment*, and so fails if one is damaged."""
    return [f"SELECT bit_xor(hash(COLUMNS(*))) FROM {segment.name}.{table}" for table in _TABLES]


def is_refusal(reason: Exception) -> bool:
    """Return True if *reason* is a condition such as a full disk or a lock, and not damage of a file."""
    text = str(reason)
    if isinstance(reason, duckdb.OutOfMemoryException) or "set lock on file" in text or "already attached" in text:
        return True
    return any(os.strerror(code) in text for code in _REFUSALS)


_DTYPES = {"BIGINT": np.int64, "INTEGER": np.int32, "BOOLEAN": np.bool_}


def columns_from(table: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return *rows*, at least one, as numpy columns for ``Database.insert``; values are in the order of *table*."""
    columns = _TABLES[table]
    return {
        name: np.array(values, dtype=_DTYPES.get(kind, object))
        for (name, kind), values in zip(columns.items(), zip(*rows, strict=True), strict=True)
    }
