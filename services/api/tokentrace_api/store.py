"""
The span store: DuckDB, append-only, one file per UTC day of arrival.

A file holds its spans together with the stream position it contains and what its reader has folded, written in one
transaction, so a kill at any moment leaves spans, position and memory of the same instant. Retention is detaching and
removing a file. Called from worker threads; one writes, any number read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from tokentrace.errors import Rejected, Unavailable
from tokentrace.machine import Message
from tokentrace.records import Batch, Span, decode_batches
from tokentrace.records.position import Position
from tokentrace.seen import Seen
from tokentrace.units import DAY, SECOND
from tokentrace_api.columns import COLUMNS, attribute_text, columns_of, span_of

log = logging.getLogger("tokentrace.api.store")

SCHEMA_VERSION = 2
#: Ids folded since the last whole memory was written; more are folded into a new one.
_MAX_FOLDED = 50_000

_TABLES = (
    f"CREATE TABLE IF NOT EXISTS {{day}}.spans ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())})",
    "CREATE TABLE IF NOT EXISTS {day}.position (shard INTEGER, created_ns BIGINT, sequence BIGINT)",
    "CREATE TABLE IF NOT EXISTS {day}.folded "
    "(shard INTEGER, id VARCHAR, sequence BIGINT, part INTEGER, time_ns BIGINT)",
    "CREATE TABLE IF NOT EXISTS {day}.seen (shard INTEGER, state BLOB)",
    "CREATE TABLE IF NOT EXISTS {day}.schema_version (version INTEGER)",
)


class Item(NamedTuple):
    """A message to be stored, and the shard and stream it came from."""

    shard: int
    created_ns: int
    message: Message


class TraceRow(NamedTuple):
    """A line of ``GET /traces``: sums over the spans of a trace, each span once."""

    trace_id: str
    name: str
    started_ns: int
    ended_ns: int
    cost_nusd: int
    total_tokens: int
    span_count: int
    status: str


class Search(NamedTuple):
    """
    Which traces are asked for.

    Attributes:
        columns: Column -> value; one span of the trace has to match all of these and everything below but the last.
        attributes: Key -> value in text form.
        least: Column -> smallest value.
        text: What its name or error contains, whatever the case; "" = anything.
        since_ns, until_ns: The trace started at or after, at or before; None = whenever.
    """

    columns: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    least: Mapping[str, int] = {}
    text: str = ""
    since_ns: int | None = None
    until_ns: int | None = None

    def sql(self, source: str) -> tuple[str, str, list[Any]]:
        """(WHERE, HAVING, their values)."""
        conditions = [f"{column} = ?" for column in self.columns]
        values: list[Any] = list(self.columns.values())
        for key, value in self.attributes.items():
            text, paths = attribute_text(key)
            conditions.append(f"{text} = ?")
            values += [*paths, value]
        for column, least in self.least.items():
            conditions.append(f"{column} >= ?")
            values.append(least)
        if self.text:
            conditions.append("(contains(lower(name), ?) OR contains(lower(error), ?))")
            values += [self.text.lower()] * 2
        where = (
            f"WHERE trace_id IN (SELECT trace_id FROM {source} WHERE {' AND '.join(conditions)})" if conditions else ""
        )
        bounds = [("started >= ?", self.since_ns), ("started <= ?", self.until_ns)]
        having = " AND ".join(text for text, bound in bounds if bound is not None)
        values += [bound for _, bound in bounds if bound is not None]
        return where, f"HAVING {having}" if having else "", values


@dataclass
class _Reader:
    """What the store knows of one shard's stream."""

    position: Position | None
    seen: Seen
    folded: list[tuple[str, int, int, int]] = field(default_factory=list)
    unsaved: int = 0


