"""Counters over everything a shard has ever folded: what ``/stats`` and Prometheus show, never falling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokentrace.cell import CELL, WALL, WIDTH, add_by
from tokentrace.quantile import Ints
from tokentrace.units import MS

#: Upper edges of the histogram that ``/stats`` interpolates in, milliseconds (SPEC C.4); the last bucket is open.
WALL_EDGES_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
_WALL_EDGES_NS = np.array(WALL_EDGES_MS, np.int64) * MS


class Lifetime:
    """Sums and fixed histograms, one row per cell."""

    def __init__(self) -> None:
        self.sums: Ints = np.zeros((0, WIDTH), np.int64)
        self.walls: Ints = np.zeros(len(WALL_EDGES_MS) + 1, np.int64)
        self.longest_ns = 0

    def add(self, rows: Ints, sums: Ints, cells: int) -> None:
        """Take in *rows* and what each adds; *cells* is how many cells there are."""
        if len(self.sums) < cells:
            self.sums = np.concatenate([self.sums, np.zeros((cells - len(self.sums), WIDTH), np.int64)])
        self.sums += add_by(rows[:, CELL], sums, len(self.sums))
        at = np.searchsorted(_WALL_EDGES_NS, rows[:, WALL], side="left")
        self.walls += np.bincount(at, minlength=len(self.walls))
        self.longest_ns = max(self.longest_ns, int(rows[:, WALL].max(initial=0)))

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data for ``restore``."""
        return {"sums": self.sums.tobytes(), "walls": self.walls.tolist(), "longest_ns": self.longest_ns}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Lifetime:
        """Counters from ``snapshot``."""
        lifetime = cls()
        lifetime.sums = np.frombuffer(state["sums"], np.int64).reshape(-1, WIDTH).copy()
        lifetime.walls = np.array(state["walls"], np.int64)
        lifetime.longest_ns = state["longest_ns"]
        return lifetime


def histogram_quantile_ms(counts: Sequence[int], longest_ns: int, q: float) -> float:
    """
    A quantile of a fixed histogram, as the Go server estimates it.

    Args:
        counts: Values per bucket of WALL_EDGES_MS, the open one last.
        longest_ns: Largest value seen, which stands for the open bucket.
        q: 0 < q < 1.

    Returns:
        Milliseconds, linear inside the bucket that holds the rank; 0 without values.

    Source:
        SPEC C.4.
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
