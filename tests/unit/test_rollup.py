"""
Windows against a recount of the spans themselves.

What holds, and is proved here: a window of W ns that ends at ``now`` is answered for [from', to'), where ``to'`` is the
end of now's second and ``from'`` lies before now - W by less than a second when W is at most 20 minutes, and by less
than 1 % of W otherwise. The answer is that of every span whose event second lies in [from', to'): a span can be too
late for a tier only when no window reads that tier at that place any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrace.records import MAX_COST_NUSD, MAX_INSTANT_NS, MAX_LATENCY_NS, MAX_TOKENS, Span
from tokentrace.rollup import (
    DIMENSIONS,
    FIELDS,
    HORIZON_NS,
    RELATIVE_ERROR,
    RESOLUTIONS,
    Rollup,
    SeriesTable,
    Stretch,
    Summary,
    Sums,
    add_by,
    cover,
    merge,
    rows_of,
)
from tokentrace.units import DAY, HOUR, MINUTE, SCORE_ONE, SECOND

NOON_S = 1_800_057_600  # a whole number of days
QUANTILES = (0.0, 0.1, 0.5, 0.95, 0.99, 1.0)
#: Where a tier ends or a bucket does, in seconds.
EDGES_S = sorted(
    {
        max(0, base + off)
        for t in RESOLUTIONS
        for base in (t.width_s, t.keep_s)
        for off in (-t.width_s, -1, 0, 1, t.width_s)
    }
)
SHAPES = (
    ("llm", "m1", "p1", "a", "x", "ok"),
    ("llm", "m2", "p1", "a", "y", "error"),
    ("tool", "", "", "b", "x", "timeout"),
    ("llm", "m1", "p1", "b", "", "ok"),
)

SPREAD_S = st.one_of(
    st.integers(0, 90),
    st.sampled_from(EDGES_S),
    st.integers(0, 2 * 3600),
    st.integers(0, 3 * 86400),
    st.integers(0, 40 * 86400),
)
NOW_NS = st.builds(
    lambda second, ns: (NOON_S + second) * SECOND + ns,
    st.one_of(st.just(0), st.sampled_from(EDGES_S), st.integers(0, 7200)),
    st.sampled_from([0, 1, SECOND // 3, SECOND - 1]),
)
WINDOW_NS = st.one_of(
    st.sampled_from([seconds * SECOND for seconds in EDGES_S if 0 < seconds <= 31 * 86400]),
    st.sampled_from([HOUR, 6 * HOUR, DAY, 7 * DAY, 30 * DAY, 31 * DAY]),
    st.integers(SECOND, MINUTE),
    st.integers(SECOND, 4 * HOUR),
    st.integers(SECOND, 31 * DAY),
)


class Stream(NamedTuple):
    """Spans in order of arrival, each with the stream time of the message that brought it; *now* is after them all."""

    spans: list[Span]
    arrived_ns: list[int]
    now_ns: int


def make_span(shape: int = 0, size: int = 1, **fields: Any) -> Span:
    """A span whose every number follows from *size*."""
    return Span(
        **dict(zip(DIMENSIONS, SHAPES[shape], strict=True)),
        latency_ns=size * 7919 % MAX_LATENCY_NS if size % 4 else 0,
        ttft_ns=size % MAX_LATENCY_NS if size % 3 == 0 else 0,
        prompt_tokens=size % (MAX_TOKENS + 1),
        completion_tokens=size // 3 % 5000,
        total_tokens=size % (MAX_TOKENS + 1) + size // 3 % 5000,
        cost_nusd=None if size % 5 == 0 else size * 104_729 % MAX_COST_NUSD,
        cost_source="partly_priced" if size % 7 == 0 else "priced",
        score=None if size % 2 else size * 31 % SCORE_ONE,
        **fields,
    )


@st.composite
def streams(draw: st.DrawFn, most: int = 40) -> Stream:
    now_ns = draw(NOW_NS)
    one = st.tuples(
        SPREAD_S,  # how long ago it arrived
        # How late it was: below 0 it lies in the future.
        st.one_of(st.just(0), st.integers(0, 5), st.integers(-900, 0), SPREAD_S),
        st.sampled_from([0, 1, SECOND // 2, SECOND - 1]),
        st.integers(0, len(SHAPES) - 1),
        st.one_of(st.integers(0, 40), st.integers(0, MAX_TOKENS)),
        st.sampled_from([1, 1, 1, 1, 30]),  # a crowd of the same instant
        st.sampled_from([-5, 0, 3, 10**6]),  # wall clock, s
    )
    arrivals, crowd = [], []
    least = draw(st.sampled_from([0, most // 2, most]))
    for ago, late, ns, shape, size, times, wall in draw(st.lists(one, min_size=least, max_size=most)):
        arrived = now_ns - ago * SECOND
        ended = min(max(arrived - late * SECOND - ns, 0), MAX_INSTANT_NS)
        started = max(0, ended - wall * SECOND)
        for n in range(times):
            arrivals.append(arrived)
            crowd.append(make_span(shape, size + 13 * n, started_ns=started, ended_ns=ended, arrived_ns=arrived))
    order = sorted(range(len(crowd)), key=lambda n: arrivals[n])
    return Stream([crowd[n] for n in order], [arrivals[n] for n in order], now_ns)


# ---- the oracle: everything from the spans themselves


def event_second(span: Span) -> int:
    believed = span.ended_ns - span.arrived_ns <= 5 * MINUTE
    return (span.ended_ns if believed else span.arrived_ns) // SECOND


def within(spans: Iterable[Span], stretches: Sequence[Stretch]) -> list[Span]:
    from_s, to_s = stretches[0].start_s, stretches[-1].end_s
    return [span for span in spans if from_s <= event_second(span) < to_s]


def recount(spans: Sequence[Span]) -> Sums:
    return Sums(
        spans=len(spans),
        errors=sum(s.status == "error" for s in spans),
        timeouts=sum(s.status == "timeout" for s in spans),
        unpriced=sum(s.cost_nusd is None for s in spans),
        partly_priced=sum(s.cost_source == "partly_priced" for s in spans),
        latency_n=sum(s.latency_ns > 0 for s in spans),
        ttft_n=sum(s.ttft_ns > 0 for s in spans),
        score_n=sum(s.score is not None for s in spans),
        cost=sum(s.cost_nusd or 0 for s in spans),
        prompt=sum(s.prompt_tokens for s in spans),
        completion=sum(s.completion_tokens for s in spans),
        total=sum(s.total_tokens for s in spans),
        cache_read=sum(s.cache_read_tokens for s in spans),
        cache_write=sum(s.cache_write_tokens for s in spans),
        cache_write_1h=sum(s.cache_write_1h_tokens for s in spans),
        reasoning=sum(s.reasoning_tokens for s in spans),
        latency=sum(s.latency_ns for s in spans),
        ttft=sum(s.ttft_ns for s in spans),
        score=sum(s.score or 0 for s in spans),
        wall=sum(max(0, s.ended_ns - s.started_ns) for s in spans),
    )


VALUES: dict[str, Callable[[Span], int | None]] = {
    "latency": lambda s: s.latency_ns or None,
    "ttft": lambda s: s.ttft_ns or None,
    "prompt": lambda s: s.prompt_tokens,
    "completion": lambda s: s.completion_tokens,
    "score": lambda s: s.score,
}


def assert_reads(reading: Reading, spans: Sequence[Span]) -> None:
    """*reading* is what *spans* come to: sums to the last unit, quantiles exact up to 100 values."""
    assert reading.sums == recount(spans)
    assert set(reading.summaries) == set(FIELDS)
    for name, summary in reading.summaries.items():
        values = [value for value in map(VALUES[name], spans) if value is not None]
        assert_summarises(summary, values)


def assert_summarises(summary: Summary, values: list[int]) -> None:
    assert summary.count == len(values)
    assert summary.exact == (len(values) <= 100)
    if not values:
        assert summary.quantile(0.5) is None
        return
    error = 0 if summary.exact else RELATIVE_ERROR + 1e-9
    for q, want in zip(QUANTILES, np.quantile(np.array(values, np.float64), QUANTILES).tolist(), strict=True):
        assert summary.quantile(q) == pytest.approx(want, rel=error + 1e-12, abs=1e-12 * max(values))


def asked(now_ns: int, window_ns: int) -> list[Stretch]:
    return cover((now_ns - window_ns) // SECOND, now_ns // SECOND + 1, now_ns // SECOND)


class Reading(NamedTuple):
    """What some cells come to in an interval: sums, and the distributions that were asked for."""

    sums: Sums
    summaries: dict[str, Summary]


def readings_of(
    rollup: Rollup, stretches: Sequence[Stretch], groups: Any, size: int, fields: Sequence[str]
) -> list[Reading]:
    """One for each group of cells."""
    _, cells, totals = rollup.totals([stretches])
    sums = add_by(groups[cells], totals, size)
    found = rollup.summaries([stretches], dict.fromkeys(fields, groups), size)
    return [Reading(Sums.of(sums, n), {name: found[name].get(n, Summary()) for name in fields}) for n in range(size)]


class Shard:
    """A rollup and its table."""

    def __init__(self) -> None:
        self.table = SeriesTable()
        self.rollup = Rollup(self.table)

    def fold(self, spans: Sequence[Span], arrived_ns: int) -> None:
        self.rollup.fold(rows_of(spans, self.table, arrived_ns))

    def read(self, stretches: Sequence[Stretch]) -> Reading:
        [reading] = readings_of(self.rollup, stretches, np.zeros(len(self.table), np.int64), 1, list(FIELDS))
        return reading

    def read_by(self, stretches: Sequence[Stretch], dimension: str) -> dict[str, Reading]:
        values = sorted({getattr(cell, dimension) for cell in self.table.series})
        groups = np.array([values.index(getattr(cell, dimension)) for cell in self.table.series], np.int64)
        return dict(zip(values, readings_of(self.rollup, stretches, groups, len(values), list(FIELDS)), strict=True))

    def restarted(self) -> Shard:
        rollup, parts = self.rollup.snapshot({})
        made = {name: part.encode() for name, part in parts.items() if part.encode}
        saved = msgspec.msgpack.encode({"cells": self.table.series, "rollup": rollup, "parts": made})
        state = msgspec.msgpack.decode(saved)
        shard = Shard()
        shard.table = SeriesTable(state["cells"])
        shard.rollup = Rollup.restore(shard.table, state["rollup"], state["parts"])
        return shard


def whole(rollup: Rollup) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A snapshot made into bytes, every part of it."""
    state, parts = rollup.snapshot({})
    return state, {name: part.encode() for name, part in parts.items() if part.encode}


