"""The open files of the store and their state: positions, folded batches, and updates that wait for their span."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from tokentrace.bad_data import SetAside
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import Position
from tokentrace_api.store import segment
from tokentrace_api.store.convert import CONVERTED_VERSIONS, UNTOLD_VERSION, convert, later_rows
from tokentrace_api.store.database import Database
from tokentrace_api.store.reader_state import ReaderState, new_reader, read_reader_state, read_waiting
from tokentrace_api.store.segment import Segment, check_statements, parse_segment
from tokentrace_api.store.span_updates import Key, SpanUpdate

log = logging.getLogger("tokentrace.api.store")


class StoreDamaged(Exception):
    """
    A file of the open store is damaged.

    The caller may have read the log past what the remaining files hold. It must open the store again and continue from
    the positions of the opened store.
    """


class Catalog:
    """
    The files of a store, attached to one database.

    Only the writing thread calls its methods, except ``position`` and ``disk_bytes``, which any thread may call.

    Args:
        directory: Where the files are; it is created if missing.
        shards: Number of shards of the stream.
        memory_limit_mb: Memory limit of DuckDB, MB.
        set_aside: Takes a note of each file that cannot be read.
        capacity: Number of calls that each shard remembers.

    Attributes:
        database: DuckDB with all segments attached.
        segments: The attached segments, oldest first.
        visible: The segments that queries read; None while the database is not open. Any thread may read it.
        readers: Shard -> position, folded batches and newest calls.
        waiting: Updates whose span has not arrived yet.
        last_ordinal: Number of the newest row of a span; 0 = there is none.
        damaged: Names of files that could not be read, each with the type of the error.
        is_stale: True if a transaction failed, so that the state in memory may be ahead of the files.

    Raises:
        Unavailable: The directory or a file in it cannot be opened now.
    """

    def __init__(self, directory: Path, shards: int, memory_limit_mb: int, set_aside: SetAside, capacity: int) -> None:
        self.directory, self._shards, self._memory_limit_mb = directory, shards, memory_limit_mb
        self._capacity = capacity
        self.set_aside = set_aside
        self.visible: tuple[Segment, ...] | None = None
        self.is_stale = False
        self._damaged_while_open = False
        self.last_ordinal = 0
        self.damaged: list[str] = []
        #: Files that a query could not read; ``check_suspects`` reads them completely.
        self._suspects: set[Segment] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Without this write, a read-only disk would make every file look damaged.
            with tempfile.TemporaryFile(dir=directory):
                pass
            self._open()
        except (OSError, duckdb.Error) as exc:
            raise Unavailable(f"span store: {directory} cannot be opened: {str(exc)[:200]}") from exc

    # -- opening and closing

    def _open(self) -> None:
        """
        Attach all files, convert those of the last version, and load their state.

        Raises:
            Unavailable: A file cannot be opened now although it is not damaged; opening may be tried again.
            duckdb.Error, OSError: The database or the directory cannot be opened.
        """
        self.database = Database(self.directory / "tmp", self._memory_limit_mb)
        self.segments: list[Segment] = []
        self._reset_state()
        files = sorted(self.directory.glob(segment.GLOB), key=lambda file: parse_segment(file) or Segment("", 0))
        with_wal = {file for file in files if _wal_of(file).exists()}
        for file in files:
            if file.is_file() and file.stat().st_size == 0:
                _remove(file)  # the process died while it created the file
                continue
            try:
                self._attach_found(file)
            except (duckdb.Error, Rejected) as exc:
                self._set_aside(file, exc, newest=file == files[-1])
        # Not the last of the files found: that one may be a foreign file of a later day.
        newest = self.directory / self.segments[-1].file_name if self.segments else None
        crashed = newest in with_wal
        self._convert(newest)
        for opened in reversed(list(self.segments)):
            file = self.directory / opened.file_name
            try:
                self._load(self._state_in(opened, check=crashed and file == newest))
            except (duckdb.Error, Rejected) as exc:
                self._set_aside(file, exc, newest=file == newest)
        self._forget_arrived()
        self.visible = tuple(self.segments)

    def _convert(self, newest: Path | None) -> None:
        """
        Convert the files of earlier versions; *newest* is the newest file that was found.

        The rows of all files are compared if one does not say which of them count, because a span may have been told
        again in a later file. If the process dies in between, the next start converts the files that are left, with the
        same result.
        """
        while True:
            versions = {opened: self._version(opened) for opened in self.segments}
            old = [opened for opened, version in versions.items() if version in CONVERTED_VERSIONS]
            damaged: tuple[Segment, duckdb.Error] | None = None
            try:
                later = later_rows(self.database, self.segments) if UNTOLD_VERSION in versions.values() else {}
            except duckdb.Error as exc:
                damaged = self._find_damaged(exc)
            for opened in old if damaged is None else ():
                log.info("%s is converted to schema version %d", opened.file_name, segment.SCHEMA_VERSION)
                try:
                    convert(self.database, opened, later if versions[opened] == UNTOLD_VERSION else {})
                except duckdb.Error as exc:
                    with contextlib.suppress(duckdb.Error):
                        self.database.run("ROLLBACK")
                    damaged = opened, exc
                    break
            if damaged is None:
                return
            file = self.directory / damaged[0].file_name
            self._set_aside(file, damaged[1], newest=file == newest)

    def _find_damaged(self, reason: duckdb.Error) -> tuple[Segment, duckdb.Error]:
        """Return a file that cannot be read, with its error; raise *reason* if every file can be read."""
        for opened in self.segments:
            try:
                for statement in check_statements(opened):
                    self.database.run(statement)
            except duckdb.Error as exc:
                return opened, exc
        raise reason

    def suspect(self, segments: Sequence[Segment], reason: duckdb.Error) -> None:
        """Note that a query of *segments* failed; any thread may call this."""
        kinds = duckdb.IOException | duckdb.InternalException | duckdb.FatalException | duckdb.SerializationException
        if isinstance(reason, kinds) and not segment.is_refusal(reason):
            # Most errors name the file that could not be read.
            self._suspects |= {opened for opened in segments if opened.file_name in str(reason)} or set(segments)

    def check_suspects(self) -> None:
        """
        Read completely the files that queries could not read, and keep those that are damaged beside.

        Raises:
            StoreDamaged: A file was damaged; the store must be opened again, and reads the rest from the log.
        """
        suspects, self._suspects = self._suspects & set(self.segments), set()
        for opened in sorted(suspects):
            try:
                for statement in check_statements(opened):
                    self.database.run(statement)
            except duckdb.Error as exc:
                if not segment.is_refusal(exc):
                    self._keep_damaged(self.directory / opened.file_name, exc, newest=opened == self.segments[-1])
                    self.visible = None
                    raise StoreDamaged(f"span store: {self.damaged[-1]}: a query could not read it") from exc

    def _version(self, opened: Segment) -> int | None:
        version: int | None = self.database.run(f"SELECT max(version) FROM {opened.name}.schema_version")[0][0]
        return version

    def _set_aside(self, file: Path, reason: Exception, *, newest: bool) -> None:
        """
        Keep *file* as a damaged one.

        Raises:
            Unavailable: *reason* does not mean that the file is damaged; the store is closed.
        """
        if segment.is_refusal(reason):
            self.close()
            raise Unavailable(f"span store: {file.name}: {type(reason).__name__}: {str(reason)[:200]}") from reason
        self._keep_damaged(file, reason, newest=newest)

    def _attach_found(self, file: Path) -> None:
        """
        Attach *file*, which was found in the directory; if its WAL cannot be read, without it.

        A transaction is in the file or in the WAL with the position that it led to. So what only the WAL held is read
        from the log again.

        Raises:
            duckdb.Error: The file cannot be read or created.
            Rejected: It is no file, or as ``attach``.
        """
        if not file.is_file():
            raise Rejected(f"{file.name}: is not a file")
        try:
            self.attach(file)
        except duckdb.Error as exc:
            wal = _wal_of(file)
            if segment.is_refusal(exc) or not wal.exists():
                raise
            name = f"{file.name}.damaged-{int(time.time())}.wal"
            wal.rename(wal.with_name(name))
            try:
                self.attach(file)
            except (duckdb.Error, Rejected):
                wal.with_name(name).rename(wal)
                raise
            log.error("%s cannot be read (%s) and is kept as %s", wal.name, exc, name)
            self.damaged.append(f"{wal.name}: {type(exc).__name__}")
            self.set_aside.note("span store", f"file {name}", exc)

    def attach(self, file: Path) -> None:
        """
        Attach *file*, created if missing, with all tables.

        Raises:
            duckdb.Error: The file cannot be opened, or its tables cannot be created.
            Rejected: The name of the file or its schema version is not one that this program reads.
        """
        opened = parse_segment(file)
        if opened is None:
            raise Rejected(f"{file.name}: the name is not that of a store file of this version")
        try:
            self.database.attach(file, opened.name)
            for statement in segment.table_statements(opened):
                self.database.run(statement)
            version = self._version(opened)
            if version is None:
                self.database.run(f"INSERT INTO {opened.name}.schema_version VALUES ({segment.SCHEMA_VERSION})")
            elif version not in (*CONVERTED_VERSIONS, segment.SCHEMA_VERSION):
                raise Rejected(
                    f"schema version {version}, this program reads version {segment.SCHEMA_VERSION} and converts "
                    f"versions {' and '.join(map(str, CONVERTED_VERSIONS))}"
                )
        except (duckdb.Error, Rejected):
            with contextlib.suppress(duckdb.Error):
                self.database.run(f"DETACH {opened.name}")
            raise
        self.segments = sorted([*self.segments, opened])

    def _keep_damaged(self, file: Path, reason: Exception, *, newest: bool) -> None:
        """Detach a damaged file, rename it, and record *reason*."""
        name = f"{file.name}.damaged-{int(time.time())}"
        # Newer files hold later positions, so the log is not read again for an older file.
        consequence = "its content is read from the log again" if newest else "its content is no longer shown"
        log.error("%s cannot be read (%s) and is kept as %s; %s", file.name, reason, name, consequence)
        opened = parse_segment(file)
        if opened is not None:
            with contextlib.suppress(duckdb.Error):
                self.database.run(f"DETACH {opened.name}")
            self.segments = [other for other in self.segments if other != opened]
        for part in (file, _wal_of(file)):
            if part.exists() or part.is_symlink():
                part.rename(part.with_name(part.name.replace(file.name, name)))
        self.damaged.append(f"{file.name}: {type(reason).__name__}")
        self.set_aside.note("span store", f"file {name}", reason)

    def close(self) -> None:
        """Write everything to the files and detach them; running queries are interrupted."""
        self.visible = None
        self.database.close()

    # -- the state that the files hold

    def position(self, shard: int) -> Position | None:
        """Return the position of the last message of *shard* that is stored; None if there is none."""
        return self.readers[shard].position

    def _reset_state(self) -> None:
        self.readers = {shard: new_reader(self._shards, self._capacity) for shard in range(self._shards)}
        self.waiting: dict[Key, SpanUpdate] = {}
        self._loaded: set[int] = set()

    def _state_in(self, opened: Segment, *, check: bool = False) -> ReaderState:
        """Return the state in a file, without shards of which a newer file was loaded; see ``read_reader_state``."""
        return read_reader_state(self.database, opened, self._shards, self._capacity, self._loaded, check=check)

    def _load(self, state: ReaderState) -> None:
        """Add the state of a file; called from the newest file to the oldest: newer state replaces older state."""
        self.last_ordinal = max(self.last_ordinal, state.last_ordinal)
        self.readers |= state.readers
        self._loaded |= set(state.readers)
        self.waiting = {**state.waiting, **self.waiting}

    def _forget_arrived(self) -> None:
        # An empty update in a newer file says that the span of an update in an older file has arrived.
        self.waiting = {key: update for key, update in self.waiting.items() if not update.is_empty}

    # -- after a failure

    def fail(self, reason: Exception) -> Unavailable:
        """
        Roll back after the error *reason* of the disk or of DuckDB; reload the state from the files if possible.

        Returns:
            The error that the caller raises.

        Raises:
            StoreDamaged: A file is damaged that was not damaged when the store was opened.
        """
        self.is_stale = True
        with contextlib.suppress(duckdb.Error):
            self.database.run("ROLLBACK")
        if isinstance(reason, duckdb.FatalException | duckdb.InternalException) or "invalidated" in str(reason):
            self.visible = None
        with contextlib.suppress(duckdb.Error, Rejected, OSError, Unavailable):
            self.recover()
        return Unavailable(f"span store: {type(reason).__name__}: {str(reason)[:200]}")

    def recover(self) -> None:
        """
        Reload the state from the files if a transaction failed; reopen the database if DuckDB has invalidated it.

        Raises:
            duckdb.Error, OSError, Unavailable: The disk still refuses. Nothing may be written until this succeeds.
            StoreDamaged: A file is damaged that was not damaged when the store was opened.
        """
        if not self.is_stale:
            return
        if self.visible is not None:
            try:
                self._reset_state()
                for opened in reversed(self.segments):
                    self._load(self._state_in(opened))
                self._forget_arrived()
            except (duckdb.Error, Rejected):
                self.visible = None
        if self.visible is None:
            self.close()
            known = len(self.damaged)
            try:
                self._open()
            finally:
                self._damaged_while_open = self._damaged_while_open or len(self.damaged) > known
        if self._damaged_while_open:
            self.visible = None
            raise StoreDamaged(f"span store: {self.damaged[-1]}: was damaged while it was open")
        self.is_stale = False

    # -- adding and removing files

    def segment_for(self, day: str) -> Segment:
        """
        Return the segment for records of *day*; create it if there is none or the newest is too old or too large.

        Raises:
            duckdb.Error, OSError: The file cannot be read or created.
        """
        newest = self.segments[-1] if self.segments else None
        created = Segment(day, 0)
        if newest is not None and newest.day >= day:
            if (self.directory / newest.file_name).stat().st_size < segment.MAX_BYTES:
                return newest
            created = newest.next()
        file = self.directory / created.file_name
        _remove(file)  # a failed attempt may have left it
        try:
            self.attach(file)
        except duckdb.Error:
            with contextlib.suppress(OSError):
                _remove(file)
            raise
        self.visible = tuple(self.segments)
        return created

    def remove(self, removed: Segment) -> None:
        """
        Detach and delete the file of *removed*.

        Raises:
            duckdb.Error, OSError: The disk refused.
            Rejected: A waiting update in another file cannot be decoded.
        """
        self.segments = [other for other in self.segments if other != removed]
        self.visible = tuple(self.segments)
        try:
            self.database.run(f"DETACH {removed.name}")
        finally:
            # DETACH can fail on a full disk; delete the file anyway, because that frees space.
            _remove(self.directory / removed.file_name)
        # An update that only the removed file held is forgotten.
        self.waiting = {}
        for opened in self.segments:
            self.waiting |= read_waiting(self.database, opened)
        self._forget_arrived()

    def disk_bytes(self) -> int:
        """Return the size of all files of the store, damaged ones included, bytes."""
        return sum(_size(file) for file in self.directory.glob("spans-*"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # removed by the writing thread in the meantime
        return 0


def _wal_of(file: Path) -> Path:
    return file.with_name(file.name + ".wal")


def _remove(file: Path) -> None:
    for part in (file, _wal_of(file)):
        part.unlink(missing_ok=True)
