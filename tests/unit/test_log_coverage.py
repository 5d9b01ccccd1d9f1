"""How far a full log will reach back is computed from the messages of the last ten minutes."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.bus import StreamState
from tokentrace_api.log_coverage import LogCoverage

SECOND, MINUTE, HOUR = 10**9, 60 * 10**9, 3600 * 10**9
KEEPS_NS = 7 * 24 * HOUR


def state_of(last: int, messages: int, size: int, max_bytes: int, created_ns: int = 1) -> StreamState:
    return StreamState(created_ns, last - messages + 1, last, messages, messages * size, max_bytes, 5)


@given(
    arrivals=st.lists(st.integers(0, 3600), max_size=60),
    looks=st.lists(st.integers(0, 3600), min_size=1, max_size=20, unique=True),
    size=st.integers(1, 10**6),
    max_bytes=st.integers(10**6, 10**10),
)
def test_the_rate_is_that_of_the_messages_between_the_first_and_the_last_look_of_ten_minutes(
    arrivals: list[int], looks: list[int], size: int, max_bytes: int
) -> None:
    coverage, looks = LogCoverage(KEEPS_NS), sorted(looks)
    state = state_of(0, 0, size, max_bytes)
    for look in looks:
        stored = sum(at <= look for at in arrivals)
        # Only the newest twenty messages are kept.
        state = state_of(stored, min(stored, 20), size, max_bytes)
        coverage.note(state, look * SECOND)
    first = min(look for look in looks if look >= looks[-1] - 600)
    if looks[-1] - first < 60:
        assert coverage.bytes_per_s(state) is None
        assert coverage.will_cover_s(state) is None
        return
    rate = Fraction(size * sum(first < at <= looks[-1] for at in arrivals), looks[-1] - first)
    found = coverage.bytes_per_s(state)
    assert found is not None
    assert abs(found - rate) <= rate * Fraction(1, 10**9)
    expected = min(Fraction(KEEPS_NS, SECOND), max_bytes / rate) if rate else Fraction(KEEPS_NS, SECOND)
    covered = coverage.will_cover_s(state)
    assert covered is not None
    assert abs(covered - expected) <= 1


def test_seven_days_are_75_minutes_if_the_log_takes_8_gib_in_that_time() -> None:
    coverage, state = LogCoverage(KEEPS_NS), state_of(0, 0, 0, 0)
    for minute in range(30):
        stored = minute * 1000
        state = state_of(stored, max(stored, 1), 8 * 2**30 // 75_000, 8 * 2**30)
        coverage.note(state, minute * MINUTE)
    covered = coverage.will_cover_s(state)
    assert covered is not None
    assert abs(covered - 75 * 60) <= 1


def test_a_stream_that_was_made_anew_or_lost_its_end_is_measured_anew() -> None:
    for created_ns, last in ((2, 5), (1, 90)):
        coverage = LogCoverage(KEEPS_NS)
        coverage.note(state_of(100, 100, 10, 10**6), 0)
        coverage.note(state_of(last, last, 10, 10**6, created_ns), 2 * MINUTE)
        assert coverage.bytes_per_s(state_of(last, last, 10, 10**6, created_ns)) is None
        coverage.note(state_of(last + 60, last, 10, 10**6, created_ns), 3 * MINUTE)
        assert coverage.bytes_per_s(state_of(last, last, 10, 10**6, created_ns)) == 10