Meanwhile = Callable[[Shard], Shard | None]


def fold_all(stream: Stream, random: Random | None = None, meanwhile: Meanwhile | None = None) -> Shard:
    """A shard that took in *stream*: one batch per arrival, or torn anywhere when there is a *random*."""
    shard, at = Shard(), 0
    while at < len(stream.spans):
        end = at + 1
        while end < len(stream.spans) and (
            random.random() < 0.7 if random else stream.arrived_ns[end] == stream.arrived_ns[at]
        ):
            end += 1
        # A message arrives when the last of its spans has.
        shard.fold(stream.spans[at:end], stream.arrived_ns[end - 1])
        at = end
        if random and random.random() < 0.3:
            shard.rollup.settle()
        if meanwhile:
            shard = meanwhile(shard) or shard
    return shard


# ---- plan


@settings(max_examples=300, deadline=None)
@given(NOW_NS, WINDOW_NS)
def test_a_plan_is_one_interval_around_the_window_and_off_by_at_most_one_percent(now_ns: int, window_ns: int) -> None:
    #   from'   now - W                      now   to'
    #   [--------|----------------------------|----)
    stretches = asked(now_ns, window_ns)
    for before, after in pairwise(stretches):
        assert before.end_s == after.start_s
    assert all(stretch.start_s < stretch.end_s for stretch in stretches)
    early = now_ns - window_ns - stretches[0].start_s * SECOND
    assert 0 <= early < max(SECOND, window_ns / 100)
    if window_ns <= 20 * MINUTE:
        assert early < SECOND
    assert 0 < stretches[-1].end_s * SECOND - now_ns <= SECOND


