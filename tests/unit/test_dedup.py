"""Deduplication of batches, compared with a plain set; its limits, and what it forgets."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_batch
from kit.examples import examples
from tokentrace.dedup import MAX_INTERVALS, MAX_REPORTERS, FoldedBatches
from tokentrace.dedup import batches as dedup_batches
from tokentrace.records import Batch
from tokentrace.units import DAY, HOUR

NOW = ENDED_NS

#: (Reporter id, number from 1 on, part).
BatchKey = tuple[str, int, int]


def numbered(sequence: int, reporter: str = "shop.web.1", part: int = 0) -> Batch:
    return make_batch(id=reporter, sequence=sequence, part=part)


def request(key: str, part: int = 0) -> Batch:
    return make_batch(id=key, sequence=0, part=part)


reporters = st.sampled_from(["a", "b", "shop.web.1"])
small = st.integers(1, 12)
parts = st.sampled_from([0, 0, 0, 1, 2])
batches = st.one_of(
    st.tuples(reporters, small, parts),
    st.tuples(reporters, st.integers(1, 10**12), parts),
)
steps = st.one_of(batches, batches, batches, st.just("restart"))


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(steps, max_size=60), st.sampled_from([1, 2, 3, 8]), st.integers(0, 7))
@example([("a", 1, 0), ("a", 3, 0), ("a", 2, 0), ("a", 2, 0)], 1, 0)
@example([("a", 3, 0), ("a", 2, 0), ("a", 1, 0), "restart", ("a", 3, 0)], 1, 0)
@example([("a", 1, 0), ("a", 1, 1), ("a", 1, 0), ("a", 1, 1)], 1, 0)
def test_a_batch_is_new_exactly_once_in_any_history(history: list[BatchKey | str], stride: int, shard: int) -> None:
    # A shard receives every stride-th number of a reporter, starting at a number that depends on the shard.
    dedup = FoldedBatches(stride)
    model: set[BatchKey] = set()
    for step in history:
        if isinstance(step, str):  # a restart
            dedup = FoldedBatches.restore(dedup.snapshot())
            continue
        key, number, part = step
        sequence = number * stride + shard % stride
        identity = (key, sequence, part)
        assert dedup.add(make_batch(id=key, sequence=sequence, part=part), NOW) is (identity not in model)
        model.add(identity)
    assert dedup.given_up == 0


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(1, 300), st.sampled_from([1, 4]), st.integers(0, 3), st.randoms(use_true_random=False))
def test_any_order_leaves_one_interval(count: int, stride: int, shard: int, random: Random) -> None:
    numbers = [number * stride + shard % stride for number in range(1, count + 1)]
    random.shuffle(numbers)
    dedup = FoldedBatches(stride)
    assert all(dedup.add(numbered(number), NOW) for number in numbers)
    assert len(dedup) == 1
    random.shuffle(numbers)
    assert not any(dedup.add(numbered(number), NOW) for number in numbers)
    assert len(dedup) == 1


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(reporters, st.integers(1, 9), parts, st.integers(0, 100)), max_size=40), st.integers(0, 40))
def test_note_equals_adding_the_same_batches(rows: list[tuple[str, int, int, int]], cut: int) -> None:
    whole, resumed = FoldedBatches(), FoldedBatches()
    for key, sequence, part, after in rows:
        whole.add(make_batch(id=key, sequence=sequence, part=part), NOW + after)
    for key, sequence, part, after in rows[:cut]:
        resumed.add(make_batch(id=key, sequence=sequence, part=part), NOW + after)
    resumed = FoldedBatches.restore(resumed.snapshot())
    resumed.note([(key, sequence, part, 0, NOW + after) for key, sequence, part, after in rows[cut:]])
    assert resumed.snapshot() == whole.snapshot()


def test_a_snapshot_restores_to_the_same_snapshot() -> None:
    dedup = FoldedBatches(4)
    for number in (4, 8, 20, 400):
        dedup.add(numbered(number), NOW)
    dedup.note([("r", 0, 3, 0, NOW)])
    assert FoldedBatches.restore(dedup.snapshot()).snapshot() == dedup.snapshot()
    assert len(FoldedBatches.restore(dedup.snapshot())) == len(dedup) == 4


def test_a_restored_state_keeps_its_stride() -> None:
    dedup = FoldedBatches.restore(FoldedBatches(4).snapshot())
    assert [dedup.add(numbered(number), NOW) for number in (5, 9, 13, 9)] == [True, True, True, False]
    assert len(dedup) == 1


def test_parts_of_a_batch_are_different_batches() -> None:
    dedup = FoldedBatches()
    assert [dedup.add(numbered(1, part=part), NOW) for part in (0, 1, 2, 1, 0)] == [True, True, True, False, False]


def test_layouts_of_a_batch_are_different_batches_and_only_layout_0_divides_by_the_stride() -> None:
    dedup = FoldedBatches(4)
    in_layout_0 = [dedup.add(make_batch(id="a", sequence=number), NOW) for number in (4, 5, 8)]
    in_layout_1 = [dedup.add(make_batch(id="a", sequence=number, layout=1), NOW) for number in (4, 5, 8, 5)]
    assert in_layout_0 == [True, False, True]
    assert in_layout_1 == [True, True, True, False]


@pytest.mark.long
def test_the_reporter_that_was_silent_the_longest_is_forgotten_beyond_the_limit() -> None:
    dedup = FoldedBatches()
    for number in range(MAX_REPORTERS):
        dedup.add(numbered(1, f"r{number}"), NOW + number)
    assert not dedup.add(numbered(1, "r0"), NOW + MAX_REPORTERS)
    dedup.add(numbered(1, "one more"), NOW + MAX_REPORTERS + 1)
    assert not dedup.add(numbered(1, "r0"), NOW + MAX_REPORTERS + 2)
    assert dedup.add(numbered(1, "r1"), NOW + MAX_REPORTERS + 3)


def test_an_id_that_looks_like_the_key_of_a_part_is_a_different_batch() -> None:
    dedup, sequence = FoldedBatches(), 1
    assert dedup.add(make_batch(id="a", sequence=sequence, part=1), NOW)
    assert dedup.add(make_batch(id="a#1", sequence=sequence, part=0), NOW)


def test_the_largest_batch_number_is_recorded_and_restored() -> None:
    dedup = FoldedBatches()
    last = 2**63 - 1
    assert [dedup.add(numbered(number), NOW) for number in (last, last - 1, last, 1)] == [True, True, False, True]
    assert [FoldedBatches.restore(dedup.snapshot()).add(numbered(number), NOW) for number in (last, 1, 2)] == [
        False,
        False,
        True,
    ]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_gaps_are_limited_and_the_lowest_is_dropped() -> None:
    #  1  3  5  7 ...            every second number is missing
    #  [1 2 3] 5 7 ...           with too many gaps, the one at 2 is dropped: 2 counts as folded
    dedup = FoldedBatches()
    for number in range(1, 2 * MAX_INTERVALS + 1, 2):
        assert dedup.add(numbered(number), NOW)
    assert (len(dedup), dedup.given_up) == (MAX_INTERVALS, 0)
    assert dedup.add(numbered(2 * MAX_INTERVALS + 1), NOW)
    assert (len(dedup), dedup.given_up) == (MAX_INTERVALS, 1)
    assert not dedup.add(numbered(2), NOW)
    assert dedup.add(numbered(4), NOW)


def test_every_number_in_a_dropped_gap_is_counted_as_given_up() -> None:
    dedup = FoldedBatches()
    for number in range(10, 10 * MAX_INTERVALS + 1, 10):
        dedup.add(numbered(number), NOW)
    dedup.add(numbered(5), NOW)
    assert (len(dedup), dedup.given_up) == (MAX_INTERVALS, 4)
    assert [dedup.add(numbered(number), NOW) for number in (5, 6, 9, 10, 4)] == [False, False, False, False, True]
    assert FoldedBatches.restore(dedup.snapshot()).given_up == 4


def test_dropping_gaps_folds_no_batch_twice_and_limits_the_size() -> None:
    random, dedup, folded = Random(1), FoldedBatches(), set()
    for _ in range(3 * MAX_INTERVALS):
        number = random.randrange(1, 10**9)
        if dedup.add(numbered(number), NOW):
            assert number not in folded
            folded.add(number)
    assert len(dedup) <= MAX_INTERVALS
    assert not any(dedup.add(numbered(number), NOW) for number in folded)


def test_the_state_of_a_reporter_without_gaps_does_not_grow() -> None:
    dedup = FoldedBatches(4)
    for number in range(1, 20_000):
        dedup.add(numbered(number * 4), NOW)
    assert len(dedup) == 1
    assert len(dedup.snapshot()) < 100


@pytest.mark.story
@pytest.mark.long
def test_a_million_reporters_leave_as_many_as_the_limit_and_the_reach_says_since_when() -> None:
    dedup, count = FoldedBatches(), 1_000_000
    size: list[int] = []
    for number in range(count):
        dedup.add(Batch(id=f"default.web.{number:032x}", sequence=1), NOW + number)
        if number + 1 in (MAX_REPORTERS, count):
            size.append(len(dedup.snapshot()))
    assert dedup.reporter_count == MAX_REPORTERS
    assert dedup.forgotten_ns == NOW + count - MAX_REPORTERS - 1
    assert size[1] == pytest.approx(size[0], rel=0.01)
    restored = FoldedBatches.restore(dedup.snapshot())
    assert (restored.reporter_count, restored.forgotten_ns) == (MAX_REPORTERS, dedup.forgotten_ns)
    # Every reporter within the reach is known, and none before it.
    for number, is_new in ((count - 1, False), (count - MAX_REPORTERS, False), (count - MAX_REPORTERS - 1, True)):
        assert restored.add(numbered(1, f"default.web.{number:032x}"), NOW + count) is is_new


def test_beyond_the_limit_of_gaps_a_reporter_begins_anew_and_no_batch_on_its_way_is_skipped() -> None:
    dedup, told = FoldedBatches(), NOW
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup_batches, "MAX_GAPS", 3)
        for name in ("a", "b"):
            for number in (1, 3, 5):
                told += 1
                assert dedup.add(numbered(number, name), told)
        # Four gaps are one too many: b begins anew with its newest number.
        assert len(dedup) == 4
        assert dedup.forgotten_ns == told
        assert [dedup.add(numbered(number, "b"), told) for number in (2, 4, 5)] == [True, True, False]
        assert [dedup.add(numbered(number, "a"), told) for number in (1, 3, 5, 2)] == [False, False, False, True]
    assert dedup.given_up == 0


# --- forgetting ------------------------------------------------------------------------------------------------------


def test_a_reporter_is_forgotten_after_8_days_of_silence() -> None:
    dedup = FoldedBatches()
    dedup.add(numbered(1), NOW)
    dedup.forget(NOW + 8 * DAY)
    assert not dedup.add(numbered(1), NOW)
    dedup.forget(NOW + 8 * DAY + 1)
    assert len(dedup) == 0
    assert dedup.add(numbered(1), NOW + 8 * DAY + 1)


def test_an_active_reporter_is_remembered_from_its_first_batch() -> None:
    dedup = FoldedBatches()
    for day in range(0, 40, 5):
        assert dedup.add(numbered(day + 1), NOW + day * DAY)
        dedup.forget(NOW + day * DAY)
    assert not dedup.add(numbered(1), NOW + 36 * DAY)


def test_a_duplicate_keeps_its_reporter_from_being_forgotten() -> None:
    dedup = FoldedBatches()
    dedup.add(numbered(1), NOW)
    assert not dedup.add(numbered(1), NOW + 7 * DAY)
    dedup.forget(NOW + 14 * DAY)
    assert not dedup.add(numbered(1), NOW + 14 * DAY)


def test_a_late_message_does_not_shorten_how_long_a_reporter_is_remembered() -> None:
    dedup = FoldedBatches()
    dedup.add(numbered(2), NOW + 7 * DAY)
    dedup.add(numbered(1), NOW)
    dedup.forget(NOW + 14 * DAY)
    assert not dedup.add(numbered(2), NOW + 14 * DAY)


def test_a_request_of_an_earlier_version_is_known_for_24_hours() -> None:
    dedup = FoldedBatches()
    dedup.note([("r", 0, 0, 0, NOW), ("later", 0, 0, 0, NOW + HOUR)])
    dedup = FoldedBatches.restore(dedup.snapshot())
    dedup.forget(NOW + 24 * HOUR)
    assert dedup.holds_request(request("r"))
    assert not dedup.holds_request(request("r", part=1))
    dedup.forget(NOW + 24 * HOUR + 1)
    assert not dedup.holds_request(request("r"))
    assert dedup.holds_request(request("later"))


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(reporters, small, st.integers(0, 5 * DAY), st.booleans()), max_size=60))
def test_exactly_the_reporters_of_the_last_8_days_are_remembered(steps: list[tuple[str, int, int, bool]]) -> None:
    dedup, now = FoldedBatches(), NOW
    numbers: dict[str, set[int]] = {}
    last_ns: dict[str, int] = {}
    for key, number, later, restart in steps:
        now += later
        dedup.forget(now)
        for silent in [name for name, at in last_ns.items() if at < now - 8 * DAY]:
            del numbers[silent], last_ns[silent]
        assert (len(dedup) == 0) is (not numbers)
        known = numbers.setdefault(key, set())
        assert dedup.add(numbered(number, key), now) is (number not in known)
        known.add(number)
        last_ns[key] = now
        if restart:
            dedup = FoldedBatches.restore(dedup.snapshot())
    assert dedup.reporters() == set(numbers)
