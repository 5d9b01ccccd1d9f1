"""
A segment: one DuckDB file with what arrived on a UTC day, or in a part of it, and the stream positions it contains.

A file is let go of as a whole; so a day that grows large is cut into several.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from tokentrace.units import SECOND
from tokentrace_api.store.columns import COLUMNS

SCHEMA_VERSION = 3
#: A file that is larger than this is followed by another.
MAX_BYTES = 1024 * 1024 * 1024
GLOB = "spans-*.duckdb"
#: Files that could not be read, and what belongs to them.
SET_ASIDE = "spans-*.damaged-*"
#: Why a disk refuses although no file is damaged.
_REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_NAME = re.compile(r"spans-(\d{4})-(\d\d)-(\d\d)-(\d{3,})\.duckdb")

#: Spans that began and were not known to have ended.
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
#: What was said of spans that had not arrived yet.
AMENDMENTS = {"trace_id": "VARCHAR", "span_id": "VARCHAR", "change": "BLOB"}
#: What can be asked for: each yields one row for one record.
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
    },
    "seen": {"shard": "INTEGER", "state": "BLOB"},
    "schema_version": {"version": "INTEGER"},
}


class Segment(NamedTuple):
    """Which file: the day of arrival and its how-manieth; in this order they follow each other in time."""

    day: str
    part: int

    @property
    def name(self) -> str:
        """What the attached database is called."""
        return f"d{self.day.replace('-', '')}_{self.part}"

    @property
    def file_name(self) -> str:
        """Its file in the store's directory."""
        return f"spans-{self.day}-{self.part:03d}.duckdb"

    def next(self) -> Segment:
        """The one that follows on the same day."""
        return Segment(self.day, self.part + 1)


def parse_segment(file: Path) -> Segment | None:
    """The segment that *file* holds; None when it is none of this version."""
    match = _NAME.fullmatch(file.name)
    return Segment(f"{match[1]}-{match[2]}-{match[3]}", int(match[4])) if match else None


def day_of(time_ns: int) -> str:
    """The UTC day of an instant, such as ``2026-03-15``."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // SECOND):%Y-%m-%d}"


def table_statements(segment: Segment) -> list[str]:
    """SQL that makes the tables of *segment* where they are not there."""
    return [
        f"CREATE TABLE IF NOT EXISTS {segment.name}.{table} "
        f"({', '.join(f'{name} {kind}' for name, kind in columns.items())})"
        for table, columns in _TABLES.items()
    ]


def check_statements(segment: Segment) -> list[str]:
    """SQL that reads every block of *segment*, and so fails when one is damaged."""
    return [f"SELECT bit_xor(hash(COLUMNS(*))) FROM {segment.name}.{table}" for table in _TABLES]


def is_refusal(why: Exception) -> bool:
    """A file could not be opened for a reason that passes: the disk is full or read-only, somebody else has it open."""
    text = str(why)
    if isinstance(why, duckdb.OutOfMemoryException) or "set lock on file" in text or "already attached" in text:
        return True
    return any(os.strerror(code) in text for code in _REFUSALS)


_DTYPES = {"BIGINT": np.int64, "INTEGER": np.int32, "BOOLEAN": np.bool_}


def columns_from(table: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """*rows*, at least one, in the order of the columns of *table*, as numpy columns that DuckDB inserts from."""
    columns = _TABLES[table]
    return {
        name: np.array(values, dtype=_DTYPES.get(kind, object))
        for (name, kind), values in zip(columns.items(), zip(*rows, strict=True), strict=True)
    }
