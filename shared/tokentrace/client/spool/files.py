"""
Files of a spool.

A file begins with ``TTSPOOL1`` and a line feed, the length of the header in four bytes, and the header in MessagePack.
Records follow: the length of the payload and a CRC-32 in four bytes each, the number of the batch and the time of
writing in eight bytes each, and the payload: the bytes of the batch as they are sent. All numbers are big-endian. The
CRC is that of everything in the record that follows it. A record that is torn or wrong ends the file.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from tokentrace.bad_data import UNREADABLE

SUFFIX = ".ttspool"
_MAGIC = b"TTSPOOL1\n"
_LENGTH = struct.Struct("!I")
_HEAD = struct.Struct("!II")
_NUMBERS = struct.Struct("!QQ")


class Header(msgspec.Struct):
    """
    What a file says about its batches.

    Attributes:
        project, source, reporter_id: Those of the reporter.
        created_ns: When the file was made, Unix time.
        version: That of tokentrace.
    """

    project: str
    source: str
    reporter_id: str
    created_ns: int
    version: str


class Record(NamedTuple):
    """A batch: its number, when it was written (Unix time), and its bytes as they are sent."""

    sequence: int
    stored_ns: int
    payload: bytes


class SpoolFile(NamedTuple):
    """What could be read of a file; ``is_torn`` = its end could not."""

    header: Header
    records: list[Record]
    is_torn: bool


def read_file(path: Path) -> SpoolFile | None:
    """
    Return the content of the file at *path*; None if not even its header can be read.

    Raises:
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    start = len(_MAGIC) + _LENGTH.size
    if not data.startswith(_MAGIC) or len(data) < start:
        return None
    end = start + _LENGTH.unpack_from(data, len(_MAGIC))[0]
    try:
        header = msgspec.msgpack.decode(data[start:end], type=Header)
    except UNREADABLE:
        return None
    records: list[Record] = []
    while end < len(data):
        if len(data) - end < _HEAD.size + _NUMBERS.size:
            return SpoolFile(header, records, True)
        length, checksum = _HEAD.unpack_from(data, end)
        checked = data[end + _HEAD.size : end + _HEAD.size + _NUMBERS.size + length]
        if len(checked) < _NUMBERS.size + length or zlib.crc32(checked) != checksum:
            return SpoolFile(header, records, True)
        sequence, stored_ns = _NUMBERS.unpack_from(checked)
        records.append(Record(sequence, stored_ns, checked[_NUMBERS.size :]))
        end += _HEAD.size + _NUMBERS.size + length
    return SpoolFile(header, records, False)


class Writer:
    """
    Appends records to a new file, which only its owner can read.

    Attributes:
        path: Where the file is.
        size: Bytes written.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self.size = 0
        coded = msgspec.msgpack.encode(header)
        try:
            self._write(_MAGIC + _LENGTH.pack(len(coded)) + coded)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, record: Record, *, sync: bool) -> None:
        """
        Append *record*; True for *sync* = wait until it is on the disk.

        Raises:
            OSError: It was not written. The file ends with the record before it.
        """
        checked = _NUMBERS.pack(record.sequence, record.stored_ns) + record.payload
        self._write(_HEAD.pack(len(record.payload), zlib.crc32(checked)) + checked)
        if sync:
            os.fsync(self._descriptor)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
