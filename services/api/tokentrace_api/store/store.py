"""The public class of the span store; the docstring of the package explains how the store works."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from tokentrace.bad_data import SetAside
from tokentrace.dedup import Digest, LeftOut, capacity_for
from tokentrace.records import Position, Span, Tombstone
from tokentrace.units import DAY
from tokentrace_api.reporter_states import ReporterStates
from tokentrace_api.store import deletions
from tokentrace_api.store.append import Appender, Item
from tokentrace_api.store.catalog import Catalog
from tokentrace_api.store.columns import ONE_TELLING, Telling, span_of, telling_of, trace_hash
from tokentrace_api.store.database import Rows
from tokentrace_api.store.deletions import Deletions
from tokentrace_api.store.retention import Limits, prune
from tokentrace_api.store.visible import VisibleRows


class Store:
    """
    The span store on disk. Only one method writes at a time; queries run at the same time, in any thread.

    Args:
        directory: Where the files are; it is created if missing.
        shards: Number of shards of the stream.
        max_spans: How many of the newest spans are shown; 0 = all.
        keep_ns: How long after its arrival a record is shown, nanoseconds.
        max_bytes: Maximum size of all files together, bytes; older files are removed, the newest stays. 0 = no limit.
        memory_limit_mb: Memory limit of DuckDB, MB.
        set_aside: Records each message and file that cannot be read; None = a new ``SetAside``.
        capacity: Number of calls that each shard remembers, the same in all readers; None = the number for *shards*.
        reporters: Takes over what batches say of their reporters; None = nothing does.

    Attributes:
        catalog: The open files.

    Raises:
        Unavailable: The directory or a file in it cannot be opened now.
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
        capacity: int | None = None,
        reporters: ReporterStates | None = None,
    ) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._limits = Limits(keep_ns, max_spans, max_bytes)
        capacity = capacity or capacity_for(shards)
        self.catalog = Catalog(directory, shards, memory_limit_mb, set_aside or SetAside(), capacity)
        self._deletions = Deletions()
        self._appender = Appender(self.catalog, self._deletions, reporters or ReporterStates())
        self._rows = VisibleRows(self.catalog, self._limits)

    @property
    def damaged(self) -> list[str]:
        """Names of files that could not be read, each with the type of the error."""
        return self.catalog.damaged

    @property
    def left_out(self) -> LeftOut:
        """What does not count of all that was read since the log began."""
        return self._appender.left_out

    @property
    def repetitions(self) -> int:
        """Number of spans that were not stored since the start, because they said nothing new about a known span."""
        return self._appender.repetitions

    def digests(self, shard: int) -> list[Digest]:
        """Return the digests of the calls of *shard*, as ``Deduplicator.digests``."""
        return self.catalog.readers[shard].dedup.digests

    @property
    def rejected(self) -> int:
        """Number of messages that could not be decoded and were skipped."""
        return self._appender.rejected

    def position(self, shard: int) -> Position | None:
        """Return the position of the last message of *shard* that is stored; None if there is none."""
        return self.catalog.position(shard)

    # -- writing

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """
        Hold the lock while the context lasts, and turn errors of the disk into ``Unavailable``.

        Raises:
            Unavailable: The disk refused.
            StoreDamaged: A file is damaged that was not damaged when the store was opened.
        """
        with self._lock:
            try:
                self.catalog.recover()
                yield
            except (duckdb.Error, OSError) as exc:
                raise self.catalog.fail(exc) from exc

    def append(self, items: Sequence[Item]) -> list[Span]:
        """
        Store *items* in order, with one transaction for each day.

        Returns:
            The spans that were stored and count, with their scores and annotations applied.

        Raises:
            Unavailable: The disk refused; the failed transaction stored nothing, and the call may be repeated.
            StoreDamaged: A file is damaged that was not damaged before; the store must be opened again.
        """
        with self._writing():
            return self._appender.append(items)

    def apply_deletions(self, tombstones: Sequence[Tombstone]) -> None:
        """
        Delete from every file the records that *tombstones* hide, and do not store such records from now on.

        Raises:
            Unavailable: The disk refused; the call may be repeated.
            StoreDamaged: A file is damaged that was not damaged before; the store must be opened again.
        """
        with self._lock:
            new = [tombstone for tombstone in tombstones if not self._deletions.holds(tombstone)]
            with self._writing():
                for opened in self.catalog.segments if new else ():
                    deletions.apply(self.catalog.database, opened, new)
            for opened in self.catalog.segments if new else ():
                with contextlib.suppress(duckdb.Error):
                    deletions.checkpoint(self.catalog.database, opened)
            for tombstone in new:
                self._deletions.add(tombstone)
            self.catalog.waiting = {
                key: update
                for key, update in self.catalog.waiting.items()
                if not self._deletions.suppresses(key, update)
            }

    def prune(self, now_ns: int) -> list[str]:
        """
        Remove old files that exceed the limits of the store; return their names.

        Raises:
            Unavailable: The disk refused; the call may be repeated.
            StoreDamaged: A file is damaged that was not damaged before; the store must be opened again.
        """
        with self._writing():
            return prune(self.catalog, self._limits, now_ns)

    def check_suspects(self) -> None:
        """
        Read completely the files that a query could not read.

        Raises:
            StoreDamaged: One of them is damaged, and is not used any more; the store must be opened again.
        """
        with self._lock:
            self.catalog.check_suspects()

    def close(self) -> None:
        """Write everything to the files and close them; running queries are interrupted."""
        with self._lock:
            self.catalog.close()

    # -- reading

    def query(self, sql: str, parameters: Sequence[Any], now_ns: int, *, limit_s: float | None = None) -> Rows:
        """
        Return the result of *sql*, in which ``{spans}`` stands for the rows of spans that are shown.

        ``{started}``, ``{messages}`` and ``{session_ends}`` stand for the rows of those tables that are shown. If *sql*
        contains such a name and the store has no file, the result is empty.

        Args:
            now_ns: The time from which ``keep_ns`` is counted back, Unix nanoseconds.
            limit_s: Seconds after which the query is interrupted; None = never.

        Raises:
            Unavailable: The store is not open, the query failed or took longer than *limit_s*, or files were added or
                removed during every try.
        """
        return self._rows.query(sql, parameters, now_ns, limit_s)

    def shown_since(self, now_ns: int) -> int:
        """Return the arrival time before which nothing is shown, Unix nanoseconds."""
        return self._rows.shown_since(now_ns)

    def trace(self, trace_id: str, now_ns: int) -> list[Span]:
        """Return the spans of a trace as ``tellings`` finds them."""
        return [telling.span for telling in self.tellings(trace_id, now_ns)]

    def tellings(self, trace_id: str, now_ns: int) -> list[Telling]:
        """Return for each span of a trace the telling that counts, or else the first one; by start, then by arrival."""
        rows = self.query(
            f"SELECT * FROM {{spans}} WHERE trace_hash = ? AND trace_id = ? {ONE_TELLING} ORDER BY started_ns, ordinal",
            [trace_hash(trace_id), trace_id],
            now_ns,
        )
        return [telling_of(row) for row in rows]

    def tellings_of(self, trace_id: str, span_id: str, now_ns: int) -> list[Telling]:
        """
        Return a list with the telling of a span that counts, or else the first one; [] if it is not stored.

        If two count, because only one of them has a response id, it is the first that ``tellings`` lists.
        """
        rows = self.query(
            f"SELECT * FROM {{spans}} WHERE trace_hash = ? AND trace_id = ? AND span_id = ? {ONE_TELLING} "
            "ORDER BY started_ns, ordinal LIMIT 1",
            [trace_hash(trace_id), trace_id, span_id],
            now_ns,
        )
        return [telling_of(row) for row in rows]

    def first_tellings(self, trace_id: str, now_ns: int) -> list[Telling]:
        """Return a list with the telling of the root of a trace, or of its first span if it has no root."""
        rows = self.query(
            "SELECT ordinal FROM (SELECT ordinal, parent_span_id, started_ns, trace_id, span_id, counted "
            f"FROM {{spans}} WHERE trace_hash = ? AND trace_id = ? {ONE_TELLING}) "
            "ORDER BY parent_span_id IS NOT NULL, started_ns, ordinal LIMIT 1",
            [trace_hash(trace_id), trace_id],
            now_ns,
        )
        found = self.query("SELECT * FROM {spans} WHERE ordinal = ?", list(rows[0]), now_ns) if rows else []
        return [telling_of(row) for row in found]

    def recent(self, limit: int, now_ns: int) -> list[Span]:
        """Return the *limit* spans that arrived last and count, newest first."""
        sql = f"SELECT * FROM {{spans}} WHERE counted ORDER BY ordinal DESC LIMIT {int(limit)}"
        return [span_of(row) for row in self.query(sql, [], now_ns)]

    def count(self, now_ns: int) -> int:
        """Return how many spans are shown, each call once."""
        rows = self.query("SELECT count(*) FROM {spans} WHERE counted", [], now_ns)
        return int(rows[0][0]) if rows else 0

    def disk_bytes(self) -> int:
        """Return the size of all files of the store, damaged ones included, bytes."""
        return self.catalog.disk_bytes()

    def free_bytes(self) -> int:
        """Return the free space on the disk, bytes."""
        return shutil.disk_usage(self._directory).free
