"""
The span store: DuckDB, append-only, in files by UTC day of arrival.

A file holds its spans together with the stream positions it contains and what its reader has folded, written in one
transaction, so a kill at any moment leaves spans, positions and memory of the same instant. Only the newest file is
added to, and it knows every shard's position from its first transaction on: so the newest one is right about all of
them, and any other may go. Retention is detaching and removing a file. Called from worker threads; one writes, any
number read, and nobody who reads waits for who writes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from tokentrace.bad_data import SetAside
from tokentrace.bus import Message, subjects
from tokentrace.dedup import FoldedBatches
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import Batch, ChatMessage, Position, Span, Started, Tombstone, decode_batches
from tokentrace.units import DAY, SECOND
from tokentrace_api.store import deletions, segment
from tokentrace_api.store.columns import attributes_json, columns_of, nullable, span_of, trace_hash
from tokentrace_api.store.database import Database, Rows
from tokentrace_api.store.deletions import Deletions
from tokentrace_api.store.reader_state import (
    ReaderState,
    StoredReader,
    forget_waiting,
    read_reader_state,
    read_waiting,
    write_reader,
    write_waiting,
)
from tokentrace_api.store.segment import RECORDS, Segment, columns_from, day_of, parse_segment
from tokentrace_api.store.span_updates import Key, SpanUpdate, apply_updates, updates_of

log = logging.getLogger("tokentrace.api.store")

#: How often a question is asked anew because files came or went meanwhile.
_TRIES = 3


class StoreDamaged(Exception):
    """A file proved damaged after its end had been read from: only a store opened anew knows where to read on."""


class Item(NamedTuple):
    """A message to be stored, and the shard and stream it came from."""

    shard: int
    created_ns: int
    message: Message


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
        set_aside: Is told what cannot be read; None = a list of this store's own.

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
        memory_limit_mb: int = 256,
        set_aside: SetAside | None = None,
    ) -> None:
        self._directory, self._shards = directory, shards
        self._max_spans, self._keep_ns, self._max_bytes = max_spans, keep_ns, max_bytes
        self._memory_limit_mb = memory_limit_mb
        self.set_aside = set_aside or SetAside()
        self._lock = threading.RLock()
        self._graves = Deletions()
        #: Files whose rows are shown; None while there is no database to ask.
        self._shown: tuple[Segment, ...] | None = None
        #: A transaction failed: what is in memory may be ahead of the files.
        self._stale = False
        #: A file turned out to be damaged after others had begun to read on from its end.
        self._hole = False
        self._ordinal = 0
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
        return self._database.run(sql, parameters)

    # -- opening

    def _open(self) -> None:
        """
        Attach what is there.

        Raises:
            Unavailable: The disk refused; nothing is damaged, and it may be tried again.
        """
        self._database = Database(self._directory / "tmp", self._memory_limit_mb)
        self._segments: list[Segment] = []
        self._forget()
        files = sorted(self._directory.glob(segment.GLOB), key=lambda file: parse_segment(file) or Segment("", 0))
        for file in files:
            if file.stat().st_size == 0:
                _remove(file)  # its making was cut short
                continue
            crashed = file == files[-1] and file.with_name(file.name + ".wal").exists()
            try:
                self._attach(file)
                self._take(read_reader_state(self._database, self._segments[-1], self._shards, whole=crashed))
            except (duckdb.Error, Rejected) as exc:
                if segment.is_refusal(exc):
                    self._close()
                    raise Unavailable(f"span store: {file.name}: {type(exc).__name__}: {str(exc)[:200]}") from exc
                self._set_aside(file, exc, last=file == files[-1])
        self._shown = tuple(self._segments)

    def _forget(self) -> None:
        self._readers = {shard: StoredReader(None, FoldedBatches(self._shards)) for shard in range(self._shards)}
        #: What was said of spans that are not here yet.
        self._waiting: dict[Key, SpanUpdate] = {}

    def _attach(self, file: Path) -> None:
        opened = parse_segment(file)
        if opened is None:
            raise Rejected("not a file of this version")
        try:
            self._database.attach(file, opened.name)
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

    def _take(self, memory: ReaderState) -> None:
        """Go on from what a file says; in their order, for a newer one is right about all that an older one says."""
        self._ordinal = max(self._ordinal, memory.ordinal)
        self._readers |= memory.readers
        self._wait_for(memory.waiting)

    def _wait_for(self, found: Mapping[Key, SpanUpdate]) -> None:
        # One that says nothing stands for one of an earlier file whose span has arrived.
        self._waiting = {key: change for key, change in (self._waiting | dict(found)).items() if change.says_something}

    def _set_aside(self, file: Path, why: Exception, *, last: bool) -> None:
        name = f"{file.name}.damaged-{int(time.time())}"
        # A newer file says that what this one had was read.
        rest = "it is read from the log again" if last else "what it had is not shown any more"
        log.error("%s cannot be read (%s) and is kept as %s; %s", file.name, why, name, rest)
        opened = parse_segment(file)
        if opened is not None:
            with contextlib.suppress(duckdb.Error):
                self._run(f"DETACH {opened.name}")
            self._segments = [one for one in self._segments if one != opened]
        for part in (file, file.with_name(file.name + ".wal")):
            if part.exists():
                part.rename(part.with_name(part.name.replace(file.name, name)))
        self.damaged.append(f"{file.name}: {type(why).__name__}")
        self.set_aside.note("span store", f"file {name}", why)

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
            Torn: A file is damaged that was not before; this store is of no use any more.
        """
        with self._lock:
            stored: list[Span] = []
            try:
                self._settle()
                for day, group in _by_day(items, self._segments[-1].day if self._segments else ""):
                    stored += self._append_to(self._segment_for(day), group)
            except (duckdb.Error, OSError) as exc:
                raise self._failed(exc) from exc
            return stored

    def _failed(self, why: Exception) -> Unavailable:
        """What to raise when the disk refused: what a failed transaction left in memory is forgotten first."""
        self._stale = True
        with contextlib.suppress(duckdb.Error):
            self._run("ROLLBACK")
        if isinstance(why, duckdb.FatalException | duckdb.InternalException) or "invalidated" in str(why):
            self._shown = None
        with contextlib.suppress(duckdb.Error, Rejected, OSError, Unavailable):
            self._settle()
        return Unavailable(f"span store: {type(why).__name__}: {str(why)[:200]}")

    def _settle(self) -> None:
        """
        After a failure: know again what the files say; a database that gave itself up is opened again.

        Raises:
            duckdb.Error, OSError, Unavailable: That failed as well; nothing may be written before it succeeds.
            Torn: A file is damaged that was not when the store was opened.
        """
        if not self._stale:
            return
        if self._shown is not None:
            try:
                memories = [read_reader_state(self._database, one, self._shards) for one in self._segments]
            except (duckdb.Error, Rejected):
                self._shown = None
            else:
                self._forget()
                for memory in memories:
                    self._take(memory)
        if self._shown is None:
            self._close()
            known = len(self.damaged)
            try:
                self._open()
            finally:
                self._hole = self._hole or len(self.damaged) > known
        if self._hole:
            self._shown = None
            raise StoreDamaged(f"span store: {self.damaged[-1]}: was damaged while it was open")
        self._stale = False

    def _segment_for(self, day: str) -> Segment:
        """Where what arrives on *day* goes: into the newest file, unless that is of a day before, or large."""
        newest = self._segments[-1] if self._segments else None
        made = Segment(day, 0)
        if newest is not None and newest.day >= day:
            if (self._directory / newest.file_name).stat().st_size < segment.MAX_BYTES:
                return newest
            made = newest.next()
        file = self._directory / made.file_name
        _remove(file)  # what an attempt that failed has left
        try:
            self._attach(file)
        except duckdb.Error:
            with contextlib.suppress(OSError):
                _remove(file)
            raise
        self._shown = tuple(self._segments)
        return made

    def _append_to(self, target: Segment, items: Sequence[Item]) -> list[Span]:
        name, fresh = target.name, not self._run(f"SELECT count(*) FROM {target.name}.position")[0][0]
        touched: dict[int, tuple[Position, int]] = {}
        batches: list[Batch] = []
        origins: list[tuple[int, int]] = []
        for item in items:
            touched[item.shard] = Position(item.created_ns, item.message.sequence), item.message.time_ns
            for batch in self._new_batches(item):
                shown = self._graves.without_hidden(batch)
                batches.append(shown)
                origins += [(item.message.sequence, item.shard)] * len(shown.spans)
        held = self._held(updates_of(batches))
        known = {(span.trace_id, span.span_id) for rows in held.values() for _, span in rows}
        amended = apply_updates(batches, known, self._waiting)
        updates = _updates(held, amended.updates)
        for one, columns in updates.items():
            if one != target:
                # A transaction writes to one file; setting an attribute twice does no harm.
                self._update(one, columns)
        query = self._run
        query("BEGIN")
        if amended.spans:
            self._database.insert(f"{name}.spans", columns_of(amended.spans, origins, self._ordinal + 1))
        if target in updates:
            self._update(target, updates[target])
        self._insert_records(name, batches)
        write_waiting(self._database, target, {key: amended.waiting.get(key, SpanUpdate()) for key in amended.touched})
        for shard, (position, time_ns) in touched.items():
            write_reader(self._database, target, shard, self._readers[shard], position, time_ns, fresh=fresh)
        if fresh:
            for shard, reader in self._readers.items():
                if shard not in touched and reader.position is not None:
                    write_reader(self._database, target, shard, reader, reader.position, None, fresh=fresh)
        try:
            query("COMMIT")
        except duckdb.Error as exc:
            # Where DuckDB could not write its log back it says so, and the transaction is durable: the file knows.
            self._failed(exc)
            if self._stale or any(self.position(shard) != position for shard, (position, _) in touched.items()):
                raise
            return amended.spans
        self._waiting = amended.waiting
        self._ordinal += len(amended.spans)
        for shard, (position, _) in touched.items():
            reader = self._readers[shard]
            reader.position, reader.folded = position, []
        return amended.spans

    def _new_batches(self, item: Item) -> list[Batch]:
        reader, time_ns = self._readers[item.shard], item.message.time_ns
        try:
            batches = decode_batches(item.message.payload)
        except Rejected as exc:
            self.rejected += 1
            self.set_aside.note(subjects.SPANS, f"message {item.message.sequence}", exc)
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
        rows: dict[str, list[Sequence[Any]]] = {"started": [], "messages": [], "session_ends": []}
        for batch in batches:
            at = batch.arrived_ns
            rows["started"] += [_row_of(one, "started", at) for one in batch.started]
            rows["messages"] += [_row_of(one, "messages", at) for one in batch.messages]
            rows["session_ends"] += [(end.session_id, end.ended_ns, end.error, at) for end in batch.session_ends]
        for table, some in rows.items():
            if some:
                self._database.insert(f"{name}.{table}", columns_from(table, some))

    # -- amending

    def _held(self, keys: Collection[Key]) -> dict[Segment, list[tuple[int, Span]]]:
        """Those of the spans called *keys* that are stored, every version: segment -> (ordinal, span)."""
        found: dict[Segment, list[tuple[int, Span]]] = {}
        if not keys:
            return found
        ids = {"hash": np.array([trace_hash(trace_id) for trace_id, _ in keys], np.uint32)}
        with self._database.given("asked", ids):
            for one in self._segments:
                rows = self._run(
                    f"SELECT * FROM {one.name}.spans WHERE trace_hash IN (SELECT DISTINCT hash FROM asked)"
                )
                spans = [(int(row[0]), span_of(row)) for row in rows]
                found[one] = [(ordinal, span) for ordinal, span in spans if (span.trace_id, span.span_id) in keys]
        return found

    def _update(self, target: Segment, columns: Mapping[str, Any]) -> None:
        with self._database.given("columns", columns):
            self._run(
                f"UPDATE {target.name}.spans AS held SET attributes = columns.attributes, score = columns.score "
                "FROM columns WHERE held.ordinal = columns.ordinal"
            )

    # -- letting go

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """
        Take what *tombstones* stand for out of every file, and keep it out.

        Raises:
            Unavailable: The disk refused; to be tried again.
        """
        with self._lock:
            new = [stone for stone in tombstones if not self._graves.holds(stone)]
            try:
                self._settle()
                for one in self._segments if new else ():
                    self._bury_in(one, new)
            except (duckdb.Error, OSError) as exc:
                raise self._failed(exc) from exc
            for stone in new:
                self._graves.add(stone)
            self._waiting = {key: one for key, one in self._waiting.items() if not self._graves.suppresses(key, one)}

    def _bury_in(self, one: Segment, stones: Sequence[Tombstone]) -> None:
        """One statement for each table, however many stones there are: a user may have thousands of sessions."""
        self._run("BEGIN")
        for target, columns in deletions.columns_by_target(stones).items():
            with self._database.given("stones", columns):
                for sql in deletions.statements(one.name, target):
                    self._run(sql)
        hushing = Deletions()
        for stone in stones:
            hushing.add(stone)
        for key, change in read_waiting(self._database, one).items():
            if hushing.suppresses(key, change):
                forget_waiting(self._database, one, key)
        self._run("COMMIT")

    def prune(self, now_ns: int) -> list[str]:
        """
        Let go of files that nobody can see any more or that take too much room; returns their names.

        Raises:
            Unavailable: The disk refused; to be tried again.
        """
        gone: list[str] = []
        with self._lock:
            try:
                self._settle()
                for file in sorted(self._directory.glob(segment.SET_ASIDE)):
                    if self._takes_too_much() or file.stat().st_mtime < (now_ns - self._keep_ns) / SECOND:
                        file.unlink()
                        gone.append(file.name)
                for one in self._segments[:-1]:
                    if self._is_over(one, now_ns) or self._takes_too_much():
                        self._let_go(one)
                        gone.append(one.file_name)
            except (duckdb.Error, OSError) as exc:
                raise self._failed(exc) from exc
        return gone

    def _is_over(self, one: Segment, now_ns: int) -> bool:
        """Nothing in *one* is shown any more."""
        newest = [self._run(f"SELECT max(arrived_ns) FROM {one.name}.{table}")[0][0] for table in RECORDS]
        ordinal = self._run(f"SELECT max(ordinal) FROM {one.name}.spans")[0][0]
        if max((arrived for arrived in newest if arrived is not None), default=-1) < now_ns - self._keep_ns:
            return True
        return bool(self._max_spans) and ordinal is not None and ordinal <= self._ordinal - self._max_spans

    def _takes_too_much(self) -> bool:
        return bool(self._max_bytes) and self.disk_bytes() > self._max_bytes

    def _let_go(self, one: Segment) -> None:
        self._segments = [other for other in self._segments if other != one]
        self._shown = tuple(self._segments)
        try:
            self._run(f"DETACH {one.name}")
        finally:
            # A full disk refuses to let go as well, and its room is what is wanted.
            _remove(self._directory / one.file_name)
        # What waited in that file alone for its span waits no longer.
        self._waiting = {}
        for other in self._segments:
            self._wait_for(read_waiting(self._database, other))

    def close(self) -> None:
        """Write everything out and let the files go."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._shown = None
        self._database.close()

    # -- reading

    def _source(self, table: str, shown: Sequence[Segment], now_ns: int) -> str:
        """SQL that yields the rows of *table*, of ``segment.RECORDS``, that people may see."""
        condition = f"arrived_ns >= {now_ns - self._keep_ns}"
        newest = self._ordinal
        if table == "spans" and self._max_spans:
            # Those that are being stored meanwhile would be too many.
            condition += f" AND ordinal > {newest - self._max_spans} AND ordinal <= {newest}"
        return " UNION ALL ".join(f"SELECT * FROM {one.name}.{table} WHERE {condition}" for one in shown)

    def query(self, sql: str, parameters: Sequence[Any], now_ns: int, *, limit_s: float | None = None) -> Rows:
        """
        The rows of *sql*, in which ``{spans}`` stands for the rows that people may see; so do the other tables.

        Args:
            limit_s: Given up after so long; None = never.

        Raises:
            Unavailable: The disk refused, or it took too long.
        """
        for _ in range(_TRIES):
            shown = self._shown
            if shown is None:
                raise Unavailable("span store: is not open")
            asked = sql
            for table in RECORDS:
                if "{" + table + "}" in sql:
                    if not shown:
                        return []
                    asked = asked.replace("{" + table + "}", f"({self._source(table, shown, now_ns)})")
            try:
                return self._database.read(asked, parameters, limit_s)
            except duckdb.Error as exc:
                if self._shown is shown or isinstance(exc, duckdb.InterruptException):
                    raise Unavailable(f"span store: {type(exc).__name__}") from exc
        raise Unavailable("span store: files come and go")

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


def _remove(file: Path) -> None:
    for part in (file, file.with_name(file.name + ".wal")):
        part.unlink(missing_ok=True)


def _by_day(items: Iterable[Item], newest: str) -> list[tuple[str, list[Item]]]:
    """
    *items* in their order, cut where a day begins.

    Args:
        newest: The day of the newest file: what is of a day before, of a shard that is behind or by a clock that was
            put back, goes there as well.
    """
    groups: list[tuple[str, list[Item]]] = []
    for item in items:
        newest = max(newest, day_of(item.message.time_ns))
        if not groups or groups[-1][0] != newest:
            groups.append((newest, []))
        groups[-1][1].append(item)
    return groups


def _row_of(record: Started | ChatMessage, table: str, arrived_ns: int) -> list[Any]:
    own = {"arrived_ns": arrived_ns, "metadata": attributes_json(record.metadata)}
    return [own[column] if column in own else getattr(record, column) for column in RECORDS[table]]


def _updates(
    held: Mapping[Segment, Sequence[tuple[int, Span]]], changes: Mapping[Key, SpanUpdate]
) -> dict[Segment, dict[str, Any]]:
    """Of the stored spans those in *changes*: segment -> columns to be set."""
    found = {}
    for one, rows in held.items():
        amended = [
            (ordinal, changes[span.trace_id, span.span_id].amended(span))
            for ordinal, span in rows
            if (span.trace_id, span.span_id) in changes
        ]
        if amended:
            found[one] = {
                "ordinal": np.array([ordinal for ordinal, _ in amended], np.int64),
                "attributes": np.array([attributes_json(span.attributes) for _, span in amended], dtype=object),
                "score": nullable([span.score for _, span in amended]),
            }
    return found
