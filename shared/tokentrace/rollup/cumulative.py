"""
Counters over everything a shard has folded, for ``/stats`` and Prometheus.

They do not decrease, except those of scores, which may be removed, and sums of attributes, which may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokentrace.rollup.int_sums import IntSums
from tokentrace.rollup.quantile import Ints
from tokentrace.rollup.rows import COMPLETION, LATENCY, PROMPT, SERIES, TTFT, WALL, WIDTH
from tokentrace.units import MS

#: Upper edges of the histogram for the quantiles of ``/stats``, milliseconds; one more bucket has no upper edge.
WALL_EDGES_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
_WALL_EDGES_NS = np.array(WALL_EDGES_MS, np.int64) * MS
#: Upper edges of the Prometheus histograms, milliseconds and tokens; one more bucket has no upper edge.
LATENCY_EDGES_MS = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10000, 30000)
TOKEN_EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LATENCY_EDGES_NS = np.array(LATENCY_EDGES_MS, np.int64) * MS
_TOKEN_EDGES = np.array(TOKEN_EDGES, np.int64)
#: Prometheus histogram -> (column of a row, smallest value that counts, upper edges in the unit of the column).
HISTOGRAMS = {
    "latency": (LATENCY, 1, _LATENCY_EDGES_NS),
    "ttft": (TTFT, 1, _LATENCY_EDGES_NS),
    "prompt": (PROMPT, 0, _TOKEN_EDGES),
    "completion": (COMPLETION, 0, _TOKEN_EDGES),
}
#: Number of buckets of each of HISTOGRAMS.
PLACES = len(TOKEN_EDGES) + 1


class Counters:
    """Sums of each series since the stream began, for any schema; row n of ``totals`` belongs to series n."""

    def __init__(self, width: int) -> None:
        self.totals = IntSums.zeros(0, width)

    def add(self, series: Ints, totals: IntSums, size: int) -> None:
        """
        Add *totals*, one row for each of the distinct *series*.

        Args:
            size: Number of series now.
        """
        known = len(self.totals)
        if known < size:
            self.totals = self.totals.spread(np.arange(known), size)
        self.totals = self.totals.add_at(series, totals)

    def count(self, rows: Ints, size: int) -> None:
        """Do nothing; a subclass counts here what the sums of *rows* do not contain."""

    def snapshot(self) -> dict[str, Any]:
        """Return the sums as plain data for ``restore``."""
        low, high = self.totals
        return {"low": low.tobytes(), "high": None if high is None else high.tobytes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Take over the sums from ``snapshot``.

        Raises:
            ValueError: The sums are missing or do not make whole rows.
        """
        width = self.totals.low.shape[1]
        low, high = (
            None if data is None else np.frombuffer(data, np.int64).reshape(-1, width).copy()
            for data in (state["low"], state["high"])
        )
        if low is None:
            raise ValueError("cumulative counters: the sums are missing")
        self.totals = IntSums(low, high)


class CumulativeCounters(Counters):
    """
    Sums and histograms of spans since the stream began.

    Attributes:
        histograms: Number of spans in each bucket of HISTOGRAMS, shape (series, len(HISTOGRAMS), PLACES).
        walls: Number of spans by ended - started, one for each of WALL_EDGES_MS and one without upper edge.
        longest_ns: The largest ended - started, nanoseconds.
    """

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.histograms: Ints = np.zeros((0, len(HISTOGRAMS), PLACES), np.int64)
        self.walls: Ints = np.zeros(len(WALL_EDGES_MS) + 1, np.int64)
        self.longest_ns = 0

    def count(self, rows: Ints, size: int) -> None:
        """Count *rows* in the histograms; *size* is the number of series now."""
        known = len(self.histograms)
        if known < size:
            self.histograms = np.concatenate(
                [self.histograms, np.zeros((size - known, len(HISTOGRAMS), PLACES), np.int64)]
            )
        own = rows[:, SERIES] * PLACES
        for index, (column, least, edges) in enumerate(HISTOGRAMS.values()):
            values = rows[:, column]
            at = own + np.searchsorted(edges, values, side="left")
            if least:
                at = at[values >= least]
            if len(at):
                self.histograms[:, index] += np.bincount(at, minlength=size * PLACES).reshape(size, PLACES)
        walls = rows[:, WALL]
        self.walls += np.bincount(np.searchsorted(_WALL_EDGES_NS, walls, side="left"), minlength=len(self.walls))
        self.longest_ns = max(self.longest_ns, int(walls.max(initial=0)))

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as plain data for ``restore``."""
        return {
            **super().snapshot(),
            "histograms": self.histograms.tobytes(),
            "walls": self.walls.tolist(),
            "longest_ns": self.longest_ns,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the counters from ``snapshot``; raises as ``Counters.restore``."""
        super().restore(state)
        shape = (-1, len(HISTOGRAMS), PLACES)
        self.histograms = np.frombuffer(state["histograms"], np.int64).reshape(shape).copy()
        self.walls = np.array(state["walls"], np.int64)
        self.longest_ns = state["longest_ns"]


def histogram_quantile_ms(counts: Sequence[int], longest_ns: int, q: float) -> float:
    """
    Estimate a quantile from a histogram with fixed edges, by linear interpolation inside the bucket of its rank.

    Args:
        counts: Number of values in each bucket of WALL_EDGES_MS; the bucket without upper edge is last.
        longest_ns: The largest value, nanoseconds; it is returned if the rank lies in the last bucket.
        q: 0 < q < 1.

    Returns:
        Milliseconds; 0 without values.

    Source:
        ``histogram_quantile`` of Prometheus, except for the last bucket.
    """
    total = sum(counts)
    if total == 0:
        return 0.0
    rank = total * q
    below, lower = 0, 0.0
    for count, upper in zip(counts, WALL_EDGES_MS, strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below, lower = below + count, float(upper)
    return longest_ns / MS
