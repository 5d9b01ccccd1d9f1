"""
The window of a rule about reporters: what their batches say of sent, failed, dropped and waiting spans.

These figures have neither dimensions nor an event time. A figure counts at the time at which the broker stored its
batch. The numbers of sent, failed and dropped spans are those of the window; the queue depth is that of the instant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tokentrace.records import Batch, ReporterStats, Span
from tokentrace.rollup import Ints, ScoreDelta
from tokentrace.units import SECOND
from tokentrace_alerter.rules.decide import NO_READING, Reading
from tokentrace_alerter.rules.readings import WHOLE, Readings, difference
from tokentrace_alerter.rules.schema import QUEUE_DEPTH, Rule

#: A reporter that has sent no batch for this long has no waiting spans, nanoseconds.
QUIET_NS = 30 * SECOND

#: Metric -> (spans of a batch, figures of its reporter) -> what the batch adds.
_ADDS: Mapping[str, Callable[[int, ReporterStats], int]] = {
    "transport_sent": lambda spans, stats: spans,
    "transport_failed": lambda spans, stats: stats.newly_failed,
    "transport_dropped": lambda spans, stats: stats.newly_dropped,
    QUEUE_DEPTH: lambda spans, stats: 0,
}


class TransportWindow:
    """A ``RuleWindow`` of the figures of reporters."""

    def __init__(self, rule: Rule) -> None:
        self._rule, self._adds = rule, _ADDS[rule.metric]
        #: Number of a bucket of ``rule.bucket_s`` seconds -> [what its batches added, number of batches].
        self._buckets: dict[int, list[int]] = {}
        #: Id of a reporter -> (number of its last batch, its stream time in nanoseconds, spans that waited).
        self._queues: dict[str, tuple[int, int, int]] = {}
        self.overflow, self.late = NO_READING, 0

    def report(self, batch: Batch, spans: int, time_ns: int) -> None:
        """Count *batch*, which its reporter sent with *spans* spans; *time_ns* is the stream time of the message."""
        stats = batch.reporter or ReporterStats()
        bucket = self._buckets.setdefault(time_ns // SECOND // self._rule.bucket_s, [0, 0])
        bucket[0] += self._adds(spans, stats)
        bucket[1] += 1
        if self._rule.metric == QUEUE_DEPTH and batch.reporter is not None:
            held = self._queues.get(batch.id)
            if held is None or held[0] <= batch.sequence:
                self._queues[batch.id] = (batch.sequence, time_ns, stats.queue_depth)

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Do nothing: spans say nothing about their reporter."""

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        """Do nothing: scores change no figure of a reporter."""

    def read(self, instant_ns: int) -> Readings:
        """As ``RuleWindow.read``."""
        if self._rule.metric == QUEUE_DEPTH:
            self._queues = {name: queue for name, queue in self._queues.items() if queue[1] > instant_ns - QUIET_NS}
            waiting = [depth for _, _, depth in self._queues.values()]
            self._buckets.clear()
            return {WHOLE: Reading(float(sum(waiting)), len(waiting))} if waiting else {}
        width, length_s = self._rule.bucket_s, self._rule.window_s
        end_s = instant_ns // SECOND
        now = self._between(end_s - length_s, end_s)
        kept_s = end_s - 2 * length_s - 2 * width
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if number * width >= kept_s}
        if not self._rule.change:
            return now
        return difference(self._rule, now, self._between(end_s - 2 * length_s, end_s - length_s))

    def _between(self, start_s: int, end_s: int) -> Readings:
        """Return the reading of the buckets that begin from *start_s* on and before *end_s*, Unix seconds."""
        width = self._rule.bucket_s
        found = [bucket for number, bucket in self._buckets.items() if start_s <= number * width < end_s]
        batches = sum(bucket[1] for bucket in found)
        return {WHOLE: Reading(float(sum(bucket[0] for bucket in found)), batches)} if batches else {}

    def limit_groups(self, readings: Readings, busy: Collection[str]) -> set[str] | None:
        """Return None: such a rule has one instance."""
        return None

    def forget(self, name: str) -> None:
        """Do nothing: such a rule names no user."""

    def snapshot(self) -> Callable[[], Any]:
        """As ``RuleWindow.snapshot``."""
        buckets, queues = {number: list(bucket) for number, bucket in self._buckets.items()}, dict(self._queues)
        return lambda: (buckets, queues)

    def restore(self, saved: Any) -> None:
        """As ``RuleWindow.restore``."""
        buckets, queues = saved
        self._buckets = {number: list(bucket) for number, bucket in buckets.items()}
        self._queues = {name: (number, time_ns, depth) for name, (number, time_ns, depth) in queues.items()}
