"""Retrying while something is unavailable: it has no limit, can be cancelled, and logs each reason once."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from tokentrace.errors import Rejected, Unavailable
from tokentrace.service import retry
from tokentrace.service.retry import until_available


class Flaky:
    """A call that fails with each of *errors* in turn and then returns 7; *calls* counts how often it was made."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


async def test_an_attempt_is_repeated_until_it_succeeds() -> None:
    flaky = Flaky(*[Unavailable("away")] * 4)
    assert await until_available(flaky) == 7
    assert flaky.calls == 5


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_an_error_other_than_unavailable_is_raised_at_once(failures: int) -> None:
    flaky = Flaky(*[Unavailable("away")] * failures, Rejected("wrong"), Unavailable("not reached"))
    with pytest.raises(Rejected, match="wrong"):
        await until_available(flaky)
    assert flaky.calls == failures + 1


async def test_each_reason_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry, "_COMPLAIN_AFTER_S", 0.0)
    await until_available(Flaky(*[Unavailable(reason) for reason in ("a", "a", "b", "a", "b")]))
    assert [record.getMessage() for record in caplog.records] == ["still trying: a", "still trying: b"]


async def test_a_short_outage_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    await until_available(Flaky(Unavailable("a"), Unavailable("b")))
    assert caplog.records == []


@pytest.mark.parametrize("fails", [True, False], ids=["in a pause", "in an attempt"])
@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_a_cancellation_ends_an_attempt_or_a_pause_at_once(failures: int, fails: bool) -> None:
    reached, calls = asyncio.Event(), 0

    async def attempt() -> None:
        nonlocal calls
        calls += 1
        if calls < failures:
            raise Unavailable("away")
        reached.set()
        if fails:
            raise Unavailable("away")
        await asyncio.Event().wait()

    trying = asyncio.create_task(until_available(attempt))
    await reached.wait()
    await asyncio.sleep(0)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert calls == failures


async def test_more_than_a_thousand_attempts_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_MIN_PAUSE_S", 0.0001)
    monkeypatch.setattr(retry, "_MAX_PAUSE_S", 0.0001)
    monkeypatch.setattr(retry, "_JITTER_S", 0.0)
    flaky = Flaky(*[Unavailable("away")] * 1200)
    assert await until_available(flaky) == 7


def test_a_bound_logger_needs_no_configuration(caplog: pytest.LogCaptureFixture) -> None:
    structlog.stdlib.get_logger("tokentrace.test").bind(shard=3).warning("bound %s", "value")
    (record,) = caplog.records
    assert (record.name, record.getMessage(), record.__dict__["shard"]) == ("tokentrace.test", "bound value", 3)
