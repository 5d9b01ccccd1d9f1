"""Counts spans that arrive again, for example because a client sent them in two batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokentrace.records import Span

_BLOCK = 65_536
_BLOCKS = 16


class RecentSpans:
    """
    Hashes of the ids of about the last million spans.

    Args:
        block: Number of hashes that are collected in a set and then kept as one sorted array, which takes less memory.
        blocks: Maximum number of such arrays; the oldest is dropped for a new one.

    Attributes:
        repeated: Number of spans whose hash was known when they arrived.
    """

    def __init__(self, block: int = _BLOCK, blocks: int = _BLOCKS) -> None:
        self._block = block
        self._newest: set[int] = set()
        self._older: deque[NDArray[np.int64]] = deque(maxlen=blocks)
        self.repeated = 0

    def add(self, spans: Sequence[Span]) -> None:
        """Remember the hashes of *spans*, and count the spans whose hash was known."""
        new = []
        for span in spans:
            key = hash((span.trace_id, span.span_id))
            if key in self._newest:
                self.repeated += 1
            else:
                self._newest.add(key)
                new.append(key)
        keys = np.array(new, np.int64)
        known = np.zeros(len(keys), bool)
        for block in self._older:
            places = np.minimum(np.searchsorted(block, keys), len(block) - 1)
            known |= block[places] == keys
        self.repeated += int(known.sum())
        if len(self._newest) >= self._block:
            self._older.append(np.sort(np.fromiter(self._newest, np.int64, len(self._newest))))
            self._newest.clear()
