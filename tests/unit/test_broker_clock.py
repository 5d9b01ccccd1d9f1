"""The broker's time, as ``BrokerClock`` measures it from answers that name it."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.bus import BrokerClock
from tokentrace.units import HOUR, MINUTE, MS, SECOND


class World:
    """A host and a broker, whose clocks differ; time passes only by ``let_pass``."""

    def __init__(self, host_ahead_ns: int = 0) -> None:
        self.broker_ns, self.elapsed_ns, self.host_ahead_ns = 1_795_000_000 * SECOND, 77 * HOUR, host_ahead_ns
        self.clock = BrokerClock(lambda: self.broker_ns + self.host_ahead_ns, lambda: self.elapsed_ns)

    def let_pass(self, ns: int) -> None:
        self.broker_ns += ns
        self.elapsed_ns += ns

    def ask(self, there_ns: int, back_ns: int) -> None:
        """Ask the broker for its time; the request and the answer take this long."""
        sent_ns = self.elapsed_ns
        self.let_pass(there_ns)
        answer = self.broker_ns
        self.let_pass(back_ns)
        self.clock.note(answer, sent_ns)

    @property
    def error_ns(self) -> int:
        return abs(self.clock.now_ns() - self.broker_ns)


class Request(NamedTuple):
    pause_ns: int
    there_ns: int
    back_ns: int

    @property
    def took_ns(self) -> int:
        return self.there_ns + self.back_ns


requests = st.builds(Request, st.integers(0, MINUTE), st.integers(0, 5 * SECOND), st.integers(0, 5 * SECOND))


def test_the_time_of_the_host_is_used_only_until_the_broker_has_named_its_own() -> None:
    world = World(host_ahead_ns=10 * MINUTE)
    assert not world.clock.is_known
    assert world.clock.skew_ns() is None
    assert world.clock.passed_ns() == 0
    assert world.clock.now_ns() == world.broker_ns + 10 * MINUTE
    world.ask(MS, MS)
    assert world.clock.is_known
    assert world.clock.now_ns() == world.broker_ns
    assert world.clock.skew_ns() == 10 * MINUTE


@given(st.lists(requests, min_size=1, max_size=20), st.integers(-HOUR, HOUR))
def test_the_time_is_as_exact_as_the_fastest_answer_and_never_said_to_have_passed_before_it_has(
    asked: list[Request], host_ahead_ns: int
) -> None:
    world = World(host_ahead_ns)
    for request in asked:
        world.let_pass(request.pause_ns)
        world.ask(request.there_ns, request.back_ns)
        assert world.clock.passed_ns() <= world.broker_ns
    fastest = min(request.took_ns for request in asked)
    since_first = sum(request.pause_ns + request.took_ns for request in asked)
    # The clocks of two machines drift apart, for which 100 ppm are allowed; the halves are rounded.
    assert world.error_ns <= fastest // 2 + since_first // 10_000 + 1


@given(st.lists(requests, max_size=5), st.sampled_from([-HOUR, -MINUTE, MINUTE, HOUR]))
def test_a_broker_whose_clock_was_set_is_followed_after_its_next_answer(asked: list[Request], step_ns: int) -> None:
    world = World()
    for request in asked:
        world.ask(request.there_ns, request.back_ns)
    world.broker_ns += step_ns
    world.ask(2 * MS, 4 * MS)
    assert world.error_ns <= 3 * MS
    assert world.clock.passed_ns() <= world.broker_ns


def test_setting_the_clock_of_the_host_changes_nothing_but_the_skew() -> None:
    world = World()
    world.ask(MS, MS)
    for ahead_ns in (-HOUR, 0, MINUTE):
        world.host_ahead_ns = ahead_ns
        world.let_pass(SECOND)
        assert world.clock.now_ns() == world.broker_ns
        assert world.clock.skew_ns() == ahead_ns