@settings(max_examples=300, deadline=None)
@given(NOW_NS, WINDOW_NS)
def test_a_plan_reads_whole_buckets_that_are_still_kept(now_ns: int, window_ns: int) -> None:
    for tier, start_s, end_s in asked(now_ns, window_ns):
        width_s, keep_s = RESOLUTIONS[tier]
        assert start_s % width_s == end_s % width_s == 0
        assert start_s + width_s > now_ns // SECOND - keep_s


@settings(max_examples=300, deadline=None)
@given(NOW_NS, SPREAD_S, SPREAD_S)
def test_a_window_that_ended_long_ago_reads_only_buckets_still_kept(now_ns: int, age_s: int, length_s: int) -> None:
    #   from     to                          now
    #   [---------)                           |
    now_s = now_ns // SECOND
    to_s = now_s - age_s
    from_s = max(to_s - length_s - 1, now_s - 31 * 86400)
    if from_s >= to_s:
        return
    stretches = cover(from_s, to_s, now_s)
    assert stretches[0].start_s <= from_s
    assert to_s <= stretches[-1].end_s
    for tier, start_s, end_s in stretches:
        width_s, keep_s = RESOLUTIONS[tier]
        assert start_s % width_s == end_s % width_s == 0
        assert start_s + width_s > now_s - keep_s