class Store:
    """
    Spans on disk.

    Args:
        directory: Where the files are; made when it is not there.
        shards: Of the stream, for the memory of what was folded.
        max_spans: Rows that are shown, the newest; 0 = no limit.
        keep_ns: How long after arrival a span is shown.
        memory_limit_mb: DuckDB's.
    """

    def __init__(
        self, directory: Path, *, shards: int, max_spans: int = 0, keep_ns: int = 7 * DAY, memory_limit_mb: int = 512
    ) -> None:
        self._directory, self._shards = directory, shards
        self._max_spans, self._keep_ns = max_spans, keep_ns
        directory.mkdir(parents=True, exist_ok=True)
        self._database = duckdb.connect(":memory:", config={"memory_limit": f"{memory_limit_mb}MB", "threads": 2})
        self._days: list[str] = []
        self._lock = threading.RLock()
        self._ordinal = 0
        self._readers = {shard: _Reader(None, Seen(shards)) for shard in range(shards)}
        self.damaged: list[str] = []
        self.repeated = 0
        self.rejected = 0
        self._open()

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """A statement of the writer, its result read to the end, as DuckDB asks before the next one."""
        rows: list[tuple[Any, ...]] = self._database.execute(sql, list(parameters)).fetchall()
        return rows

    # -- opening

    def _open(self) -> None:
        for file in sorted(self._directory.glob("spans-*.duckdb")):
            try:
                self._attach(file)
                self._load(_day_name(file))
            except (duckdb.Error, Rejected) as exc:
                self._set_aside(file, exc)

    def _attach(self, file: Path) -> None:
        day = _day_name(file)
        self._run(f"ATTACH '{file}' AS {day}")
        try:
            for statement in _TABLES:
                self._run(statement.format(day=day))
            found = self._run(f"SELECT max(version) FROM {day}.schema_version")[0][0]
            if found is None:
                self._run(f"INSERT INTO {day}.schema_version VALUES ({SCHEMA_VERSION})")
            elif found != SCHEMA_VERSION:
                raise Rejected(f"schema version {found}, this program reads {SCHEMA_VERSION}")
        except (duckdb.Error, Rejected):
            self._run(f"DETACH {day}")
            raise
        self._days = sorted([*self._days, day])

    def _load(self, day: str) -> None:
        """Take over the reader's state of *day*; loaded in order, the newest one wins and contains the others'."""
        query = self._run
        newest = query(f"SELECT max(ordinal) FROM {day}.spans")[0][0]
        self._ordinal = max(self._ordinal, newest or 0)
        for shard, created_ns, sequence in query(f"SELECT shard, created_ns, sequence FROM {day}.position"):
            if shard >= self._shards:
                continue
            states = query(f"SELECT state FROM {day}.seen WHERE shard = ?", [shard])
            seen = Seen.restore(states[0][0]) if states else Seen(self._shards)
            folded = query(f"SELECT id, sequence, part, time_ns FROM {day}.folded WHERE shard = ?", [shard])
            seen.note(folded)
            self._readers[shard] = _Reader(Position(created_ns, sequence), seen, unsaved=len(folded))

    def _set_aside(self, file: Path, why: Exception) -> None:
        name = f"{file.name}.damaged-{int(time.time())}"
        log.error("%s cannot be read (%s); it is kept as %s and rebuilt from the stream", file.name, why, name)
        with contextlib.suppress(duckdb.Error):
            self._run(f"DETACH {_day_name(file)}")
        self._days = [day for day in self._days if day != _day_name(file)]
        for part in (file, file.with_name(file.name + ".wal")):
            if part.exists():
                part.rename(part.with_name(part.name.replace(file.name, name)))
        self.damaged.append(f"{file.name}: {type(why).__name__}")

    def position(self, shard: int) -> Position | None:
        """The last message of *shard* that is on disk."""
        return self._readers[shard].position

    # -- writing

    def append(self, items: Sequence[Item]) -> int:
        """
        Store *items*, in order, each day's in one transaction.

        Returns:
            How many spans are new.

        Raises:
            Unavailable: The disk refused; nothing of the failed day's transaction is stored, and it may be tried again.
        """
        with self._lock:
            stored = 0
            for day, group in _by_day(items):
                try:
                    stored += self._append_day(day, group)
                except duckdb.Error as exc:
                    with contextlib.suppress(duckdb.Error):
                        self._run("ROLLBACK")
                    self._reload()
                    raise Unavailable(f"span store: {type(exc).__name__}: {str(exc)[:200]}") from exc
            return stored

    def _append_day(self, day: str, items: Sequence[Item]) -> int:
        fresh = day not in self._days
        if fresh:
            self._attach(self._directory / f"spans-{day[1:5]}-{day[5:7]}-{day[7:]}.duckdb")
        spans: list[Span] = []
        rows: list[tuple[int, int]] = []
        touched: dict[int, Position] = {}
        for item in items:
            touched[item.shard] = Position(item.created_ns, item.message.sequence)
            for batch in self._new_batches(item):
                spans += batch.spans
                rows += [(item.message.sequence, item.shard)] * len(batch.spans)
        query = self._run
        query("BEGIN")
        if spans:
            columns = columns_of(spans, rows, self._ordinal + 1)
            self._insert(f"{day}.spans", columns)
        for shard, position in touched.items():
            self._write_reader(day, shard, position, fresh)
        query("COMMIT")
        for shard, position in touched.items():
            reader = self._readers[shard]
            reader.position, reader.folded = position, []
        self._ordinal += len(spans)
        return len(spans)

    def _new_batches(self, item: Item) -> Iterator[Batch]:
        reader, time_ns = self._readers[item.shard], item.message.time_ns
        try:
            batches = decode_batches(item.message.payload)
        except Rejected as exc:
            self.rejected += 1
            log.warning("message %d: %s", item.message.sequence, exc)
            return
        for batch in batches:
            if reader.seen.add(batch, time_ns):
                reader.folded.append((batch.id, batch.sequence, batch.part, time_ns))
                yield batch
            else:
                self.repeated += 1

    def _write_reader(self, day: str, shard: int, position: Position, fresh: bool) -> None:
        query, reader = self._run, self._readers[shard]
        query(f"DELETE FROM {day}.position WHERE shard = ?", [shard])
        query(f"INSERT INTO {day}.position VALUES (?, ?, ?)", [shard, position.created_ns, position.sequence])
        known = query(f"SELECT count(*) FROM {day}.seen WHERE shard = ?", [shard])[0][0]
        if fresh or known == 0 or reader.unsaved + len(reader.folded) > _MAX_FOLDED:
            reader.seen.forget(time.time_ns())
            query(f"DELETE FROM {day}.seen WHERE shard = ?", [shard])
            query(f"DELETE FROM {day}.folded WHERE shard = ?", [shard])
            query(f"INSERT INTO {day}.seen VALUES (?, ?)", [shard, reader.seen.snapshot()])
            reader.unsaved = 0
        elif reader.folded:
            folded = _folded_columns(shard, reader.folded)
            self._insert(f"{day}.folded", folded)
            reader.unsaved += len(reader.folded)

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self._database.register("columns", columns)
        try:
            self._run(f"INSERT INTO {table} SELECT * FROM columns")
        finally:
            self._database.unregister("columns")

    def _reload(self) -> None:
        """Forget what a failed transaction left in memory."""
        self._readers = {shard: _Reader(None, Seen(self._shards)) for shard in range(self._shards)}
        for day in self._days:
            self._load(day)

    def prune(self, now_ns: int) -> list[str]:
        """Let go of days that nobody can see any more; returns their names."""
        gone = []
        with self._lock:
            for day in self._days[:-1]:
                ordinal, arrived = self._run(f"SELECT max(ordinal), max(arrived_ns) FROM {day}.spans")[0]
                hidden = self._max_spans and (ordinal or 0) <= self._ordinal - self._max_spans
                if hidden or (arrived or 0) < now_ns - self._keep_ns:
                    file = self._directory / f"spans-{day[1:5]}-{day[5:7]}-{day[7:]}.duckdb"
                    self._days.remove(day)
                    self._run(f"DETACH {day}")
                    file.unlink(missing_ok=True)
                    gone.append(file.name)
        return gone

    def close(self) -> None:
        """Write everything out and let the files go."""
        with self._lock:
            self._database.close()

    # -- reading

    def _source(self, now_ns: int) -> str:
        """SQL that yields the rows people may see."""
        with self._lock:
            days = list(self._days)
            floor = self._ordinal - self._max_spans if self._max_spans else 0
        if not days:
            return ""
        condition = f"ordinal > {floor} AND arrived_ns >= {now_ns - self._keep_ns}"
        return "(" + " UNION ALL ".join(f"SELECT * FROM {day}.spans WHERE {condition}" for day in days) + ")"

    def query(
        self, sql: str, parameters: Sequence[Any], now_ns: int, *, limit_s: float | None = None
    ) -> list[tuple[Any, ...]]:
        """
        The rows of *sql*, in which ``{spans}`` stands for the rows that people may see.

        Args:
            limit_s: Given up after so long; None = never.

        Raises:
            Unavailable: The disk refused, or it took too long.
        """
        source = self._source(now_ns)
        if not source:
            return []
        return self._query(sql.replace("{spans}", source), parameters, limit_s)

    def shown_since(self, now_ns: int) -> int:
        """Before this instant of arrival nothing is shown, Unix nanoseconds."""
        floor = now_ns - self._keep_ns
        if self._max_spans and self._ordinal > self._max_spans:
            oldest = self.query("SELECT min(arrived_ns) FROM {spans}", [], now_ns)
            floor = max(floor, oldest[0][0] or 0) if oldest else floor
        return floor

    def _query(self, sql: str, parameters: Sequence[Any] = (), limit_s: float | None = None) -> list[tuple[Any, ...]]:
        cursor = self._database.cursor()
        timer = threading.Timer(limit_s, cursor.interrupt) if limit_s else None
        if timer:
            timer.start()
        try:
            return cursor.execute(sql, list(parameters)).fetchall()
        except duckdb.Error as exc:
            raise Unavailable(f"span store: {type(exc).__name__}") from exc
        finally:
            if timer:
                timer.cancel()
            cursor.close()

    def trace(self, trace_id: str, now_ns: int) -> list[Span]:
        """The spans of a trace by start, then arrival; of several versions of a span the last."""
        source = self._source(now_ns)
        if not source:
            return []
        rows = self._query(
            f"SELECT * FROM {source} WHERE trace_id = ? "
            "QUALIFY row_number() OVER (PARTITION BY span_id ORDER BY ordinal DESC) = 1 ORDER BY started_ns, ordinal",
            [trace_id],
        )
        return [span_of(row) for row in rows]

    def recent(self, limit: int, now_ns: int) -> list[Span]:
        """The newest spans by arrival, newest first."""
        source = self._source(now_ns)
        if not source:
            return []
        return [span_of(row) for row in self._query(f"SELECT * FROM {source} ORDER BY ordinal DESC LIMIT {int(limit)}")]

    def traces(self, search: Search, limit: int, offset: int, now_ns: int) -> tuple[list[TraceRow], int]:
        """A page of the traces that match *search*, newest start first, and how many there are."""
        source = self._source(now_ns)
        if not source:
            return [], 0
        matching, having, values = search.sql(source)
        grouped = f"SELECT trace_id, min(started_ns) AS started FROM {source} {matching} GROUP BY trace_id {having}"
        total = self._query(f"SELECT count(*) FROM ({grouped})", values)[0][0]
        page = self._query(f"{grouped} ORDER BY started DESC, trace_id LIMIT {int(limit)} OFFSET {int(offset)}", values)
        ids = [row[0] for row in page]
        if not ids:
            return [], total
        rows = self._query(
            f"WITH once AS (SELECT * FROM {source} WHERE trace_id IN ({', '.join('?' * len(ids))}) "
            "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) = 1) "
            "SELECT trace_id, "
            "coalesce(arg_min(name, (started_ns, ordinal)) FILTER (parent_span_id IS NULL), "
            "arg_min(name, (started_ns, ordinal))), "
            "min(started_ns), max(ended_ns), "
            "coalesce(sum(cost_nusd) FILTER (kind NOT IN ('http', 'agent', 'workflow', 'chain')), 0)::HUGEINT, "
            "sum(total_tokens)::HUGEINT, count(*), "
            "CASE WHEN bool_or(status = 'error') THEN 'error' WHEN bool_or(status = 'timeout') THEN 'timeout' "
            "ELSE 'ok' END "
            "FROM once GROUP BY trace_id",
            ids,
        )
        by_id = {
            row[0]: TraceRow(row[0], row[1], row[2], row[3], int(row[4]), int(row[5]), row[6], row[7]) for row in rows
        }
        return [by_id[trace_id] for trace_id in ids if trace_id in by_id], total

    def count(self, now_ns: int) -> int:
        """How many spans can be seen."""
        source = self._source(now_ns)
        return int(self._query(f"SELECT count(*) FROM {source}")[0][0]) if source else 0

    def disk_bytes(self) -> int:
        """What the files take."""
        return sum(file.stat().st_size for file in self._directory.glob("spans-*"))


def _day_name(file: Path) -> str:
    return "d" + file.name.removeprefix("spans-").removesuffix(".duckdb").replace("-", "")


def _day_of(time_ns: int) -> str:
    day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // SECOND)
    return f"d{day:%Y%m%d}"


def _by_day(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(_day_of(item.message.time_ns), []).append(item)
    return sorted(groups.items())


def _folded_columns(shard: int, folded: Iterable[tuple[str, int, int, int]]) -> dict[str, Any]:
    ids, sequences, parts, times = zip(*folded, strict=True)
    return {
        "shard": np.full(len(ids), shard, np.int32),
        "id": np.array(ids, dtype=object),
        "sequence": np.array(sequences, np.int64),
        "part": np.array(parts, np.int32),
        "time_ns": np.array(times, np.int64),
    }
