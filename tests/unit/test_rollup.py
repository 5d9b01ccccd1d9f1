"""
Windows read from a rollup equal a recount of the spans.

A window of W ns that ends at ``now`` is answered for [from', to'): ``to'`` is the end of the second of ``now``, and
``from'`` lies before now - W by less than a second if W is at most 20 minutes, otherwise by less than 1 % of W. All
spans whose event second lies in [from', to') are counted, however late they arrived: a bucket refuses late spans only
when no window reads it any more.
"""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.rollup_streams import (
    NOON_S,
    WINDOW_NS,
    FoldedRollup,
    Reading,
    Stream,
    asked,
    assert_reads,
    at,
    event_second,
    fold_all,
    make_span,
    readings_of,
    streams,
    whole,
    within,
)
from tokentrace.records import MAX_TOKENS
from tokentrace.rollup import (
    DIMENSIONS,
    FIELDS,
    HORIZON_NS,
    RESOLUTIONS,
    Stretch,
    Summary,
    Sums,
    merge,
)
from tokentrace.units import DAY, HOUR, MINUTE, SECOND

# ---- any window of any stream


@settings(max_examples=examples(100), deadline=None)
@given(streams(), WINDOW_NS, st.sampled_from(DIMENSIONS))
def test_any_window_equals_a_recount_of_its_spans(stream: Stream, window_ns: int, dimension: str) -> None:
    folded, stretches = fold_all(stream), asked(stream.now_ns, window_ns)
    counted = within(stream.spans, stretches)
    assert_reads(folded.read(stretches), counted)
    for value, reading in folded.read_by(stretches, dimension).items():
        assert_reads(reading, [span for span in counted if (getattr(span, dimension) or "unknown") == value])


@settings(max_examples=examples(60), deadline=None)
@given(streams(), WINDOW_NS, st.sampled_from(DIMENSIONS), st.randoms(use_true_random=False))
def test_groups_add_up_to_the_total(stream: Stream, window_ns: int, dimension: str, random: Random) -> None:
    folded, stretches = fold_all(stream, random), asked(stream.now_ns, window_ns)
    total, parts = folded.read(stretches), folded.read_by(stretches, dimension).values()
    added = Sums()
    for part in parts:
        added.add(part.sums)
    assert added == total.sums
    for name in FIELDS:
        assert merge(part.summaries[name] for part in parts) == total.summaries[name]


