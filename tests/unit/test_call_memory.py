"""The memory of calls, compared with a plain list of the newest calls; its snapshots, and how batches are cut."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from tokentrace.dedup import IDENTITY, LEAST_CALLS, TOTAL_CALLS, CallMemory, capacity_for
from tokentrace.errors import Rejected


class Call(NamedTuple):
    """One span as the memory sees it; instants in milliseconds."""

    key: int
    span_key: int
    usage: int
    cost: int
    start: int
    duration: int
    way: int
    short: bool


def encoded(calls: list[Call]) -> Any:
    rows = [
        (call.key, call.span_key, call.usage, call.cost, call.duration, call.start << 20 | call.way << 4 | call.short)
        for call in calls
    ]
    return np.array(rows, IDENTITY)


class PlainList:
    """The newest calls in a list, searched from end to end."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.calls: list[Call] = []

    def tell(self, call: Call) -> tuple[bool, bool, bool]:
        """Return (counted, conflicting, its response id was in use)."""
        with_key = [held for held in self.calls if held.key == call.key and not (call.usage and not held.usage)]
        for held in reversed(with_key):
            if held.span_key == call.span_key or self._same_response(held, call):
                return False, (held.usage, held.cost) != (call.usage, call.cost), False
        self.calls = [*self.calls, call][-self.capacity :]
        return True, False, bool(with_key)

    @staticmethod
    def _same_response(held: Call, call: Call) -> bool:
        gap = 5_000 if call.short else 60_000
        apart = max(held.start, call.start) - min(held.start + held.duration, call.start + call.duration)
        if apart > gap:
            return False
        return not call.short or (held.usage == call.usage and held.way != call.way)


# Few values, so that calls repeat; the first bits of the keys are often equal, so that slots are shared.
keys = st.sampled_from([1, 2, 3, 5 << 60, 5 << 60 | 1, 7 << 60, 2**64 - 1])
calls = st.builds(
    Call,
    key=keys,
    span_key=st.integers(0, 3),
    usage=st.integers(0, 2),
    cost=st.integers(0, 2),
    start=st.sampled_from([0, 4_999, 5_000, 5_001, 60_000, 60_001, 120_000, 1_700_000_000_000]),
    duration=st.sampled_from([0, 1, 5_000, 60_000]),
    way=st.integers(0, 1),
    short=st.booleans(),
)
batches = st.lists(calls, min_size=1, max_size=20)


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(st.one_of(batches, st.just("restart")), max_size=25), st.sampled_from([1, 2, 4, 8, 16]))
@example([[Call(1, 0, 0, 0, 0, 0, 0, False)], [Call(1, 0, 1, 1, 0, 0, 0, False)]], 4)
def test_the_memory_decides_as_a_list_of_the_newest_calls(history: list[list[Call] | str], capacity: int) -> None:
    memory, plain = CallMemory(capacity), PlainList(capacity)
    for step in history:
        if isinstance(step, str):
            memory = restarted(memory)
            continue
        verdict = memory.take(encoded(step))
        told = [plain.tell(call) for call in step]
        assert verdict.counted.tolist() == [counted for counted, _, _ in told]
        assert list(verdict.conflicting) == [at for at, (_, conflicting, _) in enumerate(told) if conflicting]
        assert verdict.reused == sum(reused for _, _, reused in told)
        assert len(memory) == len(plain.calls)
        assert memory.entries_after(0).tolist() == encoded(plain.calls).tolist()


def restarted(memory: CallMemory) -> CallMemory:
    state, parts = memory.snapshot("@", {})
    restored = CallMemory(memory.capacity)
    restored.restore(state, {name: part.encode() for name, part in parts.items() if part.encode}, "@")
    return restored


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(calls, max_size=80), st.lists(st.integers(1, 30), min_size=1), st.sampled_from([4, 16, 64]))
def test_how_the_log_is_cut_into_batches_does_not_matter(told: list[Call], sizes: list[int], capacity: int) -> None:
    one_by_one, in_batches = CallMemory(capacity), CallMemory(capacity)
    single = [bool(one_by_one.take(encoded([call])).counted[0]) for call in told]
    together: list[bool] = []
    at = 0
    while at < len(told):
        size = sizes[at % len(sizes)]
        together += in_batches.take(encoded(told[at : at + size])).counted.tolist()
        at += size
    assert together == single
    assert in_batches.digest == one_by_one.digest
    assert in_batches.entries_after(0).tolist() == one_by_one.entries_after(0).tolist()


def distinct(first: int, count: int) -> Any:
    rows = np.zeros(count, IDENTITY)
    rows["key"] = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    rows["span_key"], rows["usage"] = np.arange(count), 1
    return rows


def test_exactly_the_newest_calls_are_known_after_the_ring_was_overwritten() -> None:
    capacity = 2**12
    memory, rows = CallMemory(capacity), distinct(1, 3 * capacity + 77)
    for at in range(0, len(rows), 256):
        assert memory.take(rows[at : at + 256]).counted.all()
    known = restarted(memory).take(rows[-capacity:])
    assert not known.counted.any()
    assert memory.take(rows[-capacity - 1 : -capacity]).counted.all()


def test_digests_are_equal_exactly_if_the_same_calls_are_remembered() -> None:
    rows = distinct(1, 1000)
    whole, late, other = CallMemory(256), CallMemory(256), CallMemory(256)
    for at in range(0, 1000, 100):
        whole.take(rows[at : at + 100])
    for at in range(700, 1000):
        late.take(rows[at : at + 1])
    other.take(rows[:100])
    assert whole.digest == late.digest == restarted(whole).digest
    assert other.digest != whole.digest


def test_a_snapshot_saves_only_the_parts_that_changed() -> None:
    memory = CallMemory(2**15)
    memory.take(distinct(1, 20_000))
    _, parts = memory.snapshot("@", {})
    saved = {name: part.revision for name, part in parts.items()}
    memory.take(distinct(50_000, 300))
    _, parts = memory.snapshot("@", saved)
    assert [name for name, part in parts.items() if part.encode is not None] == ["@4"]


def test_a_memory_of_another_capacity_or_with_a_missing_part_is_refused() -> None:
    memory = CallMemory(16)
    memory.take(distinct(1, 5))
    state, parts = memory.snapshot("@", {})
    with pytest.raises(Rejected, match="16 calls"):
        CallMemory(32).restore(state, {}, "@")
    with pytest.raises(Rejected, match="part 0"):
        CallMemory(16).restore(state, {}, "@")
    assert parts.keys() == {"@0"}


def test_all_shards_together_remember_a_million_calls_but_each_at_least_65536() -> None:
    assert [capacity_for(shards) for shards in (1, 2, 3, 4, 16, 64)] == [
        TOTAL_CALLS,
        TOTAL_CALLS // 2,
        TOTAL_CALLS // 4,
        TOTAL_CALLS // 4,
        LEAST_CALLS,
        LEAST_CALLS,
    ]
