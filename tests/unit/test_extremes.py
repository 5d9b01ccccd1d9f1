"""Quantiles stay within the range of the values, through buckets, merges, snapshots and late scores."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.rollup_streams import NOON_S, FoldedRollup, asked, at, whole
from tokentrace.rollup import Rollup, SeriesTable, Summary, merge
from tokentrace.rollup.extremes import pack_extremes, saved_extremes, unpack_extremes
from tokentrace.units import SECOND

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
ANY = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))


def assert_within(summary: Summary, values: list[int]) -> None:
    for q in QUANTILES:
        quantile = summary.quantile(q)
        assert quantile is not None
        assert float(min(values)) <= quantile <= float(max(values))


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(ANY, min_size=1, max_size=8), st.integers(101, 300), st.integers(1, 5), st.integers(0, 2**32))
def test_quantiles_of_merged_summaries_stay_within_the_values(
    some: list[int], count: int, parts: int, seed: int
) -> None:
    dice = Random(seed)
    values = [dice.choice(some) for _ in range(count)]
    summaries = [Summary.of(np.array(values[part::parts], np.int64)) for part in range(parts)]
    dice.shuffle(summaries)
    assert_within(merge(summaries), values)
    assert_within(merge([merge(summaries[:2]), *summaries[2:]]), values)
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(merge(summaries)), type=Summary)
    assert_within(received, values)


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 30 * 86400 * SECOND)), min_size=1, max_size=5),
    st.integers(101, 200),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_quantiles_of_a_rollup_stay_within_the_values(
    some: list[tuple[int, int]], count: int, restart: bool, seed: int
) -> None:
    dice = Random(seed)
    folded, values = FoldedRollup(), []
    for _ in range(count):
        age, latency = dice.choice(some)
        span = msgspec.structs.replace(at(NOON_S - age, NOON_S), latency_ns=latency)
        folded.fold([span], NOON_S * SECOND)
        values.append(latency)
        if dice.random() < 0.02:
            folded.rollup.settle()
            folded.rollup.evict((NOON_S + 60) * SECOND)
    folded = folded.restarted() if restart else folded
    summary = folded.read(asked(NOON_S * SECOND, 2 * 3600 * SECOND)).summaries["latency"]
    assert summary.count == count
    assert_within(summary, values)


def without_extremes(parts: dict[str, bytes]) -> dict[str, bytes]:
    """Return the parts of a snapshot as versions without extremes wrote them."""
    old: dict[str, bytes] = {}
    for name, data in parts.items():
        buckets: list[Any] = msgspec.msgpack.decode(data)
        old[name] = msgspec.msgpack.encode([(start, bucket[:7]) for start, bucket in buckets])
    return old


def test_a_snapshot_without_extremes_keeps_its_sums_and_gets_bounds_from_its_bins() -> None:
    folded = FoldedRollup()
    spans = [msgspec.structs.replace(at(NOON_S - 5, NOON_S), latency_ns=10**9) for _ in range(150)]
    folded.fold(spans, NOON_S * SECOND)
    before = folded.read(asked(NOON_S * SECOND, 60 * SECOND))
    state, parts = whole(folded.rollup)
    table = SeriesTable(folded.table.series)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(state))
    restored = FoldedRollup()
    restored.table = table
    restored.rollup = Rollup.restore(table, state, without_extremes(parts))
    after = restored.read(asked(NOON_S * SECOND, 60 * SECOND))
    assert after.sums == before.sums
    assert before.summaries["latency"].quantile(0.5) == 10**9
    assert after.summaries["latency"].quantile(0.5) == pytest.approx(10**9, rel=0.0055)
    # Buckets with and without extremes merge.
    restored.fold(spans, NOON_S * SECOND)
    assert restored.read(asked(NOON_S * SECOND, 60 * SECOND)).summaries["latency"].count == 300


@settings(deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.none(), ANY), min_size=2, max_size=2), min_size=1, max_size=6),
)
def test_packed_extremes_are_the_same_after_unpacking(rows: list[list[int | None]]) -> None:
    nothing = 2**63 - 1
    lows = np.array(
        [[nothing if value is None else min(value, nothing - 1) for value in row] for row in rows], np.int64
    )
    highs = np.where(lows == nothing, nothing, ~lows)
    extremes = np.concatenate([lows, highs], axis=1)
    assert unpack_extremes(pack_extremes(extremes)).tolist() == extremes.tolist()


def test_extremes_from_a_snapshot_are_those_that_were_packed() -> None:
    packed = pack_extremes(np.array([[5, 2**40, ~9, ~(2**41)], [6, 2**40, ~9, ~(2**41)]], np.int64))
    assert saved_extremes(2, 4, list(packed.saved)) == packed
    for number, array in enumerate(packed.saved):
        damaged = [*packed.saved[:number], array[:-4], *packed.saved[number + 1 :]]
        with pytest.raises(ValueError, match="not those of 2 series"):
            saved_extremes(2, 4, damaged)
    with pytest.raises(ValueError, match="not those of 3 series"):
        saved_extremes(3, 4, packed.saved)


def test_a_removed_value_leaves_the_range_at_the_bins_of_what_remains() -> None:
    added = Summary.of(np.array([10**9] * 150 + [1], np.int64))
    changed = merge([added, Summary.merged([], [], [np.array([1], np.int64)])])
    assert changed.count == 150
    assert changed.quantile(0.0) == changed.quantile(1.0) == 10**9
