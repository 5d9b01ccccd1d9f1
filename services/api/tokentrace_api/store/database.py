"""DuckDB with files attached: one thread writes, any number read beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

Rows = list[tuple[Any, ...]]


class Database:
    """
    A database in memory, to which files are attached.

    Args:
        temporary: Where it puts what does not fit into its memory.
        memory_limit_mb: How much that is.
    """

    def __init__(self, temporary: Path, memory_limit_mb: int) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_limit_mb}MB",
            "threads": 2,
            "temp_directory": str(temporary),
            # Each checkpoint writes the started row group again: at DuckDB's 16 MB that was a quarter of all appending.
            "checkpoint_threshold": "128MB",
        }
        self._writer = duckdb.connect(":memory:", config=config)
        self._reading: set[duckdb.DuckDBPyConnection] = set()
        self._reading_changes = threading.Condition()

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """A statement of the writer, its result read to the end, as DuckDB asks before the next one."""
        rows: Rows = self._writer.execute(sql, list(parameters)).fetchall()
        return rows

    def attach(self, file: Path, name: str) -> None:
        """Make *file*, or open it, as the database *name*."""
        quoted = str(file).replace("'", "''")
        self.run(f"ATTACH '{quoted}' AS {name}")

    @contextlib.contextmanager
    def given(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """While inside, numpy *columns* are the writer's table *name*."""
        self._writer.register(name, columns)
        try:
            yield
        finally:
            self._writer.unregister(name)

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """
        Add rows to *table*.

        Args:
            columns: In the order of those of *table*: numpy arrays, at least one, or a value that all rows have.
        """
        arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
        values = [column for name, column in columns.items() if name not in arrays]
        wanted = ", ".join(name if name in arrays else "?" for name in columns)
        with self.given("columns", arrays):
            self.run(f"INSERT INTO {table} SELECT {wanted} FROM columns", values)

    def read(self, sql: str, parameters: Sequence[Any], limit_s: float | None) -> Rows:
        """
        The rows of *sql*, asked in any thread.

        Args:
            limit_s: Given up after so long; None = never.
        """
        with self._reading_changes:
            cursor = self._writer.cursor()
            self._reading.add(cursor)
        timer = threading.Timer(limit_s, cursor.interrupt) if limit_s else None
        if timer:
            timer.start()
        try:
            rows: Rows = cursor.execute(sql, list(parameters)).fetchall()
            return rows
        finally:
            if timer:
                timer.cancel()
            with self._reading_changes:
                cursor.close()
                self._reading.remove(cursor)
                self._reading_changes.notify_all()

    def close(self) -> None:
        """DuckDB closes nothing while somebody reads: who does is told to stop, and nobody else begins."""
        with self._reading_changes:
            while self._reading:
                for cursor in self._reading:
                    cursor.interrupt()
                # Again and again: one that has not begun yet does not hear it.
                self._reading_changes.wait(0.05)
            self._writer.close()
