"""The transport that writes spans to a file as JSON lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.appending import Appender, NotSynced, Rotation
from tokentrace.client.transports.counted_queue import Delivered, Limits
from tokentrace.client.transports.notices import Notices
from tokentrace.client.transports.options import check_at_least, rebuilt
from tokentrace.client.transports.span_queue import SpanQueue
from tokentrace.errors import ConfigError
from tokentrace.records import Span
from tokentrace.redact import Redactor

#: The longest time that a span waits in memory, seconds.
_AGE_S = 0.5
_MAX_SPANS = 100_000
#: Pause after a failed write, seconds.
_PAUSE_S = 1.0
_MIB = 1024 * 1024


class FileTransport:
    """
    Appends spans to a file, one JSON object a line, each of which ``POST /spans`` takes as it is.

    ``send`` never blocks and never raises. A thread writes every 0.5 seconds, whole lines only, so several processes
    may share a file. While the disk is full or the file cannot be opened, up to 100,000 spans and 64 MiB wait and the
    write is tried again.

    Args:
        path: The file. It and its directory are made if they are missing.
        rotate: Start a new file when it would grow over *max_size_mb*, and each UTC day. The old one is renamed:
            ``traces.jsonl`` becomes ``traces.2026-03-15.1.jsonl``, with the day of its last line.
        max_size_mb: Size at which a file is rotated, in MiB.
        max_files: Number of rotated files that are kept.
        sync: Call fsync after each write; spans whose fsync fails are counted as failed.
        buffer_kb: With so many KiB of spans waiting, they are written at once.
        disk_days: Delete rotated files whose last line is older than this many days; None = never.
        redactor: Removes secrets before a span leaves this process; None uses the default rules.

    Raises:
        ConfigError: *path* or a number cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "./traces.jsonl",
        *,
        rotate: bool = False,
        max_size_mb: float = 100,
        max_files: int = 7,
        sync: bool = False,
        buffer_kb: int = 256,
        disk_days: int | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        # A tiny file is of use in tests alone.
        check_at_least("max_size_mb", max_size_mb, 0.001)
        check_at_least("max_files", max_files, 1)
        check_at_least("buffer_kb", buffer_kb, 1)
        if disk_days is not None:
            check_at_least("disk_days", disk_days, 0)
        text = os.fspath(path)
        if not text or "\0" in text or text.endswith("/"):
            raise ConfigError("transport: the path of a FileTransport must name a file")
        # Absolute, so that it stays the same file when the program changes its directory.
        whole = Path(os.path.abspath(text))
        self._options: dict[str, Any] = {
            "rotate": rotate,
            "max_size_mb": max_size_mb,
            "max_files": max_files,
            "sync": sync,
            "buffer_kb": buffer_kb,
            "disk_days": disk_days,
            "redactor": redactor,
        }
        self._path = str(whole)
        rotation = Rotation(int(max_size_mb * _MIB), max_files) if rotate else None
        self._appender = Appender(whole, rotation, disk_days, sync=sync)
        self._queue = SpanQueue(
            Limits(_MAX_SPANS, buffer_kb * 1024, _AGE_S, _MAX_SPANS),
            self._deliver,
            Notices(f"file transport {whole.name}"),
            redactor,
            name="tokentrace-file",
            on_fork=self._appender.close,
            release=self._appender.close,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), (self._path,), self._options)

    def send(self, spans: Sequence[Span]) -> None:
        """
        Queue *spans* for writing. This never blocks and never raises.

        Args:
            spans: Finished calls. They are copied, so their attributes may be changed afterwards.
        """
        self._queue.put_spans(spans)

    def _deliver(self, batch: list[tuple[bytes, int]]) -> Delivered[bytes]:
        found = self._queue.rendered(batch)
        count = len(found.lines)
        if not count:
            return Delivered(rejected=found.rejected)
        try:
            written = self._appender.append([line.json + b"\n" for line in found.lines])
        except NotSynced as exc:
            self._queue.notices.failed(f"fsync: {exc}", count)
            return Delivered(failed=count, rejected=found.rejected)
        except OSError as exc:
            self._queue.notices.failing(exc.strerror or type(exc).__name__)
            written = 0
        else:
            if written < count:
                self._queue.notices.failing("the file could not take all of them")
        return Delivered(
            acked=written,
            rejected=found.rejected,
            truncated=found.truncated(written),
            left=found.items[written:],
            pause_s=_PAUSE_S,
        )

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Write what waits at once.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed before every span was written or counted as lost.
        """
        return self._queue.flush(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Write the waiting spans, end the background thread and close the file; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not written by then are dropped and counted.
        """
        self._queue.close(timeout)

    def stats(self) -> Stats:
        """
        Return the counters of this transport.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        return self._queue.stats()
