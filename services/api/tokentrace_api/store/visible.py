"""Runs queries over the rows that are shown, in any thread, while files are added and removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from tokentrace.errors import Unavailable
from tokentrace_api.store.catalog import Catalog
from tokentrace_api.store.database import Rows
from tokentrace_api.store.retention import Limits
from tokentrace_api.store.segment import RECORDS, Segment

#: How often a query is tried if files are added or removed while it runs.
_TRIES = 3


class VisibleRows:
    """The rows that queries read: those of all files that are within *limits*."""

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self._catalog, self._limits = catalog, limits

    def query(self, sql: str, parameters: Sequence[Any], now_ns: int, limit_s: float | None) -> Rows:
        """
        Return the result of *sql*, in which ``{spans}``, or another table of ``RECORDS``, stands for the rows shown.

        Raises:
            Unavailable: The store is not open, the query failed or took longer than *limit_s*, or files were added or
                removed during every try.
        """
        for _ in range(_TRIES):
            segments = self._catalog.visible
            if segments is None:
                raise Unavailable("span store: is not open")
            expanded = sql
            for table in RECORDS:
                if "{" + table + "}" in sql:
                    if not segments:
                        return []
                    expanded = expanded.replace("{" + table + "}", f"({self._rows_of(table, segments, now_ns)})")
            try:
                return self._catalog.database.read(expanded, parameters, limit_s)
            except duckdb.Error as exc:
                if not isinstance(exc, duckdb.InterruptException):
                    self._catalog.suspect(segments, exc)
                if self._catalog.visible is segments or isinstance(exc, duckdb.InterruptException):
                    raise Unavailable(f"span store: {type(exc).__name__}") from exc
        raise Unavailable(f"span store: files were added or removed during each of {_TRIES} tries")

    def _rows_of(self, table: str, segments: Sequence[Segment], now_ns: int) -> str:
        condition = f"arrived_ns >= {now_ns - self._limits.keep_ns}"
        last_ordinal, max_spans = self._catalog.last_ordinal, self._limits.max_spans
        if table == "spans" and max_spans:
            # Without the upper bound, rows of a transaction that is committing would be shown in addition.
            condition += f" AND ordinal > {last_ordinal - max_spans} AND ordinal <= {last_ordinal}"
        return " UNION ALL ".join(f"SELECT * FROM {segment.name}.{table} WHERE {condition}" for segment in segments)

    def shown_since(self, now_ns: int) -> int:
        """Return the arrival time before which nothing is shown, Unix nanoseconds."""
        floor_ns = now_ns - self._limits.keep_ns
        if self._limits.max_spans and self._catalog.last_ordinal > self._limits.max_spans:
            oldest = self.query("SELECT min(arrived_ns) FROM {spans}", [], now_ns, None)
            floor_ns = max(floor_ns, oldest[0][0] or 0) if oldest else floor_ns
        return floor_ns
