"""
Counters over everything a shard has folded, for ``/stats`` and Prometheus.

They do not decrease, except those of scores, which may be removed, and sums of attributes, which may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokentrace.rollup.int_sums import IntSums, add_by
from tokentrace.rollup.quantile import Ints
from tokentrace.rollup.rows import FIELDS, REASON, REASONS, SERIES, TOTAL, WALL, WIDTH
from tokentrace.units import MS

#: Upper edges of the histogram for the quantiles of ``/stats``, milliseconds; one more bucket has no upper edge.
WALL_EDGES_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
_WALL_EDGES_NS = np.array(WALL_EDGES_MS, np.int64) * MS
#: Upper edges of the Prometheus histograms, milliseconds and tokens; one more bucket has no upper edge.
LATENCY_EDGES_MS = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10000, 30000)
TOKEN_EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LATENCY_EDGES_NS = np.array(LATENCY_EDGES_MS, np.int64) * MS
_TOKEN_EDGES = np.array(TOKEN_EDGES, np.int64)
#: Prometheus histogram, which has the values of the distribution of the same name -> upper edges in their unit.
HISTOGRAMS = {
    "latency": _LATENCY_EDGES_NS,
    "ttft": _LATENCY_EDGES_NS,
    "prompt": _TOKEN_EDGES,
    "completion": _TOKEN_EDGES,
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

    def renumber(self, numbers: Ints, size: int) -> None:
        """Replace series n by numbers[n], and add up equal ones; *size* is the number of series then."""
        self.totals = add_by(numbers[: len(self.totals)], self.totals, size)

    def snapshot(self) -> dict[str, Any]:
        """Return the sums as plain data for ``restore``."""
        low, high = self.totals
        return {"low": low.tobytes(), "high": None if high is None else high.tobytes()}

    def restore(self, state: Mapping[str, Any], saved_width: int | None = None) -> None:
        """
        Take over the sums from ``snapshot``.

        Args:
            saved_width: Number of sums of a series in *state*, of which the further ones are 0; None = all.

        Raises:
            ValueError: The sums are missing or do not make whole rows.
        """
        width = self.totals.low.shape[1]
        low, high = (
            None if data is None else _widened(np.frombuffer(data, np.int64).reshape(-1, saved_width or width), width)
            for data in (state["low"], state["high"])
        )
        if low is None:
            raise ValueError("cumulative counters: the sums are missing")
        self.totals = IntSums(low, high)


def _widened(saved: Ints, width: int) -> Ints:
    sums = np.zeros((len(saved), width), np.int64)
    sums[:, : saved.shape[1]] = saved
    return sums


class CumulativeCounters(Counters):
    """
    Sums and histograms of spans since the stream began.

    Attributes:
        histograms: Number of spans in each bucket of HISTOGRAMS, shape (series, len(HISTOGRAMS), PLACES).
        walls: Number of spans by ended - started, one for each of WALL_EDGES_MS and one without upper edge.
        longest_ns: The largest ended - started, nanoseconds.
        unpriced_tokens: Tokens of the spans whose cost is unknown or lacks a part, by ``rows.REASONS``.
    """

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.histograms: Ints = np.zeros((0, len(HISTOGRAMS), PLACES), np.int64)
        self.walls: Ints = np.zeros(len(WALL_EDGES_MS) + 1, np.int64)
        self.longest_ns = 0
        self.unpriced_tokens = [0] * len(REASONS)

    def count(self, rows: Ints, size: int) -> None:
        """Count *rows* in the histograms; *size* is the number of series now."""
        known = len(self.histograms)
        if known < size:
            self.histograms = np.concatenate(
                [self.histograms, np.zeros((size - known, len(HISTOGRAMS), PLACES), np.int64)]
            )
        own = rows[:, SERIES] * PLACES
        for index, (name, edges) in enumerate(HISTOGRAMS.items()):
            field = FIELDS[name]
            at = own + np.searchsorted(edges, rows[:, field.column], side="left")
            at = at[field.counted(rows)]
            if len(at):
                self.histograms[:, index] += np.bincount(at, minlength=size * PLACES).reshape(size, PLACES)
        walls = rows[:, WALL]
        self.walls += np.bincount(np.searchsorted(_WALL_EDGES_NS, walls, side="left"), minlength=len(self.walls))
        self.longest_ns = max(self.longest_ns, int(walls.max(initial=0)))
        for reason, tokens in rows[rows[:, REASON] > 0][:, [REASON, TOTAL]].tolist():
            self.unpriced_tokens[reason - 1] += tokens

    def renumber(self, numbers: Ints, size: int) -> None:
        """As ``Counters.renumber``."""
        super().renumber(numbers, size)
        added = np.zeros((size, len(HISTOGRAMS), PLACES), np.int64)
        np.add.at(added, numbers[: len(self.histograms)], self.histograms)
        self.histograms = added

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as plain data for ``restore``."""
        return {
            **super().snapshot(),
            "histograms": self.histograms.tobytes(),
            "walls": self.walls.tolist(),
            "longest_ns": self.longest_ns,
            "unpriced_tokens": {
                reason: str(tokens) for reason, tokens in zip(REASONS, self.unpriced_tokens, strict=True)
            },
        }

    def restore(self, state: Mapping[str, Any], saved_width: int | None = None) -> None:
        """Take over the counters from ``snapshot``; arguments and errors are those of ``Counters.restore``."""
        super().restore(state, saved_width)
        shape = (-1, len(HISTOGRAMS), PLACES)
        self.histograms = np.frombuffer(state["histograms"], np.int64).reshape(shape).copy()
        self.walls = np.array(state["walls"], np.int64)
        self.longest_ns = state["longest_ns"]
        # Older snapshots do not have it; they did not count tokens by reason.
        saved = state.get("unpriced_tokens", {})
        self.unpriced_tokens = [int(saved.get(reason, 0)) for reason in REASONS]


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
