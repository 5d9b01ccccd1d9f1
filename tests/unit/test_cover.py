"""The buckets that ``cover`` chooses for a window."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.rollup_streams import NOON_S, NOW_NS, SPREAD_S, WINDOW_NS, asked
from tokentrace.rollup import (
    RESOLUTIONS,
    Stretch,
    cover,
)
from tokentrace.units import HOUR, MINUTE, SECOND


@settings(max_examples=examples(300), deadline=None)
@given(NOW_NS, WINDOW_NS)
def test_cover_is_one_interval_that_begins_at_most_a_second_or_one_percent_early(now_ns: int, window_ns: int) -> None:
    #   from'   now - window                 now   to'
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


@settings(max_examples=examples(300), deadline=None)
@given(NOW_NS, WINDOW_NS)
def test_cover_uses_whole_buckets_that_are_still_kept(now_ns: int, window_ns: int) -> None:
    for index, start_s, end_s in asked(now_ns, window_ns):
        width_s, keep_s = RESOLUTIONS[index]
        assert start_s % width_s == end_s % width_s == 0
        assert start_s + width_s > now_ns // SECOND - keep_s


@settings(max_examples=examples(300), deadline=None)
@given(NOW_NS, SPREAD_S, SPREAD_S)
def test_a_window_that_ended_long_ago_uses_only_buckets_that_are_still_kept(
    now_ns: int, age_s: int, length_s: int
) -> None:
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
    for index, start_s, end_s in stretches:
        width_s, keep_s = RESOLUTIONS[index]
        assert start_s % width_s == end_s % width_s == 0
        assert start_s + width_s > now_s - keep_s


@settings(max_examples=examples(15), deadline=None)
@given(NOW_NS, st.integers(SECOND, HOUR))
def test_no_other_cover_has_fewer_buckets(now_ns: int, window_ns: int) -> None:
    stretches = asked(now_ns, window_ns)
    from_s, to_s = stretches[0].start_s, stretches[-1].end_s
    fewest = {to_s: 0}
    for at in range(to_s - 1, from_s - 1, -1):
        ends = [at + width for width, keep in RESOLUTIONS if at % width == 0 and at + width > now_ns // SECOND - keep]
        fewest[at] = 1 + min((fewest[end] for end in ends if end in fewest), default=10**9)
    assert sum((end - start) // RESOLUTIONS[index].width_s for index, start, end in stretches) == fewest[from_s]


def test_cover_is_coarse_in_the_middle_and_fine_at_its_edges() -> None:
    #   11:57:30    11:58             12:00    12:00:05
    #   [ 10 s x 3  | 1 min x 2       |  1 s x 5 )
    assert cover(NOON_S - 150, NOON_S + 5, NOON_S + 5) == [
        Stretch(1, NOON_S - 150, NOON_S - 120),
        Stretch(2, NOON_S - 120, NOON_S),
        Stretch(0, NOON_S, NOON_S + 5),
    ]
