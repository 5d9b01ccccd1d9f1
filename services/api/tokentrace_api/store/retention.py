"""Retention: which rows are shown, and which files are removed because they are too old or take too much space."""

from __future__ import annotations

from typing import NamedTuple

from tokentrace.units import SECOND
from tokentrace_api.store import segment
from tokentrace_api.store.catalog import Catalog
from tokentrace_api.store.segment import RECORDS, Segment


class Limits(NamedTuple):
    """
    Limits of the store.

    Attributes:
        keep_ns: How long after its arrival a record is shown, nanoseconds.
        max_spans: How many of the newest spans are shown; 0 = all.
        max_bytes: Maximum size of all files together, bytes; 0 = no limit.
    """

    keep_ns: int
    max_spans: int = 0
    max_bytes: int = 0


def prune(catalog: Catalog, limits: Limits, now_ns: int) -> list[str]:
    """
    Remove files, oldest first, that *limits* do not keep, and return their names; the newest file stays.

    A file is removed if all its records are older than ``keep_ns``, if all its spans are beyond ``max_spans``, or while
    all files together exceed ``max_bytes``. Damaged files are removed first, by age and size, because no query reads
    them.

    Raises:
        duckdb.Error, OSError: The disk refused.
        Rejected: A waiting update in a file cannot be decoded.
    """

    def is_too_large() -> bool:
        return bool(limits.max_bytes) and catalog.disk_bytes() > limits.max_bytes

    removed: list[str] = []
    for file in sorted(catalog.directory.glob(segment.DAMAGED_GLOB)):
        if file.is_dir() and not file.is_symlink():
            continue  # a file of another program, which was only renamed
        if is_too_large() or file.lstat().st_mtime < (now_ns - limits.keep_ns) / SECOND:
            file.unlink()
            removed.append(file.name)
    for opened in catalog.segments[:-1]:
        if _is_hidden(catalog, limits, opened, now_ns) or is_too_large():
            catalog.remove(opened)
            removed.append(opened.file_name)
    return removed


def _is_hidden(catalog: Catalog, limits: Limits, opened: Segment, now_ns: int) -> bool:
    """Return True if all records of *opened* are older than ``keep_ns``, or all its spans are beyond ``max_spans``."""
    run = catalog.database.run
    last_arrivals = [run(f"SELECT max(arrived_ns) FROM {opened.name}.{table}")[0][0] for table in RECORDS]
    last_ordinal = run(f"SELECT max(ordinal) FROM {opened.name}.spans")[0][0]
    if max((arrived for arrived in last_arrivals if arrived is not None), default=-1) < now_ns - limits.keep_ns:
        return True
    return (
        bool(limits.max_spans) and last_ordinal is not None and last_ordinal <= catalog.last_ordinal - limits.max_spans
    )
