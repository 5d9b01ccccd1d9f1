"""Histograms of distributions equal a count of the values one by one."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.metrics import layout_of
from tokentrace.rollup import Summary, merge

VALUES = st.lists(st.integers(0, 10**13) | st.integers(0, 300), max_size=160)


@given(st.lists(VALUES, min_size=1, max_size=3), st.integers(2, 60))
def test_every_value_is_in_the_interval_of_its_edges(sides: list[list[int]], most: int) -> None:
    summaries = [Summary.of(values) for values in sides]
    layout = layout_of(summaries, most)
    edges = layout.edges(1)
    positive = [value for values in sides for value in values if value]
    assert layout.size <= most
    assert len(edges) == (layout.size + 1 if positive else 0)
    assert edges == sorted(edges)
    for values, summary in zip(sides, summaries, strict=True):
        counts, zero = layout.counts(summary)
        assert zero == values.count(0)
        assert sum(counts) + zero == len(values)
        # A value that is next to an edge may be on either side of it.
        above = [bisect_left(edges, value * (1 + 1e-9)) for value in values if value]
        below = [bisect_left(edges, value * (1 - 1e-9)) for value in values if value]
        for place in range(layout.size + 1):
            fewest = sum(at <= place for at in above)
            largest = sum(at <= place for at in below)
            assert fewest <= sum(counts[:place]) <= largest


@given(VALUES, VALUES, st.integers(2, 60))
def test_intervals_are_the_narrowest_and_all_parts_have_the_same(a: list[int], b: list[int], most: int) -> None:
    together = merge([Summary.of(a), Summary.of(b)])
    layout = layout_of([Summary.of(a), Summary.of(b)], most)
    assert layout == layout_of([together], most)
    counts, zero = layout.counts(together)
    parts = [layout.counts(Summary.of(values)) for values in (a, b)]
    assert counts == [sum(pair) for pair in zip(*(part for part, _ in parts), strict=True)]
    assert zero == sum(part for _, part in parts)
    if layout.width > 1:
        assert counts[0]
        assert counts[-1]
        edges = layout.edges(1)
        ratios = {round(float(np.log2(high / low) * 64), 6) for low, high in pairwise(edges)}
        assert ratios == {float(layout.width)}
