"""
The span store: DuckDB, append-only, in files by UTC day of arrival.

A file holds its spans together with the stream positions it contains and what its reader has folded, written in one
transaction, so a kill at any moment leaves spans, positions and memory of the same instant. Retention is detaching and
removing a file. Called from worker threads; one writes, any number read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import numpy as np
from msgspec.structs import replace

from tokentrace.errors import Rejected, Unavailable
from tokentrace.machine import Message
from tokentrace.records import Batch, ChatMessage, Span, Started, Tombstone, decode_batches
from tokentrace.records.position import Position
from tokentrace.seen import Seen
from tokentrace.units import DAY
from tokentrace_api import graves, segment
from tokentrace_api.amend import Change, Key, changes_of
from tokentrace_api.columns import attributes_json, columns_of, span_of, trace_hash
from tokentrace_api.graves import Graves
from tokentrace_api.segment import RECORDS, Segment, columns_from, day_of, parse_segment

log = logging.getLogger("tokentrace.api.store")

#: Ids folded since the last whole memory was written; more are folded into a new one.
_MAX_FOLDED = 50_000
_changes = msgspec.msgpack.Decoder(Change)
Rows = list[tuple[Any, ...]]


class Item(NamedTuple):
    """A message to be stored, and the shard and stream it came from."""

    shard: int
    created_ns: int
    message: Message


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
        max_bytes: What all files may take; the oldest go first, the newest stays. 0 = no limit.
        memory_limit_mb: DuckDB's.

    Attributes:
        damaged: Files that could not be read, and why.
        repeated, rejected: Batches that were known already; messages that could not be read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        shards: int,
        max_spans: int = 0,
        keep_ns: int = 7 * DAY,
        max_bytes: int = 0,
        memory_limit_mb: int = 512,
    ) -> None:
        self._directory, self._shards = directory, shards
        self._max_spans, self._keep_ns, self._max_bytes = max_spans, keep_ns, max_bytes
        self._memory_limit_mb = memory_limit_mb
        self._lock = threading.RLock()
        self._graves = Graves()
        self.damaged: list[str] = []
        self.repeated = 0
        self.rejected = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # A disk that cannot be written must not pass for files that cannot be read.
            (directory / "probe").write_bytes(b"")
            self._open()
        except (OSError, duckdb.Error) as exc:
            raise Unavailable(f"span store: {directory} cannot be opened: {str(exc)[:200]}") from exc

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """A statement of the writer, its result read to the end, as DuckDB asks before the next one."""
        rows: Rows = self._database.execute(sql, list(parameters)).fetchall()
        return rows

    # -- opening

    def _open(self) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{self._memory_limit_mb}MB",
            "threads": 2,
            "temp_directory": str(self._directory / "tmp"),
        }
        self._database = duckdb.connect(":memory:", config=config)
        self._segments: list[Segment] = []
        self._ordinal = 0
        self._forget()
        for file in sorted(self._directory.glob(segment.GLOB)):
            try:
                self._attach(file)
                self._load(self._segments[-1])
            except (duckdb.Error, Rejected) as exc:
                self._set_aside(file, exc)

    def _forget(self) -> None:
        self._readers = {shard: _Reader(None, Seen(self._shards)) for shard in range(self._shards)}
        #: What was said of spans that are not here yet.
        self._waiting: dict[Key, Change] = {}

    def _attach(self, file: Path) -> None:
        opened = parse_segment(file)
        if opened is None:
            raise Rejected("not a file of this version")
        try:
            self._run(f"ATTACH '{file}' AS {opened.name}")
            for statement in segment.table_statements(opened):
                self._run(statement)
            found = self._run(f"SELECT max(version) FROM {opened.name}.schema_version")[0][0]
            if found is None:
                self._run(f"INSERT INTO {opened.name}.schema_version VALUES ({segment.SCHEMA_VERSION})")
            elif found != segment.SCHEMA_VERSION:
                raise Rejected(f"schema version {found}, this program reads {segment.SCHEMA_VERSION}")
        except (duckdb.Error, Rejected):
            with contextlib.suppress(duckdb.Error):
                self._run(f"DETACH {opened.name}")
            raise
        self._segments = sorted([*self._segments, opened])

    def _load(self, opened: Segment) -> None:
        """Take over the readers' state of a segment; in order, the newest one wins and contains the others'."""
        query, name = self._run, opened.name
        newest = query(f"SELECT max(ordinal) FROM {name}.spans")[0][0]
        self._ordinal = max(self._ordinal, newest or 0)
        for shard, created_ns, sequence in query(f"SELECT shard, created_ns, sequence FROM {name}.position"):
            if shard >= self._shards:
                continue
            states = query(f"SELECT state FROM {name}.seen WHERE shard = ?", [shard])
            seen = Seen.restore(states[0][0]) if states else Seen(self._shards)
            folded = query(f"SELECT id, sequence, part, time_ns FROM {name}.folded WHERE shard = ?", [shard])
            seen.note(folded)
            self._readers[shard] = _Reader(Position(created_ns, sequence), seen, unsaved=len(folded))
        for trace_id, span_id, change in query(f"SELECT * FROM {name}.amendments"):
            self._waiting[trace_id, span_id] = _changes.decode(change)
        # One that says nothing stands for one of an earlier file whose span has arrived.
        self._waiting = {key: change for key, change in self._waiting.items() if change != Change()}

    def _set_aside(self, file: Path, why: Exception) -> None:
        name = f"{file.name}.damaged-{int(time.time())}"
        log.error("%s cannot be read (%s); it is kept as %s and rebuilt from the stream", file.name, why, name)
        opened = parse_segment(file)
        if opened is not None:
            with contextlib.suppress(duckdb.Error):
                self._run(f"DETACH {opened.name}")
            self._segments = [one for one in self._segments if one != opened]
        for part in (file, file.with_name(file.name + ".wal")):
            if part.exists():
                part.rename(part.with_name(part.name.replace(file.name, name)))
        self.damaged.append(f"{file.name}: {type(why).__name__}")

    def position(self, shard: int) -> Position | None:
        """The last message of *shard* that is on disk."""
        return self._readers[shard].position

    # -- writing

    def append(self, items: Sequence[Item]) -> list[Span]:
        """
        Store *items*, in order, those of a file in one transaction.

        Returns:
            The spans that are new, as they are shown.

        Raises:
            Unavailable: The disk refused; nothing of the failed transaction is stored, and it may be tried again.
        """
        with self._lock:
            stored: list[Span] = []
            for day, group in _by_day(items):
                try:
                    stored += self._append_to(self._segment_for(day), group)
                except duckdb.Error as exc:
                    self._recover(exc)
                    raise Unavailable(f"span store: {type(exc).__name__}: {str(exc)[:200]}") from exc
            return stored

    def _recover(self, why: duckdb.Error) -> None:
        """Forget what a failed transaction left in memory; a database that gave itself up is opened again."""
        with contextlib.suppress(duckdb.Error):
            self._run("ROLLBACK")
        try:
            if isinstance(why, duckdb.FatalException | duckdb.InternalException) or "invalidated" in str(why):
                self._database.close()
                self._open()
            else:
                self._forget()
                for opened in self._segments:
                    self._load(opened)
        except (duckdb.Error, OSError) as exc:
            raise Unavailable(f"span store: cannot be opened again: {type(exc).__name__}: {str(exc)[:200]}") from exc

    def _segment_for(self, day: str) -> Segment:
        """Where what arrives on *day* goes: into its newest file, unless that is large."""
        of_day = [one for one in self._segments if one.day == day]
        newest = of_day[-1] if of_day else None
        if newest is not None and (self._directory / newest.file_name).stat().st_size < segment.MAX_BYTES:
            return newest
        made = newest.next() if newest is not None else Segment(day, 0)
        self._attach(self._directory / made.file_name)
        return made

    def _append_to(self, target: Segment, items: Sequence[Item]) -> list[Span]:
        name, fresh = target.name, not self._run(f"SELECT count(*) FROM {target.name}.position")[0][0]
        touched: dict[int, Position] = {}
        batches: list[Batch] = []
        spans: list[Span] = []
        origins: list[tuple[int, int]] = []
        for item in items:
            touched[item.shard] = Position(item.created_ns, item.message.sequence)
            for batch in self._new_batches(item):
                batches.append(batch)
                shown = [span for span in batch.spans if not self._graves.hides_span(span)]
                spans += shown
                origins += [(item.message.sequence, item.shard)] * len(shown)
        changes = changes_of(batches)
        spans, left, arrived = self._amend_arriving(spans, changes)
        updates = self._amended(left)
        for one, columns in updates.items():
            if one != target:
                # A transaction writes to one file; setting an attribute twice does no harm.
                self._update(one, columns)
        query = self._run
        query("BEGIN")
        if spans:
            self._insert(f"{name}.spans", columns_of(spans, origins, self._ordinal + 1))
        if target in updates:
            self._update(target, updates[target])
        self._insert_records(name, batches)
        waiting = self._note_waiting(name, left, arrived)
        for shard, position in touched.items():
            self._write_reader(name, shard, position, fresh)
        query("COMMIT")
        self._waiting = waiting
        for shard, position in touched.items():
            reader = self._readers[shard]
            reader.position, reader.folded = position, []
        self._ordinal += len(spans)
        return spans

    def _new_batches(self, item: Item) -> list[Batch]:
        reader, time_ns = self._readers[item.shard], item.message.time_ns
        try:
            batches = decode_batches(item.message.payload)
        except Rejected as exc:
            self.rejected += 1
            log.warning("message %d: %s", item.message.sequence, exc)
            return []
        new = []
        for batch in batches:
            if reader.seen.add(batch, time_ns):
                reader.folded.append((batch.id, batch.sequence, batch.part, time_ns))
                new.append(batch)
            else:
                self.repeated += 1
        return new

    def _insert_records(self, name: str, batches: Sequence[Batch]) -> None:
        """What batches carry besides spans."""
        hides = self._graves
        rows: dict[str, list[Sequence[Any]]] = {"started": [], "messages": [], "session_ends": []}
        for batch in batches:
            at = batch.arrived_ns
            starts = [one for one in batch.started if not hides.hides_span(replace(one, arrived_ns=at))]
            rows["started"] += [_row_of(one, "started", at) for one in starts]
            messages = [one for one in batch.messages if not hides.hides_message(one, at)]
            rows["messages"] += [_row_of(one, "messages", at) for one in messages]
            ends = [one for one in batch.session_ends if not hides.hides_message(one, at)]
            rows["session_ends"] += [(end.session_id, end.ended_ns, end.error, at) for end in ends]
        for table, some in rows.items():
            if some:
                self._insert(f"{name}.{table}", columns_from(table, some))

    def _write_reader(self, name: str, shard: int, position: Position, fresh: bool) -> None:
        query, reader = self._run, self._readers[shard]
        query(f"DELETE FROM {name}.position WHERE shard = ?", [shard])
        query(f"INSERT INTO {name}.position VALUES (?, ?, ?)", [shard, position.created_ns, position.sequence])
        known = query(f"SELECT count(*) FROM {name}.seen WHERE shard = ?", [shard])[0][0]
        if fresh or known == 0 or reader.unsaved + len(reader.folded) > _MAX_FOLDED:
            reader.seen.forget(time.time_ns())
            query(f"DELETE FROM {name}.seen WHERE shard = ?", [shard])
            query(f"DELETE FROM {name}.folded WHERE shard = ?", [shard])
            query(f"INSERT INTO {name}.seen VALUES (?, ?)", [shard, reader.seen.snapshot()])
            reader.unsaved = 0
        elif reader.folded:
            self._insert(f"{name}.folded", columns_from("folded", [(shard, *row) for row in reader.folded]))
            reader.unsaved += len(reader.folded)

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self._database.register("columns", columns)
        try:
            self._run(f"INSERT INTO {table} SELECT * FROM columns")
        finally:
            self._database.unregister("columns")

    # -- amending

    def _amend_arriving(
        self, spans: Sequence[Span], changes: Mapping[Key, Change]
    ) -> tuple[list[Span], dict[Key, Change], set[Key]]:
        """(*spans* with what is said of them, what is left to be said, those that had waited for them)."""
        left, arrived = dict(changes), set[Key]()
        if not changes and not self._waiting:
            return list(spans), left, arrived
        amended = []
        for span in spans:
            key = (span.trace_id, span.span_id)
            for change in (self._waiting.get(key), changes.get(key)):
                span = change.amended(span) if change is not None else span
            if key in self._waiting:
                arrived.add(key)
            left.pop(key, None)
            amended.append(span)
        return amended, left, arrived

    def _amended(self, changes: dict[Key, Change]) -> dict[Segment, dict[str, Any]]:
        """Of the stored spans in *changes*, which are taken out of it: segment -> columns to be set."""
        found: dict[Segment, list[tuple[int, str | None, int | None]]] = {}
        if not changes:
            return {}
        known: set[Key] = set()
        for one in self._segments:
            ids = {"hash": np.array([trace_hash(trace_id) for trace_id, _ in changes], np.uint32)}
            self._database.register("asked", ids)
            try:
                rows = self._run(
                    f"SELECT * FROM {one.name}.spans WHERE trace_hash IN (SELECT DISTINCT hash FROM asked)"
                )
            finally:
                self._database.unregister("asked")
            for row in rows:
                span = span_of(row)
                change = changes.get((span.trace_id, span.span_id))
                if change is not None:
                    known.add((span.trace_id, span.span_id))
                    amended = change.amended(span)
                    found.setdefault(one, []).append((row[0], attributes_json(amended.attributes), amended.score))
        for key in known:
            del changes[key]
        return {one: _update_columns(rows) for one, rows in found.items()}

    def _update(self, target: Segment, columns: Mapping[str, Any]) -> None:
        self._database.register("columns", columns)
        try:
            self._run(
                f"UPDATE {target.name}.spans AS held SET attributes = columns.attributes, score = columns.score "
                "FROM columns WHERE held.ordinal = columns.ordinal"
            )
        finally:
            self._database.unregister("columns")

    def _note_waiting(self, name: str, left: Mapping[Key, Change], arrived: set[Key]) -> dict[Key, Change]:
        """What waits from now on; the file is told as well."""
        waiting = {key: change for key, change in self._waiting.items() if key not in arrived}
        for key, change in left.items():
            waiting[key] = waiting[key].then(change) if key in waiting else change
        for trace_id, span_id in {*arrived, *left}:
            self._run(f"DELETE FROM {name}.amendments WHERE trace_id = ? AND span_id = ?", [trace_id, span_id])
        if left or arrived:
            rows = [(*key, msgspec.msgpack.encode(waiting.get(key, Change()))) for key in {*left, *arrived}]
            self._insert(f"{name}.amendments", columns_from("amendments", rows))
        return waiting

    # -- letting go

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """
        Take what *tombstones* stand for out of every file, and keep it out.

        Raises:
            Unavailable: The disk refused; to be tried again.
        """
        with self._lock:
            for stone in self._graves.add(tombstones):
                for one in self._segments:
                    try:
                        self._run("BEGIN")
                        for sql, values in graves.statements(one.name, stone):
                            self._run(sql, values)
                        self._run("COMMIT")
                    except duckdb.Error as exc:
                        self._graves.drop(stone)
                        self._recover(exc)
                        raise Unavailable(f"span store: {type(exc).__name__}: {str(exc)[:200]}") from exc

    def prune(self, now_ns: int) -> list[str]:
        """Let go of files that nobody can see any more or that take too much room; returns their names."""
        gone = []
        with self._lock:
            for one in self._segments[:-1]:
                ordinal, arrived = self._run(f"SELECT max(ordinal), max(arrived_ns) FROM {one.name}.spans")[0]
                hidden = self._max_spans and (ordinal or 0) <= self._ordinal - self._max_spans
                too_much = self._max_bytes and self.disk_bytes() > self._max_bytes
                if hidden or too_much or (arrived or 0) < now_ns - self._keep_ns:
                    self._segments.remove(one)
                    self._run(f"DETACH {one.name}")
                    (self._directory / one.file_name).unlink(missing_ok=True)
                    gone.append(one.file_name)
        return gone

    def close(self) -> None:
        """Write everything out and let the files go."""
        with self._lock:
            self._database.close()

    # -- reading

    def source(self, table: str, now_ns: int) -> str:
        """SQL that yields the rows of *table*, of ``segment.RECORDS``, that people may see; "" = there are none."""
        with self._lock:
            names = [one.name for one in self._segments]
            floor = self._ordinal - self._max_spans if self._max_spans else 0
        condition = f"arrived_ns >= {now_ns - self._keep_ns}"
        if floor > 0 and table == "spans":
            condition += f" AND ordinal > {floor}"
        return " UNION ALL ".join(f"SELECT * FROM {name}.{table} WHERE {condition}" for name in names)

    def query(self, sql: str, parameters: Sequence[Any], now_ns: int, *, limit_s: float | None = None) -> Rows:
        """
        The rows of *sql*, in which ``{spans}`` stands for the rows that people may see; so do the other tables.

        Args:
            limit_s: Given up after so long; None = never.

        Raises:
            Unavailable: The disk refused, or it took too long.
        """
        for table in RECORDS:
            if "{" + table + "}" in sql:
                source = self.source(table, now_ns)
                if not source:
                    return []
                sql = sql.replace("{" + table + "}", f"({source})")
        cursor = self._database.cursor()
        timer = threading.Timer(limit_s, cursor.interrupt) if limit_s else None
        if timer:
            timer.start()
        try:
            rows: Rows = cursor.execute(sql, list(parameters)).fetchall()
            return rows
        except duckdb.Error as exc:
            raise Unavailable(f"span store: {type(exc).__name__}") from exc
        finally:
            if timer:
                timer.cancel()
            cursor.close()

    def shown_since(self, now_ns: int) -> int:
        """Before this instant of arrival nothing is shown, Unix nanoseconds."""
        floor = now_ns - self._keep_ns
        if self._max_spans and self._ordinal > self._max_spans:
            oldest = self.query("SELECT min(arrived_ns) FROM {spans}", [], now_ns)
            floor = max(floor, oldest[0][0] or 0) if oldest else floor
        return floor

    def trace(self, trace_id: str, now_ns: int) -> list[Span]:
        """The spans of a trace by start, then arrival; of several versions of a span the last."""
        rows = self.query(
            "SELECT * FROM {spans} WHERE trace_hash = ? AND trace_id = ? "
            "QUALIFY row_number() OVER (PARTITION BY span_id ORDER BY ordinal DESC) = 1 ORDER BY started_ns, ordinal",
            [trace_hash(trace_id), trace_id],
            now_ns,
        )
        return [span_of(row) for row in rows]

    def recent(self, limit: int, now_ns: int) -> list[Span]:
        """The newest spans by arrival, newest first."""
        rows = self.query(f"SELECT * FROM {{spans}} ORDER BY ordinal DESC LIMIT {int(limit)}", [], now_ns)
        return [span_of(row) for row in rows]

    def count(self, now_ns: int) -> int:
        """How many spans can be seen."""
        rows = self.query("SELECT count(*) FROM {spans}", [], now_ns)
        return int(rows[0][0]) if rows else 0

    def disk_bytes(self) -> int:
        """What the files take."""
        return sum(_size(file) for file in self._directory.glob("spans-*"))

    def free_bytes(self) -> int:
        """What is left on the disk."""
        return shutil.disk_usage(self._directory).free


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # let go of in this moment
        return 0


def _by_day(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(day_of(item.message.time_ns), []).append(item)
    return sorted(groups.items())


def _row_of(record: Started | ChatMessage, table: str, arrived_ns: int) -> list[Any]:
    own = {"arrived_ns": arrived_ns, "metadata": attributes_json(record.metadata)}
    return [own[column] if column in own else getattr(record, column) for column in RECORDS[table]]


def _update_columns(rows: Sequence[tuple[int, str | None, int | None]]) -> dict[str, Any]:
    ordinals, attributes, scores = zip(*rows, strict=True)
    missing = [score is None for score in scores]
    return {
        "ordinal": np.array(ordinals, np.int64),
        "attributes": np.array(attributes, dtype=object),
        "score": np.ma.masked_array([score or 0 for score in scores], mask=missing, dtype=np.int64),
    }
