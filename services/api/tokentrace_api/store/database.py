"""DuckDB with files attached: one thread writes, any number of threads query at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tokentrace_api.store.text import folded

Rows = list[tuple[Any, ...]]


class Database:
    """
    A database in memory, to which files are attached.

    Args:
        temporary: Directory into which DuckDB writes data that exceeds its memory limit.
        memory_limit_mb: Memory limit of DuckDB, MB.
    """

    def __init__(self, temporary: Path, memory_limit_mb: int) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_limit_mb}MB",
            "threads": 2,
            "temp_directory": str(temporary),
            # Nothing can be appended during a checkpoint, so checkpoints are small, and each writes only the rows that
            # arrived since the last one: with vacuum tasks, it also merges the row groups of earlier checkpoints into
            # larger and larger ones, which took seconds.
            "checkpoint_threshold": "16MB",
            "max_vacuum_tasks": 0,
        }
        self._writer = duckdb.connect(":memory:", config=config)
        self._writer.create_function("folded", folded, ["VARCHAR"], "VARCHAR")
        self._reading: set[duckdb.DuckDBPyConnection] = set()
        self._reading_changes = threading.Condition()

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run a statement on the writer's connection and return all its rows."""
        rows: Rows = self._writer.execute(sql, list(parameters)).fetchall()
        return rows

    def arrays(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, Any]:
        """Run a query on the writer's connection and return its columns as numpy arrays."""
        columns: dict[str, Any] = self._writer.execute(sql, list(parameters)).fetchnumpy()
        return columns

    def attach(self, file: Path, name: str) -> None:
        """Attach *file* as the database *name*; create the file if it is missing."""
        quoted = str(file).replace("'", "''")
        self.run(f"ATTACH '{quoted}' AS {name}")

    @contextlib.contextmanager
    def registered(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """Let statements of the writer read numpy *columns* as the table *name* while the context lasts."""
        self._writer.register(name, columns)
        try:
            yield
        finally:
            self._writer.unregister(name)

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """
        Insert rows into *table*.

        Args:
            columns: Name -> a numpy array, or one value for all rows, in the order of the columns of *table*; at least
                one is an array.
        """
        arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
        values = [column for name, column in columns.items() if name not in arrays]
        selected = ", ".join(name if name in arrays else "?" for name in columns)
        with self.registered("columns", arrays):
            self.run(f"INSERT INTO {table} SELECT {selected} FROM columns", values)

    def read(self, sql: str, parameters: Sequence[Any], limit_s: float | None) -> Rows:
        """
        Run a query and return its rows; any thread may call this.

        Args:
            limit_s: Seconds after which the query is interrupted; None = never.

        Raises:
            duckdb.Error: The query failed or the database is closed; ``InterruptException`` if the query took too long
                or the database was closing.
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

    def checkpoint(self, name: str) -> None:
        """
        Write the write-ahead file of the database *name* back now, and merge a few small row groups.

        Raises:
            duckdb.Error: The disk refused, or a query holds the file.
        """
        # Without merging, many such checkpoints would leave as many row groups of a few rows.
        self.run("SET max_vacuum_tasks = 1")
        try:
            self.run(f"FORCE CHECKPOINT {name}")
        finally:
            self.run("SET max_vacuum_tasks = 0")

    @property
    def running_queries(self) -> int:
        """Number of queries that run now."""
        return len(self._reading)

    def close(self) -> None:
        """Interrupt all queries and close the database. A query that is started meanwhile waits and then fails."""
        with self._reading_changes:
            while self._reading:
                for cursor in self._reading:
                    cursor.interrupt()
                # DuckDB does not close while a query runs, and an interrupt has no effect before the query begins.
                self._reading_changes.wait(0.05)
            self._writer.close()