@settings(max_examples=examples(60), deadline=None)
@given(streams(), st.lists(WINDOW_NS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_batching_and_settling_do_not_change_a_result(stream: Stream, windows: list[int], random: Random) -> None:
    together, torn = fold_all(stream), fold_all(stream, random)
    for window_ns in windows:
        stretches = asked(stream.now_ns, window_ns)
        assert torn.read(stretches) == together.read(stretches)
        assert_reads(torn.read(stretches), within(stream.spans, stretches))


@settings(max_examples=examples(60), deadline=None)
@given(streams(), WINDOW_NS, st.randoms(use_true_random=False))
def test_three_shards_merged_equal_one_shard(stream: Stream, window_ns: int, random: Random) -> None:
    owners = [random.randrange(3) for _ in stream.spans]
    total, summaries, stretches = Sums(), [], asked(stream.now_ns, window_ns)
    for number in range(3):
        indices = [n for n, owner in enumerate(owners) if owner == number]
        part = Stream([stream.spans[n] for n in indices], [stream.arrived_ns[n] for n in indices], stream.now_ns)
        reading = fold_all(part, random).read(stretches)
        total.add(reading.sums)
        summaries.append(reading.summaries)
    merged = {name: merge(each[name] for each in summaries) for name in FIELDS}
    assert Reading(total, merged) == fold_all(stream).read(stretches)
    assert_reads(Reading(total, merged), within(stream.spans, stretches))


@settings(max_examples=examples(60), deadline=None)
@given(streams(), WINDOW_NS, st.randoms(use_true_random=False))
def test_a_restart_at_any_time_changes_no_result(stream: Stream, window_ns: int, random: Random) -> None:
    folded = fold_all(stream, random, lambda folded: folded.restarted() if random.random() < 0.3 else None)
    stretches = asked(stream.now_ns, window_ns)
    assert_reads(folded.read(stretches), within(stream.spans, stretches))
    assert folded.read(stretches) == fold_all(stream).read(stretches)
    assert whole(folded.restarted().rollup) == whole(folded.rollup)


@settings(max_examples=examples(60), deadline=None)
@given(streams(), WINDOW_NS)
def test_eviction_never_changes_a_result(stream: Stream, window_ns: int) -> None:
    folded, stretches = fold_all(stream), asked(stream.now_ns, window_ns)
    before = folded.read(stretches)
    folded.rollup.evict(stream.now_ns)
    assert folded.read(stretches) == before
    assert_reads(before, within(stream.spans, stretches))


@settings(max_examples=examples(60), deadline=None)
@given(streams(), st.integers(0, 32 * 86400), WINDOW_NS)
def test_a_window_read_long_after_the_last_span_equals_a_recount(stream: Stream, idle_s: int, window_ns: int) -> None:
    #   spans ... last          (nothing)          now
    folded, now_ns = fold_all(stream), stream.now_ns + idle_s * SECOND
    folded.rollup.evict(now_ns)
    stretches = asked(now_ns, window_ns)
    assert_reads(folded.read(stretches), within(stream.spans, stretches))


@settings(max_examples=examples(40), deadline=None)
@given(streams(most=25), WINDOW_NS, st.randoms(use_true_random=False))
def test_a_result_between_two_arrivals_equals_a_recount_of_the_spans_that_have_arrived(
    stream: Stream, window_ns: int, random: Random
) -> None:
    folded = FoldedRollup()
    for number, (span, arrived_ns) in enumerate(zip(stream.spans, stream.arrived_ns, strict=True), 1):
        folded.fold([span], arrived_ns)
        if random.random() < 0.2:
            stretches = asked(arrived_ns, window_ns)
            assert_reads(folded.read(stretches), within(stream.spans[:number], stretches))


def test_thousands_of_spans_in_one_bucket_keep_exact_sums_and_the_stated_error() -> None:
    # 9,000 spans of four series within a minute: more than wait before they are added, and more than stay unrounded.
    now_ns = NOON_S * SECOND + 59 * SECOND
    spans = [
        make_span(n % 4, n * n + 1, started_ns=0, ended_ns=now_ns - n % 50 * SECOND, arrived_ns=now_ns)
        for n in range(9_000)
    ]
    folded = FoldedRollup()
    for first in range(0, len(spans), 700):
        folded.fold(spans[first : first + 700], now_ns)
    for window_ns in (10 * SECOND, MINUTE, HOUR, 31 * DAY):
        stretches = asked(now_ns, window_ns)
        assert_reads(folded.read(stretches), within(spans, stretches))
        for model, reading in folded.read_by(stretches, "model").items():
            assert_reads(reading, [s for s in within(spans, stretches) if (s.model or "unknown") == model])


def test_a_series_with_few_values_is_exact_beside_one_with_many() -> None:
    # One bucket holds 4,900 spans of one series and 100 of another.
    spans = [at(NOON_S, NOON_S, shape=n % 50 == 0, size=6 * n + 1) for n in range(5_000)]
    folded = FoldedRollup()
    for first in range(0, len(spans), 500):
        folded.fold(spans[first : first + 500], NOON_S * SECOND)
        folded.rollup.settle()
    quiet = folded.read_by(asked(NOON_S * SECOND, HOUR), "model")["m2"]
    assert quiet.summaries["prompt"].exact
    assert_reads(quiet, spans[::50])


# ---- edges, one at a time


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_bucket_contains_its_first_second_and_not_that_of_the_next(resolution: Any) -> None:
    #   [ width )[ width )[ width )
    #   a       bc      d e
    width = resolution.width_s
    seconds = [NOON_S, NOON_S + width - 1, NOON_S + width, NOON_S + 2 * width - 1, NOON_S + 2 * width]
    folded, last = FoldedRollup(), NOON_S + 2 * width
    for second in seconds:
        folded.fold([at(second, last)], last * SECOND)
    index = RESOLUTIONS.index(resolution)
    for number in range(3):
        start = NOON_S + number * width
        counted = sum(start <= second < start + width for second in seconds)
        assert folded.read([Stretch(index, start, start + width)]).sums.spans == counted


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("late_by", [-1, 599, 600])
def test_a_late_span_is_added_to_every_resolution_that_still_keeps_its_bucket(resolution: Any, late_by: int) -> None:
    # A bucket is gone once keep_s and ten more minutes have passed since its end.
    start, end = NOON_S, NOON_S + resolution.width_s
    arrived_s = end + resolution.keep_s + late_by
    folded = FoldedRollup()
    folded.fold([at(start, arrived_s)], arrived_s * SECOND)
    for index, (width_s, keep_s) in enumerate(RESOLUTIONS):
        bucket = start // width_s * width_s
        kept = bucket + width_s > arrived_s - keep_s - 600
        assert folded.read([Stretch(index, bucket, bucket + width_s)]).sums.spans == kept
    index = RESOLUTIONS.index(resolution)
    assert folded.read([Stretch(index, start, end)]).sums.spans == (late_by < 600)


@pytest.mark.parametrize(("behind_s", "late"), [(-1, 0), (0, 0), (1, 1)])
def test_a_span_is_late_if_it_is_older_than_31_days_at_its_arrival(behind_s: int, late: int) -> None:
    #   event     arrival - 31 d                    arrival
    folded, horizon_s = FoldedRollup(), HORIZON_NS // SECOND
    folded.fold([at(NOON_S - horizon_s - behind_s, NOON_S)], NOON_S * SECOND)
    folded.rollup.settle()
    assert folded.rollup.late == late


@settings(max_examples=examples(60), deadline=None)
@given(streams(), st.randoms(use_true_random=False))
def test_every_late_span_is_counted_once(stream: Stream, random: Random) -> None:
    folded = fold_all(stream, meanwhile=lambda folded: folded.restarted() if random.random() < 0.2 else None)
    folded.rollup.settle()
    horizons = [arrived_ns // SECOND - 31 * 86400 for arrived_ns in stream.arrived_ns]
    late = [event_second(span) < horizon for span, horizon in zip(stream.spans, horizons, strict=True)]
    assert folded.rollup.late == sum(late)


def test_a_window_includes_the_current_second_and_not_the_next() -> None:
    #   now - 10      now  now + 1 s
    #   (--------------]
    #                  a   b                 b is dated into the future, within the accepted five minutes
    folded = FoldedRollup()
    folded.fold([at(NOON_S, NOON_S), at(NOON_S + 1, NOON_S)], NOON_S * SECOND)
    assert folded.read(asked(NOON_S * SECOND, 10 * SECOND)).sums.spans == 1
    assert folded.read(asked((NOON_S + 1) * SECOND, 10 * SECOND)).sums.spans == 2


def test_a_span_dated_five_minutes_ahead_counts_at_its_end_and_one_dated_later_at_its_arrival() -> None:
    #   arrival        + 300 s   + 301 s
    #   now            a         b
    folded = FoldedRollup()
    folded.fold([at(NOON_S + 300, NOON_S), at(NOON_S + 301, NOON_S)], NOON_S * SECOND)
    assert folded.read(asked(NOON_S * SECOND, MINUTE)).sums.spans == 1
    assert folded.read(asked((NOON_S + 300) * SECOND, HOUR)).sums.spans == 2


def test_a_span_that_ended_before_it_started_adds_no_duration() -> None:
    folded = FoldedRollup()
    now_ns = NOON_S * SECOND
    backwards = make_span(started_ns=now_ns + DAY, ended_ns=now_ns, arrived_ns=now_ns)
    forwards = make_span(started_ns=now_ns - 3 * SECOND, ended_ns=now_ns, arrived_ns=now_ns)
    folded.fold([backwards, forwards], now_ns)
    reading = folded.read(asked(now_ns, MINUTE))
    assert_reads(reading, [backwards, forwards])
    assert reading.sums.wall == 3 * SECOND


def test_an_empty_rollup_reads_as_zeros() -> None:
    reading = FoldedRollup().read(asked(NOON_S * SECOND, 31 * DAY))
    assert_reads(reading, [])
    assert FoldedRollup().restarted().read(asked(NOON_S * SECOND, HOUR)) == reading


def test_a_batch_without_spans_changes_nothing() -> None:
    folded = FoldedRollup()
    folded.fold([], NOON_S * SECOND)
    assert folded.read(asked(NOON_S * SECOND, HOUR)).sums == Sums()
    folded.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    folded.fold([], NOON_S * SECOND)
    assert folded.read(asked(NOON_S * SECOND, HOUR)).sums.spans == 1


def test_a_series_in_no_group_is_left_out() -> None:
    folded = FoldedRollup()
    spans = [at(NOON_S, NOON_S, shape=n % 4, size=n) for n in range(600)]
    folded.fold(spans, NOON_S * SECOND)
    stretches = asked(NOON_S * SECOND, MINUTE)
    groups = [-1, 0, -1, 1]  # The group of each series; series are numbered in order of appearance.
    readings = readings_of(folded.rollup, stretches, np.array(groups, np.int64), 3, list(FIELDS))
    assert_reads(readings[0], spans[1::4])
    assert_reads(readings[1], spans[3::4])
    assert_reads(readings[2], [])
    [reading] = readings_of(folded.rollup, stretches, np.array([-1, -1, 0, -1], np.int64), 1, list(FIELDS))
    assert_reads(reading, spans[2::4])


def test_only_the_requested_distributions_are_returned() -> None:
    folded = FoldedRollup()
    folded.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    [reading] = readings_of(folded.rollup, asked(NOON_S * SECOND, MINUTE), np.zeros(1, np.int64), 1, ["ttft"])
    assert set(reading.summaries) == {"ttft"}


def test_reading_changes_nothing() -> None:
    folded = FoldedRollup()
    folded.fold([at(NOON_S, NOON_S, size=n) for n in range(500)], NOON_S * SECOND)
    stretches = asked(NOON_S * SECOND, MINUTE)
    assert folded.read(stretches) == folded.read(stretches)
    saved = folded.restarted()
    folded.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    assert (saved.read(stretches).sums.spans, folded.read(stretches).sums.spans) == (500, 501)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_query_misses_no_span_although_a_newer_one_was_folded_before(resolution: Any) -> None:
    #   now - W                               now   now + 2 s
    #   a                                      |    b          b was folded before the query was answered
    now_s = NOON_S + 2 * resolution.width_s - 1
    first = now_s - resolution.keep_s
    folded = FoldedRollup()
    folded.fold([at(first, first)], first * SECOND)
    folded.fold([at(now_s + 2, now_s + 2)], (now_s + 2) * SECOND)
    stretches = asked(now_s * SECOND, resolution.keep_s * SECOND)
    assert stretches[0].start_s <= first
    assert folded.read(stretches).sums.spans == 1


@settings(deadline=None)
@given(st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=100))
def test_quantiles_of_up_to_a_hundred_values_in_a_window_are_exact(sizes: list[int]) -> None:
    # There is one value each second: the window joins up to a hundred buckets of several resolutions.
    now_s = NOON_S + 100
    folded = FoldedRollup()
    for n, size in enumerate(sizes):
        folded.fold([at(now_s - n, now_s, size=size)], now_s * SECOND)
    summary = folded.read(asked(now_s * SECOND, HOUR)).summaries["prompt"]
    assert summary == Summary.of(sizes)
    [least, most] = [summary.quantile(q) for q in (0.0, 1.0)]
    assert (Fraction(least or 0), Fraction(most or 0)) == (Fraction(min(sizes)), Fraction(max(sizes)))
