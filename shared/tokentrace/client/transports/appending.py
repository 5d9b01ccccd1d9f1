"""
Appending whole lines to a file that several processes may share, and its rotation.

A write happens under an exclusive lock of the file (``flock``), so what a full disk cut off can be removed again, and
only one process rotates. A file is rotated by renaming it. A process that waited for the lock of a file that was
renamed meanwhile opens the new one.

Rotated files stand beside the file, named after the UTC day of their last line: ``traces.2026-03-15.1.jsonl``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":
    import fcntl

#: How much of the end of a file is searched for the last line break, bytes; no line is longer.
_MAX_LINE_BYTES = 8 * 1024 * 1024
#: How each line begins, by which the unfinished line of a killed process is known.
_LINE_START = b'{"trace_id":'


class NotSynced(Exception):
    """Lines were written, and the system could not say that they are on the disk."""


class Rotation(NamedTuple):
    """
    When a file is rotated, and what is kept.

    Attributes:
        max_bytes: A file is rotated before a write would make it larger.
        max_files: Number of rotated files that are kept.
    """

    max_bytes: int
    max_files: int


class Appender:
    """
    Appends lines to a file. Only one thread may use it at a time; other processes may append to the same file.

    Args:
        path: The file. It and its directory are made if they are missing.
        rotation: None = the file is not rotated.
        disk_days: Rotated files whose last line is older than this many days are deleted; None = never.
        sync: Call fsync after each write.
    """

    def __init__(self, path: Path, rotation: Rotation | None, disk_days: int | None, *, sync: bool) -> None:
        self._path, self._rotation, self._disk_days, self._sync = path, rotation, disk_days, sync
        self._file = -1

    def append(self, lines: Sequence[bytes]) -> int:
        """
        Append *lines*, which end with a line break each, in one write.

        Returns:
            How many were written: fewer than given if the disk is full.

        Raises:
            NotSynced: All were written, and fsync failed.
            OSError: None was written.
        """
        data = b"".join(lines)
        size = self._lock_current(len(data))
        file = self._file
        try:
            written = os.write(file, data)
            if written < len(data):
                whole = data.rfind(b"\n", 0, written) + 1
                os.ftruncate(file, size + whole)
                return data.count(b"\n", 0, whole)
        finally:
            _unlock(file)
        if self._sync:
            try:
                os.fsync(file)
            except OSError as exc:
                raise NotSynced(str(exc)) from exc
        return len(lines)

    def _lock_current(self, more: int) -> int:
        """Open and lock the file, with room for *more* bytes, and return its size."""
        while True:
            if self._file < 0:
                self._open()
            try:
                _lock(self._file)
                here = os.fstat(self._file)
                if self._is_current(here):
                    size = self._without_torn_line(here.st_size)
                    if not self._is_full(size, more, here.st_mtime):
                        return size
                    self._rotate(_day(here.st_mtime))
            except OSError:
                self.close()
                raise
            self.close()  # which also unlocks it

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            file = os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "not a regular file")
        self._file = file
        if self._disk_days is not None:
            self._delete_old(self._disk_days)

    def _is_current(self, here: os.stat_result) -> bool:
        """Return True if the open file is the one at the path: it was not rotated, moved or deleted."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _without_torn_line(self, size: int) -> int:
        """Remove the unfinished last line of a process that was killed while it wrote; return the size of the file."""
        if not size or _read(self._file, 1, size - 1) == b"\n":
            return size
        start = max(size - _MAX_LINE_BYTES, 0)
        tail = _read(self._file, size - start, start)
        torn = tail.rpartition(b"\n")[2]
        if torn.startswith(_LINE_START[: len(torn)]):
            os.ftruncate(self._file, size - len(torn))
            return size - len(torn)
        # Not ours: it is kept as a line of its own.
        return size + os.write(self._file, b"\n")

    # -- rotation

    def _is_full(self, size: int, more: int, modified: float) -> bool:
        rotation = self._rotation
        return rotation is not None and size > 0 and (size + more > rotation.max_bytes or _day(modified) < _day())

    def _rotate(self, day: str) -> None:
        rotated = self._rotated()
        number = max((number for _, other, number in rotated if other == day), default=0) + 1
        os.rename(self._path, self._path.with_name(f"{self._path.stem}.{day}.{number}{self._path.suffix}"))
        keep = self._rotation.max_files if self._rotation else 0
        # The file that was just renamed is one of those that are kept.
        for path, _, _ in rotated[: max(len(rotated) + 1 - keep, 0)]:
            path.unlink(missing_ok=True)
        if self._disk_days is not None:
            self._delete_old(self._disk_days)

    def _rotated(self) -> list[tuple[Path, str, int]]:
        """Return (file, day, number) of each rotated file, oldest first."""
        stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
        name = re.compile(rf"{stem}\.(\d{{4}}-\d\d-\d\d)\.(\d{{1,9}}){suffix}")
        found = []
        for entry in os.listdir(self._path.parent):
            match = name.fullmatch(entry)
            if match is not None:
                found.append((self._path.with_name(entry), match[1], int(match[2])))
        return sorted(found, key=lambda file: file[1:])

    def _delete_old(self, days: int) -> None:
        oldest = time.time() - days * 86_400
        for path, _, _ in self._rotated():
            with contextlib.suppress(FileNotFoundError):  # another process deletes them too
                if path.stat().st_mtime < oldest:
                    path.unlink()

    # -- end

    def close(self) -> None:
        """Close the file; ``append`` opens it again."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _lock(file: int) -> None:
    """Take the exclusive lock of *file*, or none where there are no locks: such a file must have one writer."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # some network file systems have none
            fcntl.flock(file, fcntl.LOCK_EX)


def _unlock(file: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _read(file: int, count: int, offset: int) -> bytes:
    os.lseek(file, offset, os.SEEK_SET)  # appending does not depend on it
    return os.read(file, count)


def _day(at_s: float | None = None) -> str:
    """Return the UTC day of *at_s*, Unix seconds, or today."""
    return datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC).strftime("%Y-%m-%d")
