"""The queue of transports that deliver in the background: every item ends in one counter, whatever happens to it."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.reporting import accounted, until
from tokentrace.client.transports import background
from tokentrace.client.transports.background import Background
from tokentrace.client.transports.counted_queue import CountedQueue, Delivered, Limits
from tokentrace.client.transports.notices import Notices

LIMITS = Limits(batch_items=7, batch_bytes=100, age_s=0.01, max_items=1000)
Deliver = Callable[[list[tuple[int, int]]], Delivered[int]]


def queue_of(deliver: Deliver, limits: Limits = LIMITS, released: list[None] | None = None) -> Background[int]:
    """Return a queue of numbers."""
    seen: list[None] = [] if released is None else released
    return Background(
        limits,
        deliver,
        Notices("test"),
        name="test",
        on_fork=lambda: None,
        release=lambda: seen.append(None),
    )


steps = st.lists(
    st.tuples(st.sampled_from(["put", "take", "finish"]), st.integers(1, 60), st.integers(0, 4), st.integers(0, 4)),
    max_size=60,
)


@settings(max_examples=examples(300), deadline=None)
@given(steps)
def test_counters_add_up_and_limits_hold_after_any_steps(script: list[tuple[str, int, int, int]]) -> None:
    limits = Limits(batch_items=4, batch_bytes=90, age_s=1, max_items=12, max_bytes=300)
    queue: CountedQueue[int] = CountedQueue(limits)
    numbers = itertools.count()
    put = dropped = 0
    batch: list[tuple[int, int]] = []
    for what, size, first, second in script:
        if what == "put":
            put += 1
            if not queue.put(next(numbers), size):
                queue.dropped += 1
                dropped += 1
        elif what == "take" and not batch:
            batch = queue.take()
            assert len(batch) <= 4
            assert sum(size for _, size in batch) <= 90 or len(batch) == 1
        elif what == "finish" and batch:
            acked = min(first, len(batch))
            failed = min(second, len(batch) - acked)
            queue.finish(batch, Delivered(acked=acked, failed=failed, left=batch[acked + failed :]))
            batch = []
        order = [number for number, _ in [*batch, *queue.waiting]]
        assert order == sorted(order)
        assert queue.depth == len(order) <= 12
        assert sum(size for _, size in queue.waiting) <= 300 + sum(size for _, size in batch)
        assert accounted(queue.stats()) == put
        assert queue.stats().dropped == dropped
    queue.abandon()
    assert accounted(queue.stats()) == put
    assert queue.depth == 0


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.sampled_from(["all", "some", "none", "fail", "reject", "raise"]), max_size=30), st.booleans())
def test_every_item_of_many_threads_ends_in_one_counter(outcomes: list[str], flushes: bool) -> None:
    turn = iter(outcomes)
    accepted: list[int] = []

    def deliver(batch: list[tuple[int, int]]) -> Delivered[int]:
        what = next(turn, "all")
        if what == "raise":
            raise RuntimeError("a fault")
        if what in ("fail", "reject"):
            return Delivered(failed=len(batch)) if what == "fail" else Delivered(rejected=len(batch))
        count = {"all": len(batch), "some": len(batch) // 2, "none": 0}[what]
        accepted.extend(number for number, _ in batch[:count])
        return Delivered(acked=count, left=batch[count:], pause_s=0.001)

    queue = queue_of(deliver)
    numbers = itertools.count()

    def work() -> None:
        for index in range(40):
            queue.put(next(numbers), 10)
            if flushes and index % 20 == 19:
                queue.flush(30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close(60)
    stats = queue.stats()
    assert (accounted(stats), stats.queue_depth, stats.dropped) == (160, 0, 0)
    assert stats.acked == len(accepted) == len(set(accepted))


def test_no_item_is_stuck_when_the_thread_ends_at_the_moment_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_IDLE_S", 0.0)  # the thread ends whenever nothing waits
    taken: list[int] = []

    def deliver(batch: list[tuple[int, int]]) -> Delivered[int]:
        taken.extend(number for number, _ in batch)
        return Delivered(acked=len(batch))

    released: list[None] = []
    queue = queue_of(deliver, LIMITS._replace(age_s=0.0), released)
    for number in range(2000):
        queue.put(number, 1)
        if number % 3 == 0:
            until(lambda: queue.stats().queue_depth == 0, "delivered")
    until(lambda: queue.stats().acked == 2000, "delivered")
    assert taken == list(range(2000))
    assert len(released) > 10
    queue.close(30)


def test_one_thread_delivers_at_a_time() -> None:
    at_once = Counter[str]()

    def deliver(batch: list[tuple[int, int]]) -> Delivered[int]:
        at_once["now"] += 1
        at_once["most"] = max(at_once["most"], at_once["now"])
        threading.Event().wait(0.0005)
        at_once["now"] -= 1
        return Delivered(acked=len(batch))

    queue = queue_of(deliver)

    def work() -> None:
        for _ in range(30):
            queue.put(1, 1)
            queue.flush(30)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close(30)
    assert at_once["most"] == 1


def test_a_flush_within_the_delivery_returns_and_does_not_wait_for_itself() -> None:
    answers: list[bool] = []

    def deliver(batch: list[tuple[int, int]]) -> Delivered[int]:
        answers.append(queue.flush(0.05))
        return Delivered(acked=len(batch))

    queue = queue_of(deliver)
    queue.put(1, 1)
    assert queue.flush(30)
    assert answers == [False]
    queue.close(30)
