"""Spans that come again in another batch: a fault of their sender, shown once and counted here."""

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
    The ids of the last million spans, in eight bytes each.

    Args:
        block, blocks: So many ids are held together, and so many times that.
    """

    def __init__(self, block: int = _BLOCK, blocks: int = _BLOCKS) -> None:
        self._block = block
        self._newest: set[int] = set()
        self._older: deque[NDArray[np.int64]] = deque(maxlen=blocks)
        self.repeated = 0

    def add(self, spans: Sequence[Span]) -> None:
        """Take note of *spans*; those whose trace and span id were there already are counted."""
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
        for held in self._older:
            at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
            known |= held[at] == keys
        self.repeated += int(known.sum())
        if len(self._newest) >= self._block:
            self._older.append(np.sort(np.fromiter(self._newest, np.int64, len(self._newest))))
            self._newest.clear()
