"""Summaries: their quantiles are compared with exact arithmetic and with numpy; merging, bins, removed values."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokentrace.rollup import (
    MAX_BIN,
    RAW_LIMIT,
    RELATIVE_ERROR,
    Histogram,
    Summary,
    bins_of,
    merge,
    percentile,
    values_of,
)

LOW, HIGH = -(2**63), 2**63 - 1
EXTREME = st.sampled_from([LOW, LOW + 1, HIGH, HIGH - 1, 0, 1, -1])
ANY = st.one_of(st.integers(-5, 5), st.integers(LOW, HIGH), st.integers(0, 10**6), EXTREME)
POSITIVE = st.one_of(st.integers(0, 5), st.integers(0, HIGH), st.integers(1, 30 * 86_400 * 10**9))
FRACTION = st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]), st.floats(0, 1))
Torn = tuple[list[int], list[list[int]]]
FEW = st.lists(ANY, min_size=1, max_size=RAW_LIMIT)
MANY = arrays(np.int64, st.integers(RAW_LIMIT + 1, 400), elements=ANY)


def neighbours(values: list[int], q: float) -> tuple[int, int, Fraction]:
    """Return (value at the rank below the *q* quantile, value at the rank above, its place between them, 0 to 1)."""
    ascending = sorted(values)
    rank = Fraction(q) * (len(ascending) - 1)
    low = math.floor(rank)
    return ascending[low], ascending[min(low + 1, len(ascending) - 1)], rank - low


def assert_close(got: float | None, values: list[int], q: float, error: float) -> None:
    """Check that *got* is the exact *q* quantile of *values*, where each value may be off by the fraction *error*."""
    assert got is not None
    below, above, weight = neighbours(values, q)
    want = below + (above - below) * weight
    # A rank in floating point is wrong by a few ulps, and so is the value interpolated at that rank.
    rounding = Fraction(1, 2**50) * len(values) * max(abs(below), abs(above))
    assert abs(Fraction(got) - want) <= Fraction(error) * (abs(below) * (1 - weight) + abs(above) * weight) + rounding


# ---- exact


@settings(deadline=None)
@given(FEW, FRACTION)
def test_up_to_a_hundred_values_are_exact(values: list[int], q: float) -> None:
    summary = Summary.of(values)
    assert summary.exact
    assert summary.count == len(values)
    assert_close(summary.quantile(q), values, q, 0)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=RAW_LIMIT), FRACTION)
def test_exact_quantiles_equal_numpy(values: list[int], q: float) -> None:
    want = float(np.quantile(np.array(values, np.float64), q, method="linear"))
    assert Summary.of(values).quantile(q) == pytest.approx(want, rel=1e-12, abs=1e-13 * max(map(abs, values)))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=400), FRACTION)
def test_percentile_equals_numpy_for_up_to_400_values(values: list[int], q: float) -> None:
    want = float(np.quantile(np.array(values, np.float64), q))
    assert percentile(sorted(values), q) == pytest.approx(want, rel=1e-12, abs=1e-12 * max(map(abs, values)))


def test_the_median_of_two_lies_halfway() -> None:
    assert Summary.of([10, 20]).quantile(0.5) == 15.0


def test_a_hundred_values_are_exact_and_a_hundred_and_one_are_not() -> None:
    values = list(range(1, 102))
    assert Summary.of(values[:100]).exact
    assert Summary.of(values[:100]).quantile(0.5) == 50.5
    assert not Summary.of(values).exact


def test_an_empty_summary_has_no_quantile() -> None:
    assert Summary.of([]).quantile(0.5) is None
    assert Summary.of([]).count == 0
    assert merge([]) == merge([Summary(), Summary()]) == Summary.of([]) == Summary()
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@settings(deadline=None)
@given(ANY, FRACTION, st.integers(1, 300))
def test_every_quantile_of_one_repeated_value_is_that_value_within_the_error(value: int, q: float, times: int) -> None:
    got = Summary.of([value] * times).quantile(q)
    if times <= RAW_LIMIT or abs(value) <= 1:
        assert got == float(value)
    else:
        assert got is not None
        assert abs(Fraction(got) - value) <= Fraction(RELATIVE_ERROR + 1e-9) * abs(value)


# ---- more than 100 values: within the stated error


@settings(deadline=None)
@given(MANY, FRACTION)
def test_beyond_a_hundred_values_the_error_is_within_the_stated_bound(values: np.ndarray, q: float) -> None:
    summary = Summary.of(values)
    assert not summary.exact
    assert summary.count == len(values)
    assert_close(summary.quantile(q), values.tolist(), q, RELATIVE_ERROR + 1e-9)


@settings(deadline=None)
@given(arrays(np.int64, st.integers(RAW_LIMIT + 1, 400), elements=POSITIVE), FRACTION, st.sampled_from([1, -1]))
def test_for_values_of_one_sign_the_error_is_relative_to_the_result_of_numpy(
    values: np.ndarray, q: float, sign: int
) -> None:
    want = float(np.quantile(values.astype(np.float64) * sign, q))
    got = Summary.of(values * sign).quantile(q)
    assert got == pytest.approx(want, rel=RELATIVE_ERROR + 1e-9, abs=1e-12 * float(values.max()))


@settings(deadline=None)
@given(MANY)
def test_quantiles_ascend(values: np.ndarray) -> None:
    summary = Summary.of(values)
    quantiles = [summary.quantile(q) for q in np.linspace(0, 1, 21).tolist()]
    assert quantiles == sorted(quantile for quantile in quantiles if quantile is not None)


@settings(deadline=None)
@given(MANY, FRACTION)
def test_negated_values_have_negated_quantiles(values: np.ndarray, q: float) -> None:
    values = np.maximum(values, -HIGH)
    got, mirrored = Summary.of(values).quantile(q), Summary.of(-values).quantile(1 - q)
    assert got is not None
    assert mirrored is not None
    # 1 - q is rounded, so skip ranks next to a whole number.
    below, above, weight = neighbours(values.tolist(), q)
    near_edge = min(weight, 1 - weight) < Fraction(1, 10**9)
    if not near_edge:
        assert got == pytest.approx(-mirrored, rel=1e-9, abs=1e-9 * max(abs(below), abs(above)))


def test_zeros_stay_zero_among_many() -> None:
    #   -3 x 60    0 x 81    7 x 60
    summary = Summary.of([-3] * 60 + [0] * 81 + [7] * 60)
    assert [summary.quantile(q) for q in (0.31, 0.5, 0.69)] == [0.0, 0.0, 0.0]
    assert summary.quantile(0.0) == pytest.approx(-3, rel=RELATIVE_ERROR)
    assert summary.quantile(1.0) == pytest.approx(7, rel=RELATIVE_ERROR)


def test_the_whole_range_of_int64_fits() -> None:
    summary = Summary.of([LOW] * 101 + [HIGH] * 101)
    assert summary.count == 202
    assert summary.quantile(0.0) == pytest.approx(LOW, rel=RELATIVE_ERROR + 1e-9)
    assert summary.quantile(1.0) == pytest.approx(HIGH, rel=RELATIVE_ERROR + 1e-9)
    assert bins_of(np.array([LOW, HIGH])).tolist() == [-MAX_BIN, MAX_BIN]


# ---- merging


@st.composite
def torn(draw: st.DrawFn) -> Torn:
    """Draw values, and the same values shuffled and cut into parts, of which some may be empty."""
    values = draw(arrays(np.int64, st.integers(0, 350), elements=ANY)).tolist()
    shuffled = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(np.array(values, np.int64)).tolist()
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=6)))
    return values, [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]


@settings(deadline=None)
@given(torn(), st.randoms(use_true_random=False))
@example(([0] * 101, [[0] * 100, [0]]), Random(0))
def test_merging_in_any_order_and_grouping_gives_the_same_bytes(case: Torn, random: Random) -> None:
    values, parts = case
    summaries = [Summary.of(part) for part in parts]
    while len(summaries) > 1:
        size = random.randint(2, len(summaries))
        random.shuffle(summaries)
        summaries = [merge(summaries[:size]), *summaries[size:]]
    assert msgspec.msgpack.encode(summaries[0]) == msgspec.msgpack.encode(Summary.of(values))


@settings(deadline=None)
@given(MANY)
def test_a_summary_is_equal_after_encoding_and_decoding(values: np.ndarray) -> None:
    for summary in (Summary.of(values), Summary.of(values[:50])):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(summary), type=Summary) == summary
        assert merge([summary]) == summary == merge([summary, Summary()])


# ---- bins


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=50))
def test_bins_have_the_order_of_their_values(values: list[int]) -> None:
    bins = bins_of(np.array(sorted(values), np.int64))
    assert (np.diff(bins) >= 0).all()
    assert (np.diff(values_of(bins)) >= 0).all()
    assert (np.abs(bins) <= MAX_BIN).all()


@settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=50))
def test_the_bin_of_a_value_does_not_depend_on_other_values(values: list[int]) -> None:
    together = bins_of(np.array(values, np.int64)).tolist()
    assert together == [int(bins_of(np.array([value], np.int64))[0]) for value in values]


def test_representative_values_of_bins_increase() -> None:
    assert (np.diff(values_of(np.arange(-MAX_BIN, MAX_BIN + 1))) > 0).all()


@settings(deadline=None)
@given(ANY)
def test_the_representative_value_is_within_the_error_of_every_value_in_the_bin(value: int) -> None:
    [representative] = values_of(bins_of(np.array([value], np.int64))).tolist()
    assert abs(Fraction(representative) - value) <= Fraction(RELATIVE_ERROR + 1e-9) * abs(value)


def test_a_bin_includes_its_upper_edge() -> None:
    # Bin i + 1 holds (2**((i-1)/64), 2**(i/64)]: exactly up to 2**32, and above that within the rounding of a float.
    edges = []
    for i in range(1, 32 * 64 + 1):
        edge = 1 << i
        for _ in range(6):
            edge = math.isqrt(edge)  # Six square roots of 2**i give floor(2**(i/64)).
        edges.append(edge)
    below, above = bins_of(np.array(edges)), bins_of(np.array(edges) + 1)
    expected = np.arange(1, 32 * 64 + 1) + 1
    assert (below <= expected).all()
    assert (above > expected).all()
    assert below[63::64].tolist() == expected[63::64].tolist()  # A power of two is itself an edge.
    assert bins_of(-np.array(edges)).tolist() == (-below).tolist()


# ---- removed values


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans(), st.integers(0, 3)), max_size=160),
    st.sampled_from([1, 10**7]),
)
def test_values_removed_in_other_summaries_are_absent_after_merging(
    drawn: list[tuple[int, int, bool, int]], scale: int
) -> None:
    # Each value is added to one of four summaries and may be removed from any of them, so a count may be negative.
    added: list[list[int]] = [[] for _ in range(4)]
    removed: list[list[int]] = [[] for _ in range(4)]
    for value, added_to, is_removed, removed_from in drawn:
        added[added_to].append(value * scale)
        if is_removed:
            removed[removed_from].append(value * scale)
    parts = [
        Summary.merged([np.array(values, np.int64)], [], [np.array(without, np.int64)])
        for values, without in zip(added, removed, strict=True)
    ]
    remaining = [value * scale for value, _, is_removed, _ in drawn if not is_removed]
    for summary in (merge(parts), merge([merge(parts[:2]), merge(parts[2:])])):
        assert summary.count == len(remaining)
        if not summary.bins:
            assert summary == Summary.of(remaining)
        for q in (0.0, 0.1, 0.5, 1.0):
            if remaining:
                assert_close(summary.quantile(q), remaining, q, 0 if summary.exact else RELATIVE_ERROR)
            else:
                assert summary.quantile(q) is None


def test_bins_whose_counts_cancel_make_a_summary_inexact() -> None:
    # In one bin 1,000,001 is added and 1,000,000 is removed: its count is 0 although the values changed.
    same = bins_of(np.array([1_000_000, 1_000_001]))
    assert same[0] == same[1]
    once = np.array([1], np.int64)
    changed = Summary.merged([], [Histogram(same[:1], -once), Histogram(same[1:], once)])
    assert (changed.count, changed.exact, changed.quantile(0.5)) == (0, False, None)
    whole = merge([Summary.of([1_000_000]), changed])
    assert not whole.exact
    assert_close(whole.quantile(0.5), [1_000_001], 0.5, RELATIVE_ERROR)


def test_quantiles_ignore_removed_values_that_were_never_added() -> None:
    summary = Summary.merged([np.array([5], np.int64)], [], [np.array([7, 7], np.int64)])
    assert (summary.count, summary.exact, summary.quantile(0.5)) == (-1, False, 5.0)
    assert Summary.merged([], [], [np.array([7], np.int64)]).quantile(0.5) is None