@settings(max_examples=15, deadline=None)
@given(NOW_NS, st.integers(SECOND, HOUR))
def test_no_plan_needs_fewer_buckets(now_ns: int, window_ns: int) -> None:
    stretches = asked(now_ns, window_ns)
    from_s, to_s = stretches[0].start_s, stretches[-1].end_s
    fewest = {to_s: 0}
    for at in range(to_s - 1, from_s - 1, -1):
        ends = [at + width for width, keep in RESOLUTIONS if at % width == 0 and at + width > now_ns // SECOND - keep]
        fewest[at] = 1 + min((fewest[end] for end in ends if end in fewest), default=10**9)
    assert sum((end - start) // RESOLUTIONS[tier].width_s for tier, start, end in stretches) == fewest[from_s]


def test_a_plan_is_coarse_in_the_middle_and_fine_at_its_edges() -> None:
    #   11:57:30    11:58             12:00    12:00:05
    #   [ 10 s x 3  | 1 min x 2       |  1 s x 5 )
    assert cover(NOON_S - 150, NOON_S + 5, NOON_S + 5) == [
        Stretch(1, NOON_S - 150, NOON_S - 120),
        Stretch(2, NOON_S - 120, NOON_S),
        Stretch(0, NOON_S, NOON_S + 5),
    ]


# ---- any window of any stream


@settings(max_examples=100, deadline=None)
@given(streams(), WINDOW_NS, st.sampled_from(DIMENSIONS))
def test_any_window_is_a_recount_of_its_spans(stream: Stream, window_ns: int, dimension: str) -> None:
    shard, stretches = fold_all(stream), asked(stream.now_ns, window_ns)
    counted = within(stream.spans, stretches)
    assert_reads(shard.read(stretches), counted)
    for value, reading in shard.read_by(stretches, dimension).items():
        assert_reads(reading, [span for span in counted if (getattr(span, dimension) or "unknown") == value])


@settings(max_examples=60, deadline=None)
@given(streams(), WINDOW_NS, st.sampled_from(DIMENSIONS), st.randoms(use_true_random=False))
def test_groups_add_up_to_the_total(stream: Stream, window_ns: int, dimension: str, random: Random) -> None:
    shard, stretches = fold_all(stream, random), asked(stream.now_ns, window_ns)
    total, parts = shard.read(stretches), shard.read_by(stretches, dimension).values()
    added = Sums()
    for part in parts:
        added.add(part.sums)
    assert added == total.sums
    for name in FIELDS:
        assert merge(part.summaries[name] for part in parts) == total.summaries[name]


@settings(max_examples=60, deadline=None)
@given(streams(), st.lists(WINDOW_NS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_it_does_not_matter_how_spans_are_batched_and_when_they_settle(
    stream: Stream, windows: list[int], random: Random
) -> None:
    together, torn = fold_all(stream), fold_all(stream, random)
    for window_ns in windows:
        stretches = asked(stream.now_ns, window_ns)
        assert torn.read(stretches) == together.read(stretches)
        assert_reads(torn.read(stretches), within(stream.spans, stretches))


@settings(max_examples=60, deadline=None)
@given(streams(), WINDOW_NS, st.randoms(use_true_random=False))
def test_three_shards_answer_as_one(stream: Stream, window_ns: int, random: Random) -> None:
    owners = [random.randrange(3) for _ in stream.spans]
    total, summaries, stretches = Sums(), [], asked(stream.now_ns, window_ns)
    for number in range(3):
        mine = [n for n, owner in enumerate(owners) if owner == number]
        part = Stream([stream.spans[n] for n in mine], [stream.arrived_ns[n] for n in mine], stream.now_ns)
        reading = fold_all(part, random).read(stretches)
        total.add(reading.sums)
        summaries.append(reading.summaries)
    merged = {name: merge(each[name] for each in summaries) for name in FIELDS}
    assert Reading(total, merged) == fold_all(stream).read(stretches)
    assert_reads(Reading(total, merged), within(stream.spans, stretches))


@settings(max_examples=60, deadline=None)
@given(streams(), WINDOW_NS, st.randoms(use_true_random=False))
def test_a_restart_at_any_moment_changes_nothing(stream: Stream, window_ns: int, random: Random) -> None:
    shard = fold_all(stream, random, lambda shard: shard.restarted() if random.random() < 0.3 else None)
    stretches = asked(stream.now_ns, window_ns)
    assert_reads(shard.read(stretches), within(stream.spans, stretches))
    assert shard.read(stretches) == fold_all(stream).read(stretches)
    assert whole(shard.restarted().rollup) == whole(shard.rollup)


@settings(max_examples=60, deadline=None)
@given(streams(), WINDOW_NS)
def test_forgetting_never_changes_an_answer(stream: Stream, window_ns: int) -> None:
    shard, stretches = fold_all(stream), asked(stream.now_ns, window_ns)
    before = shard.read(stretches)
    shard.rollup.evict(stream.now_ns)
    assert shard.read(stretches) == before
    assert_reads(before, within(stream.spans, stretches))


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(0, 32 * 86400), WINDOW_NS)
def test_a_window_asked_for_long_after_the_last_span_still_holds(stream: Stream, idle_s: int, window_ns: int) -> None:
    #   spans ... last          (nothing)          now
    shard, now_ns = fold_all(stream), stream.now_ns + idle_s * SECOND
    shard.rollup.evict(now_ns)
    stretches = asked(now_ns, window_ns)
    assert_reads(shard.read(stretches), within(stream.spans, stretches))


@settings(max_examples=40, deadline=None)
@given(streams(most=25), WINDOW_NS, st.randoms(use_true_random=False))
def test_an_answer_halfway_is_that_of_what_has_arrived(stream: Stream, window_ns: int, random: Random) -> None:
    shard = Shard()
    for number, (span, arrived_ns) in enumerate(zip(stream.spans, stream.arrived_ns, strict=True), 1):
        shard.fold([span], arrived_ns)
        if random.random() < 0.2:
            stretches = asked(arrived_ns, window_ns)
            assert_reads(shard.read(stretches), within(stream.spans[:number], stretches))


def test_a_day_of_thousands_in_one_bucket_keeps_its_sums_and_its_error() -> None:
    #   9,000 spans of four cells within a minute: more than wait, more than a sketch keeps raw
    now_ns = NOON_S * SECOND + 59 * SECOND
    spans = [
        make_span(n % 4, n * n + 1, started_ns=0, ended_ns=now_ns - n % 50 * SECOND, arrived_ns=now_ns)
        for n in range(9_000)
    ]
    shard = Shard()
    for at in range(0, len(spans), 700):
        shard.fold(spans[at : at + 700], now_ns)
    for window_ns in (10 * SECOND, MINUTE, HOUR, 31 * DAY):
        stretches = asked(now_ns, window_ns)
        assert_reads(shard.read(stretches), within(spans, stretches))
        for model, reading in shard.read_by(stretches, "model").items():
            assert_reads(reading, [s for s in within(spans, stretches) if (s.model or "unknown") == model])


def test_a_quiet_cell_stays_exact_beside_a_crowded_one() -> None:
    #   one bucket: 5,000 spans of one cell, and among them exactly 100 of another
    spans = [at(NOON_S, NOON_S, shape=n % 50 == 0, size=6 * n + 1) for n in range(5_000)]
    shard = Shard()
    for first in range(0, len(spans), 500):
        shard.fold(spans[first : first + 500], NOON_S * SECOND)
        shard.rollup.settle()
    quiet = shard.read_by(asked(NOON_S * SECOND, HOUR), "model")["m2"]
    assert quiet.summaries["prompt"].exact
    assert_reads(quiet, spans[::50])


# ---- edges, one at a time


def at(event_s: int, arrived_s: int, **fields: Any) -> Span:
    return make_span(started_ns=event_s * SECOND, ended_ns=event_s * SECOND, arrived_ns=arrived_s * SECOND, **fields)


@pytest.mark.parametrize("tier", RESOLUTIONS)
def test_a_bucket_holds_its_first_second_and_not_that_of_the_next(tier: Any) -> None:
    #   [ width )[ width )[ width )
    #   a       bc      d e
    width = tier.width_s
    seconds = [NOON_S, NOON_S + width - 1, NOON_S + width, NOON_S + 2 * width - 1, NOON_S + 2 * width]
    shard, last = Shard(), NOON_S + 2 * width
    for second in seconds:
        shard.fold([at(second, last)], last * SECOND)
    index = RESOLUTIONS.index(tier)
    for number in range(3):
        start = NOON_S + number * width
        counted = sum(start <= second < start + width for second in seconds)
        assert shard.read([Stretch(index, start, start + width)]).sums.spans == counted


@pytest.mark.parametrize("tier", RESOLUTIONS)
@pytest.mark.parametrize("late_by", [-1, 599, 600])
def test_a_late_span_goes_into_every_tier_that_still_has_its_bucket(tier: Any, late_by: int) -> None:
    #   bucket        arrival - keep
    #   [   x   )      |  ten minutes  |    a bucket that ended ten minutes before that is gone
    start, end = NOON_S, NOON_S + tier.width_s
    arrived_s = end + tier.keep_s + late_by
    shard = Shard()
    shard.fold([at(start, arrived_s)], arrived_s * SECOND)
    for index, (width_s, keep_s) in enumerate(RESOLUTIONS):
        bucket = start // width_s * width_s
        kept = bucket + width_s > arrived_s - keep_s - 600
        assert shard.read([Stretch(index, bucket, bucket + width_s)]).sums.spans == kept
    assert shard.rollup._tiers[RESOLUTIONS.index(tier)].keys() == ({start} if late_by < 600 else set())


@pytest.mark.parametrize(("behind_s", "late"), [(-1, 0), (0, 0), (1, 1)])
def test_late_is_what_lies_behind_the_horizon(behind_s: int, late: int) -> None:
    #   event     arrival - 31 d                    arrival
    shard, horizon_s = Shard(), HORIZON_NS // SECOND
    shard.fold([at(NOON_S - horizon_s - behind_s, NOON_S)], NOON_S * SECOND)
    shard.rollup.settle()
    assert shard.rollup.late == late


@settings(max_examples=60, deadline=None)
@given(streams(), st.randoms(use_true_random=False))
def test_every_late_span_is_counted_once(stream: Stream, random: Random) -> None:
    shard = fold_all(stream, meanwhile=lambda shard: shard.restarted() if random.random() < 0.2 else None)
    shard.rollup.settle()
    horizons = [arrived_ns // SECOND - 31 * 86400 for arrived_ns in stream.arrived_ns]
    behind = [event_second(span) < horizon for span, horizon in zip(stream.spans, horizons, strict=True)]
    assert shard.rollup.late == sum(behind)


def test_the_newest_second_is_in_and_the_next_is_not() -> None:
    #   now - 10      now  now + 1 s
    #   (--------------]
    #                  a   b                 b is dated into the future, within what is believed
    shard = Shard()
    shard.fold([at(NOON_S, NOON_S), at(NOON_S + 1, NOON_S)], NOON_S * SECOND)
    assert shard.read(asked(NOON_S * SECOND, 10 * SECOND)).sums.spans == 1
    assert shard.read(asked((NOON_S + 1) * SECOND, 10 * SECOND)).sums.spans == 2


def test_a_span_dated_five_minutes_ahead_waits_and_one_beyond_counts_on_arrival() -> None:
    #   arrival        + 300 s   + 301 s
    #   now            a         b
    shard = Shard()
    shard.fold([at(NOON_S + 300, NOON_S), at(NOON_S + 301, NOON_S)], NOON_S * SECOND)
    assert shard.read(asked(NOON_S * SECOND, MINUTE)).sums.spans == 1
    assert shard.read(asked((NOON_S + 300) * SECOND, HOUR)).sums.spans == 2


def test_a_span_that_ended_before_it_started_breaks_no_sum() -> None:
    shard = Shard()
    now_ns = NOON_S * SECOND
    backwards = make_span(started_ns=now_ns + DAY, ended_ns=now_ns, arrived_ns=now_ns)
    forwards = make_span(started_ns=now_ns - 3 * SECOND, ended_ns=now_ns, arrived_ns=now_ns)
    shard.fold([backwards, forwards], now_ns)
    reading = shard.read(asked(now_ns, MINUTE))
    assert_reads(reading, [backwards, forwards])
    assert reading.sums.wall == 3 * SECOND


def test_nothing_reads_as_nothing() -> None:
    reading = Shard().read(asked(NOON_S * SECOND, 31 * DAY))
    assert_reads(reading, [])
    assert Shard().restarted().read(asked(NOON_S * SECOND, HOUR)) == reading


def test_a_batch_without_spans_changes_nothing() -> None:
    shard = Shard()
    shard.fold([], NOON_S * SECOND)
    assert shard.read(asked(NOON_S * SECOND, HOUR)).sums == Sums()
    shard.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    shard.fold([], NOON_S * SECOND)
    assert shard.read(asked(NOON_S * SECOND, HOUR)).sums.spans == 1


def test_a_cell_in_no_group_is_left_out() -> None:
    shard = Shard()
    spans = [at(NOON_S, NOON_S, shape=n % 4, size=n) for n in range(600)]
    shard.fold(spans, NOON_S * SECOND)
    stretches = asked(NOON_S * SECOND, MINUTE)
    only = [-1, 0, -1, 1]  # cells are numbered in order of appearance
    readings = readings_of(shard.rollup, stretches, np.array(only, np.int64), 3, list(FIELDS))
    assert_reads(readings[0], spans[1::4])
    assert_reads(readings[1], spans[3::4])
    assert_reads(readings[2], [])
    [lone] = readings_of(shard.rollup, stretches, np.array([-1, -1, 0, -1], np.int64), 1, list(FIELDS))
    assert_reads(lone, spans[2::4])


def test_only_the_distributions_asked_for_are_given() -> None:
    shard = Shard()
    shard.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    [reading] = readings_of(shard.rollup, asked(NOON_S * SECOND, MINUTE), np.zeros(1, np.int64), 1, ["ttft"])
    assert set(reading.summaries) == {"ttft"}


def test_reading_is_not_destructive() -> None:
    shard = Shard()
    shard.fold([at(NOON_S, NOON_S, size=n) for n in range(500)], NOON_S * SECOND)
    stretches = asked(NOON_S * SECOND, MINUTE)
    assert shard.read(stretches) == shard.read(stretches)
    saved = shard.restarted()
    shard.fold([at(NOON_S, NOON_S)], NOON_S * SECOND)
    assert (saved.read(stretches).sums.spans, shard.read(stretches).sums.spans) == (500, 501)


@pytest.mark.parametrize("tier", RESOLUTIONS)
def test_a_question_a_moment_behind_the_stream_loses_nothing(tier: Any) -> None:
    #   now - W                               now   now + 2 s
    #   a                                      |    b          b was folded before the question of now was answered
    now_s = NOON_S + 2 * tier.width_s - 1
    first = now_s - tier.keep_s
    shard = Shard()
    shard.fold([at(first, first)], first * SECOND)
    shard.fold([at(now_s + 2, now_s + 2)], (now_s + 2) * SECOND)
    stretches = asked(now_s * SECOND, tier.keep_s * SECOND)
    assert stretches[0].start_s <= first
    assert shard.read(stretches).sums.spans == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, MAX_TOKENS), min_size=1, max_size=100))
def test_the_quantiles_of_a_window_of_up_to_a_hundred_are_exact(sizes: list[int]) -> None:
    #   one value a second: the window joins a hundred buckets of several tiers
    now_s = NOON_S + 100
    shard = Shard()
    for n, size in enumerate(sizes):
        shard.fold([at(now_s - n, now_s, size=size)], now_s * SECOND)
    summary = shard.read(asked(now_s * SECOND, HOUR)).summaries["prompt"]
    assert summary == Summary.of(sizes)
    [least, most] = [summary.quantile(q) for q in (0.0, 1.0)]
    assert (Fraction(least or 0), Fraction(most or 0)) == (min(sizes), max(sizes))
