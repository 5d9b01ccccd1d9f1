"""One stretch of time of one tier: sums and distributions of the cells that occurred in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokentrace.rollup.histograms import Histograms, count_up, decode_block, encode_block, merged, renumbered
from tokentrace.rollup.int_sums import IntSums, Packed, add_by, pack
from tokentrace.rollup.quantile import Ints

#: So many groupings a bucket remembers what it came to for, when that is no more than so many entries.
_MAX_REMEMBERED, _MAX_ENTRIES = 32, 4096


class Bucket:
    """One stretch of time of one tier: sums and distributions of the cells that occurred in it."""

    __slots__ = ("cells", "remembered", "sketch", "totals")

    def __init__(self) -> None:
        self.cells: Ints = np.empty(0, np.int64)
        self.totals: IntSums | Packed | None = None
        self.sketch = Histograms()
        self.remembered: dict[bytes, tuple[Ints, Ints]] = {}

    def add(self, cells: Ints, totals: IntSums) -> None:
        """Take in what ascending distinct *cells* add."""
        self.remembered.clear()
        if self.totals is None:
            self.cells, self.totals = cells, totals
            return
        held = self.totals.unpack() if isinstance(self.totals, Packed) else self.totals
        at = np.searchsorted(self.cells, cells)
        known = self.cells[np.minimum(at, len(self.cells) - 1)] == cells
        if not known.all():
            everything = np.union1d(self.cells, cells)
            held = held.spread(np.searchsorted(everything, self.cells), len(everything))
            self.cells = everything
            at = np.searchsorted(everything, cells)
        self.totals = held.add_at(at, totals)

    def add_keys(self, keys: Ints) -> None:
        """Take in values of distributions."""
        self.sketch.add(keys)

    def renumber(self, numbers: Ints, places: Ints) -> None:
        """Cell n is called numbers[n] from now on, distribution n places[n]."""
        self.remembered.clear()
        if self.totals is not None:
            held = self.totals.unpack() if isinstance(self.totals, Packed) else self.totals
            distinct, own = np.unique(numbers[self.cells], return_inverse=True)
            self.cells, self.totals = distinct, add_by(own, held, len(distinct))
        self.sketch = Histograms(renumbered(self.sketch.settle(), places))

    def put_away(self) -> None:
        """Take as little room as possible."""
        if isinstance(self.totals, IntSums):
            self.totals = pack(self.totals)
        self.sketch.settle()

    def reduced(self, groups: Ints, size: int, *, remember: bool) -> tuple[Ints, NDArray[Any]]:
        """(Keys, counts) of the distributions by group, not necessarily added up."""
        put = self.sketch.settle()
        if not remember:
            return put.by_group(groups)
        name = groups[put.cells].tobytes()
        found = self.remembered.get(name)
        if found is None:
            found = count_up(*put.by_group(groups), size)
            if len(found[0]) <= _MAX_ENTRIES:
                while len(self.remembered) >= _MAX_REMEMBERED:
                    del self.remembered[next(iter(self.remembered))]
                self.remembered[name] = found
        return found

    def capture(self) -> Any:
        """What it is now, in parts that nothing changes later."""
        totals = self.totals
        if isinstance(totals, IntSums):
            totals = IntSums(totals.low.copy(), None if totals.high is None else totals.high.copy())
        return self.cells, totals, self.sketch.put, tuple(self.sketch.waiting)


def encode_bucket(captured: Any) -> list[Any]:
    cells, totals, put, waiting = captured
    packed = pack(totals) if isinstance(totals, IntSums) else totals
    return [
        cells.astype(np.int32).tobytes(),
        packed.small_columns.tobytes(),
        packed.small.tobytes(),
        packed.large_columns.tobytes(),
        packed.large.tobytes(),
        None if packed.high is None else packed.high.tobytes(),
        encode_block(merged(put, waiting)),
    ]


def decode_bucket(data: Sequence[Any], width: int) -> Bucket:
    cells, small_columns, small, large_columns, large, high, put = data
    bucket = Bucket()
    bucket.cells = np.frombuffer(cells, np.int32).astype(np.int64)
    narrow, wide = np.frombuffer(small_columns, np.int64), np.frombuffer(large_columns, np.int64)
    rows = len(bucket.cells)
    bucket.totals = Packed(
        narrow,
        np.frombuffer(small, np.uint32).reshape(rows, len(narrow)),
        wide,
        np.frombuffer(large, np.int64).reshape(rows, len(wide)),
        None if high is None else np.frombuffer(high, np.int64).reshape(rows, width),
        width,
    )
    bucket.sketch = Histograms(decode_block(put))
    return bucket
