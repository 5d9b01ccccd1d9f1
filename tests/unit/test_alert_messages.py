"""The text of an event says what is true: a breach reads like one, an end does not."""

from __future__ import annotations

from typing import Any

import pytest

from kit.rules import START_NS, make_rule
from tokentrace.records import AlertEvent
from tokentrace.units import SECOND
from tokentrace_alerter.rules import State, decide

FIRING = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)


def resolve(value: float | None, count: int = 3, unpriced: int = 0, **rule: Any) -> AlertEvent:
    event = decide(make_rule(**rule), FIRING, START_NS + SECOND, value, count, unpriced=unpriced).event
    assert event is not None
    assert event.status == "resolved"
    return event


def again(value: float | None, count: int = 3, without_cost: int = 0, **rule: Any) -> str:
    decision = decide(make_rule(cooldown="0s", **rule), FIRING, START_NS + SECOND, value, count, unpriced=without_cost)
    assert decision.event is not None
    assert decision.event.status == "firing"
    return decision.event.message


@pytest.mark.parametrize(
    ("event", "text", "ended_by"),
    [
        (resolve(9.5), "total_cost is 9.5, no longer > 10", "recovered"),
        (resolve(12, op="lt"), "total_cost is 12, no longer < 10", "recovered"),
        (resolve(3.9, recovery_threshold=4), "total_cost is 3.9, back at 4 (threshold: > 10)", "recovered"),
        (resolve(None, 0), "total_cost has no data (threshold: > 10)", "no_data"),
        (
            resolve(9, unpriced=2),
            "total_cost is 9, no longer > 10; the cost of 2 spans is unknown",
            "recovered",
        ),
        (resolve(5, change="percent"), "change of total_cost is 5%, no longer > 10%", "recovered"),
        (resolve(5, change="absolute"), "change of total_cost is 5, no longer > 10", "recovered"),
    ],
)
def test_an_end_says_what_the_value_is_now(event: AlertEvent, text: str, ended_by: str) -> None:
    assert (event.message, event.ended_by) == (text, ended_by)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (again(11), "total_cost > 11 (threshold: 10)"),
        (again(11, change="percent"), "change of total_cost > 11% (threshold: 10%)"),
        (again(None, 0, no_data="fire"), "total_cost has no data (threshold: > 10)"),
        (again(7, recovery_threshold=4), "total_cost is 7, not back at 4 yet (threshold: > 10)"),
        (
            again(2, 3, 3, unpriced="fire"),
            "total_cost is 2 (threshold: > 10); the cost of 3 spans is unknown",
        ),
        (
            again(None, 0, 3, unpriced="fire"),
            "total_cost is unknown (threshold: > 10); the cost of 3 spans is unknown",
        ),
    ],
)
def test_a_firing_reads_like_a_breach_only_if_the_value_is_one(text: str, expected: str) -> None:
    assert text == expected
