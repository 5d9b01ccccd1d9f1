"""
Directories of a spool: one for each reporter, below one that the processes of a host share.

A reporter holds the lock of its directory for life (``flock``, which the system releases when a process dies, so the
spool must not be on NFS). The process that holds the lock sends the files and removes them. A directory whose lock is
free belongs to a dead process and is adopted. No acknowledgement is written: a file is removed when all of it was
accepted, and the pipeline recognises a batch that it gets twice by the id of its reporter and its number.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tokentrace.client.spool.files import SUFFIX, Header, Record, Writer
from tokentrace.units import DAY

log = logging.getLogger("tokentrace.reporter")

Fsync = Literal["never", "batch"]

_MAX_FILE_BYTES = 8 * 1024 * 1024
#: Readers remember batches for eight days.
MAX_AGE_NS = 7 * DAY
#: After a failure of the disk it is tried again after this time, seconds.
_RETRY_S = 60.0
_LOCK = "lock"


class HeldDirectory:
    """A directory whose lock this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def files(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(path for path in self.path.iterdir() if path.suffix == SUFFIX)

    def release(self) -> None:
        """Remove the directory if it has no files, and release the lock."""
        try:
            if not self.files():
                (self.path / _LOCK).unlink(missing_ok=True)
                self.path.rmdir()
        except OSError as exc:
            log.debug("the directory %s stays: %s", self.path, exc)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the descriptor of the lock; in a forked child, the parent keeps the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _hold(path: Path) -> HeldDirectory | None:
    """Return the directory at *path* with its lock; None if another process holds it or has removed it."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have removed the directory between the two calls.
        if os.stat(path / _LOCK).st_ino == os.fstat(descriptor).st_ino:
            return HeldDirectory(path, descriptor)
    except OSError:
        os.close(descriptor)
        return None
    os.close(descriptor)
    return None


def adoptable(root: Path) -> Iterator[HeldDirectory]:
    """Yield the directories of dead processes below *root*, with their locks."""
    try:
        paths = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return
    for path in paths:
        try:
            held = _hold(path)
        except OSError:
            continue
        if held is not None:
            yield held


class Spool:
    """
    The directory of one reporter, made with its first batch.

    Args:
        root: The directory of all spools.
        max_bytes: Most bytes below *root*; for a new file, the oldest ones of this reporter and of dead processes are
            dropped.
        fsync: ``batch`` = each batch is on the disk before it counts as kept; ``never`` = the system writes it later.
        header: What each file says.
        name: What log lines call the reporter.

    Attributes:
        name, root: As given.
    """

    def __init__(self, root: Path, max_bytes: int, fsync: Fsync, header: Header, name: str) -> None:
        self.root, self._max_bytes, self._sync = root, max_bytes, fsync == "batch"
        self._header, self.name = header, name
        self._held: HeldDirectory | None = None
        self._writer: Writer | None = None
        self._file_bytes = min(_MAX_FILE_BYTES, max_bytes // 4)
        self._failed_at = -_RETRY_S
        self._has_said = False
        #: Number of spans in each batch on disk, by number, and the numbers in each file.
        self._spans: dict[int, int] = {}
        self._numbers: dict[Path, list[int]] = {}

    def append(self, sequence: int, payload: bytes, spans: int) -> tuple[bool, int]:
        """
        Write a batch of *spans* spans.

        Returns:
            (False if it could not be written and stays in memory, how many spans were dropped to make room).
        """
        if time.monotonic() - self._failed_at < _RETRY_S:
            return False, 0
        dropped = 0
        try:
            if self._writer is None or self._writer.size + len(payload) > self._file_bytes:
                self.seal()
                dropped = self._make_room(max(self._file_bytes, len(payload)))
                self._open(sequence)
            assert self._writer is not None
            self._writer.append(Record(sequence, time.time_ns(), payload), sync=self._sync)
        except OSError as exc:
            self._failed_at = time.monotonic()
            if not self._has_said:
                self._has_said = True
                log.warning("reporter %s: the spool cannot be written, spans stay in memory: %s", self.name, exc)
            return False, dropped
        self._has_said = False
        self._spans[sequence] = spans
        self._numbers.setdefault(self._writer.path, []).append(sequence)
        return True, dropped

    def _open(self, sequence: int) -> None:
        if self._held is None:
            directory = self.root / self._header.reporter_id[-200:].lstrip(".")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = _hold(directory)
            if self._held is None:
                raise OSError(f"{directory} is locked by another process")
        header = Header(
            self._header.project, self._header.source, self._header.reporter_id, time.time_ns(), self._header.version
        )
        self._writer = Writer(self._held.path / f"{sequence:020}{SUFFIX}", header)

    def _make_room(self, size: int) -> int:
        """
        Drop the oldest files of this reporter and of dead processes that are too old or too many.

        Returns:
            How many spans of this reporter were dropped.

        Raises:
            OSError: The files of other processes that run leave no room.
        """
        held = list(adoptable(self.root)) if self.root.exists() else []
        try:
            own = self.files()
            files = {path: path.stat() for path in (*own, *(path for other in held for path in other.files()))}
            used = sum(path.stat().st_size for path in self.root.glob(f"*/*{SUFFIX}"))
            dropped = 0
            for path, stat in sorted(files.items(), key=lambda item: item[1].st_mtime_ns):
                if used + size <= self._max_bytes and time.time_ns() - stat.st_mtime_ns <= MAX_AGE_NS:
                    break
                used -= stat.st_size
                spans = self.remove(path)
                dropped += spans
                whose = f"{spans} spans are" if path in own else f"{path}, of a dead process, is"
                log.warning("reporter %s: the spool is full or too old, %s dropped", self.name, whose)
        finally:
            for other in held:
                other.release()
        if used + size > self._max_bytes:
            raise OSError(f"{self.root} holds {used} bytes, of {self._max_bytes} at most")
        return dropped

    def seal(self) -> None:
        """Close the file that is being written, so that it can be sent."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def files(self) -> list[Path]:
        """Return the files of this reporter, oldest first."""
        return [] if self._held is None else self._held.files()

    @property
    def is_empty(self) -> bool:
        """True if no batch of this reporter is on disk."""
        return not self._spans

    def accepted(self, sequence: int) -> int:
        """Return how many spans the accepted batch had; 0 if it was accepted before."""
        return self._spans.pop(sequence, 0)

    def remove(self, path: Path) -> int:
        """Remove a file of this reporter and return how many of its spans were not accepted."""
        path.unlink(missing_ok=True)
        return sum(self._spans.pop(number, 0) for number in self._numbers.pop(path, []))

    def close(self) -> None:
        """Close the file and release the lock, so that another process sends what is left."""
        self.seal()
        if self._held is not None:
            self._held.release()
            self._held = None

    def let_go(self) -> None:
        """Close the descriptors, in a forked child; the files and the lock are the parent's."""
        self.seal()
        if self._held is not None:
            self._held.let_go()
            self._held = None
