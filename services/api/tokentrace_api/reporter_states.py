"""
What the reporters say of themselves: each batch carries the counters of the reporter that made it.

A reporter has an id of its own in each process; what its processes say is added up under its name. All counters but the
queue count since the reporter was created, so the last batch of a process says everything about it.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from tokentrace.records import Batch, ReporterStats
from tokentrace.units import SECOND

#: Most names that are kept, and processes of each; the one that was silent the longest makes room.
MAX_NAMES, MAX_PROCESSES = 1000, 200
#: A process that has sent no batch for this long is assumed to have no waiting spans, nanoseconds.
QUIET_NS = 30 * SECOND


class ReporterSums(NamedTuple):
    """
    The counters of all processes of a reporter, in spans.

    Attributes:
        last_ns: When its last batch was stored in the log, Unix nanoseconds.
        processes: Number of processes that have sent a batch.
        queue_depth: Waiting behind the last batch of each process that has sent one in the last 30 seconds.
    """

    project: str
    name: str
    last_ns: int
    processes: int
    sent: int
    acked: int
    failed: int
    dropped: int
    queue_depth: int


class _Process(NamedTuple):
    sequence: int
    last_ns: int
    stats: ReporterStats


class _Named:
    """The processes of a reporter by id, and the sums of those that had to make room."""

    def __init__(self) -> None:
        self.processes: dict[str, _Process] = {}
        self.gone = 0
        self.gone_stats = ReporterStats()

    def add(self, id: str, process: _Process) -> None:
        before = self.processes.get(id)
        if before is not None and before.sequence > process.sequence:
            return
        # Last in the order of the keys, so that the first one was silent the longest.
        self.processes.pop(id, None)
        self.processes[id] = process
        if len(self.processes) > MAX_PROCESSES:
            oldest = self.processes.pop(next(iter(self.processes))).stats
            self.gone += 1
            self.gone_stats = ReporterStats(
                sent=self.gone_stats.sent + oldest.sent,
                acked=self.gone_stats.acked + oldest.acked,
                failed=self.gone_stats.failed + oldest.failed,
                dropped=self.gone_stats.dropped + oldest.dropped,
            )

    def sums(self, project: str, name: str, now_ns: int) -> ReporterSums:
        known = list(self.processes.values())
        every = [self.gone_stats, *(process.stats for process in known)]
        return ReporterSums(
            project=project,
            name=name,
            last_ns=max(process.last_ns for process in known),
            processes=self.gone + len(known),
            sent=sum(stats.sent for stats in every),
            acked=sum(stats.acked for stats in every),
            failed=sum(stats.failed for stats in every),
            dropped=sum(stats.dropped for stats in every),
            queue_depth=sum(process.stats.queue_depth for process in known if process.last_ns >= now_ns - QUIET_NS),
        )


class ReporterStates:
    """The last counters of every reporter whose batches were stored since the start. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[tuple[str, str], _Named] = {}

    def note(self, batch: Batch, project: str, stored_ns: int) -> None:
        """Take over what *batch*, stored in the log at *stored_ns* (Unix nanoseconds), says of its reporter."""
        if batch.reporter is None:
            return
        key = project, batch.source
        with self._lock:
            named = self._named.pop(key, None) or _Named()
            named.add(batch.id, _Process(batch.sequence, stored_ns, batch.reporter))
            self._named[key] = named
            if len(self._named) > MAX_NAMES:
                del self._named[next(iter(self._named))]

    def sums(self, now_ns: int) -> list[ReporterSums]:
        """Return the sums of each reporter at *now_ns*, Unix nanoseconds; the one that sent last is first."""
        with self._lock:
            sums = [named.sums(*key, now_ns) for key, named in self._named.items()]
        return sorted(sums, key=lambda reporter: (-reporter.last_ns, reporter.project, reporter.name))
