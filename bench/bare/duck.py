"""Bare DuckDB: appending rows with the columns of the store, and scanning a table."""

from __future__ import annotations

import time
from pathlib import Path

import duckdb
import numpy as np

from tokentrace_api.store import COLUMNS


def bare_append(directory: Path, rows: int, times: int) -> float:
    """Return the rows per second of *times* transactions that each append the same *rows* rows from numpy arrays."""
    numbers = np.arange(rows, dtype=np.int64)
    columns = {
        name: np.array([f"{name}-{n % 1000}" for n in range(rows)], dtype=object)
        if kind == "VARCHAR"
        else numbers.astype({"UINTEGER": np.uint32, "INTEGER": np.int32}.get(kind, np.int64))
        for name, kind in COLUMNS.items()
        if kind != "BLOB"
    }
    database = _open(directory / "append.duckdb")
    database.execute(f"CREATE TABLE file.spans ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())})")
    database.register("prepared", columns)
    wanted = ", ".join(name if name in columns else "NULL" for name in COLUMNS)
    began = time.perf_counter()
    for _ in range(times):
        database.execute("BEGIN")
        database.execute(f"INSERT INTO file.spans SELECT {wanted} FROM prepared")
        database.execute("COMMIT")
    rate = rows * times / (time.perf_counter() - began)
    database.close()
    return rate


def bare_scan(directory: Path, rows: int, tries: int) -> float:
    """Return the median of *tries* times of a scan that compares a text and a number in *rows* rows, seconds."""
    database = _open(directory / "scan.duckdb")
    database.execute("CREATE TABLE file.spans (name VARCHAR, cost BIGINT)")
    database.execute(
        f"INSERT INTO file.spans SELECT 'task-' || (i * 7919 % 40), i * 977 % 10000000 FROM range({rows}) AS t(i)"
    )
    took = []
    for number in range(tries):
        began = time.perf_counter()
        database.execute("SELECT count(*) FROM file.spans WHERE name = 'task-3' AND cost > ?", [number]).fetchall()
        took.append(time.perf_counter() - began)
    database.close()
    return sorted(took)[tries // 2]


def _open(file: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:", config={"threads": 2, "checkpoint_threshold": "128MB"})
    database.execute(f"ATTACH '{file}' AS file")
    return database
