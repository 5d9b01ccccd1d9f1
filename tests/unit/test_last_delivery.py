"""What ``GET /alerts`` says of the last deliveries of a rule, against a count made from the drawn story."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.records import DeliveryRecord
from tokentrace.units import SECOND, render_instant
from tokentrace_api.delivery_outcomes import run_of

Outcome = Literal["delivered", "retry", "dead", "expired"]


def record(event: int, attempt: int, outcome: Outcome, number: int) -> DeliveryRecord:
    return DeliveryRecord(
        rule="slow",
        fired_at=render_instant(event * SECOND),
        status="firing",
        group={},
        key=f"slow@{event}",
        channel="webhook",
        destination="http://hooks",
        outcome=outcome,
        attempt=attempt,
        error="" if outcome == "delivered" else f"HTTP 50{attempt}",
        at=render_instant((1000 + number) * SECOND),
        took_ms=1.0,
    )


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["delivered", "dead"])), max_size=8), st.integers(0, 3))
def test_the_run_ends_with_the_event_that_was_tried_last(ends: list[tuple[int, Outcome]], open_tries: int) -> None:
    records: list[DeliveryRecord] = []
    for event, (attempts, outcome) in enumerate(ends):
        for attempt in range(1, attempts + 1):
            records.append(record(event, attempt, outcome if attempt == attempts else "retry", len(records)))
    records += [record(99, attempt, "retry", len(records)) for attempt in range(1, open_tries + 1)]
    told = [outcome for _, outcome in ends] + (["retry"] if open_tries else [])
    run = run_of(records)
    if not told:
        assert run is None
        return
    assert run is not None
    same = len(told) - next((at for at in range(len(told) - 1, -1, -1) if told[at] != told[-1]), -1) - 1
    assert (run.outcome, run.in_a_row) == (told[-1], same)
    assert run.attempts == (open_tries or ends[-1][0])
    assert (run.error, run.at) == (records[-1].error, records[-1].at)
