"""Which event may be delivered when: the order of one instance, and what the records of all alerters say."""

from __future__ import annotations

import random

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.alert_events import FIRED, OVER, START_NS, make_event, make_resolved
from tokentrace.records import AlertEvent, DeliveryRecord
from tokentrace.service.retry_after import MAX_RETRY_AFTER_S, retry_after
from tokentrace.units import MINUTE, SECOND, render_instant
from tokentrace_alerter.delivery.channel import attempts_within, backoff_ns, idempotency_key, pause_ns
from tokentrace_alerter.delivery.order import DeliveryOrder, Outcome

SUBJECT = "tokentrace.alerts.default.rule"
HOOK = "https://example.org/hook"


def make_record(
    event: AlertEvent, outcome: str, attempt: int = 1, at_ns: int = START_NS, **more: object
) -> DeliveryRecord:
    fields = {
        "rule": event.alert,
        "fired_at": event.fired_at,
        "status": event.status,
        "group": event.group,
        "key": idempotency_key(event),
        "channel": "http",
        "destination": "https://example.org/...",
        "outcome": outcome,
        "attempt": attempt,
        "error": "",
        "at": render_instant(at_ns),
        "took_ms": 1.0,
        **more,
    }
    return DeliveryRecord(**fields)  # type: ignore[arg-type]


def note(order: DeliveryOrder, record: DeliveryRecord) -> None:
    """Apply *record* at the time at which it was made."""
    order.note(record, START_NS, 100.0)


def test_a_resolution_may_go_once_its_firing_has_an_outcome() -> None:
    for outcome in ("delivered", "dead", "expired"):
        order = DeliveryOrder()
        firing, end = make_event(), make_resolved()
        order.add(5, SUBJECT, firing, START_NS, HOOK)
        order.add(7, SUBJECT, end, START_NS, HOOK)
        assert (order.may_go(5), order.may_go(7)) == (True, False)
        note(order, make_record(firing, "retry"))
        assert not order.may_go(7)
        note(order, make_record(firing, outcome, 2))
        assert (order.is_done(5), order.may_go(7)) == (True, True)
        assert order.changed == {(SUBJECT, "")}


def test_instances_and_rules_do_not_wait_for_each_other() -> None:
    order = DeliveryOrder()
    order.add(1, SUBJECT, make_event(group={"user_id": "a"}), START_NS, HOOK)
    order.add(2, SUBJECT, make_event(group={"user_id": "b"}), START_NS, HOOK)
    order.add(3, SUBJECT + "2", make_event(group={"user_id": "a"}), START_NS, HOOK)
    assert all(order.may_go(sequence) for sequence in (1, 2, 3))


def test_an_event_that_is_not_delivered_holds_nothing_back() -> None:
    order = DeliveryOrder()
    order.add(1, SUBJECT, make_resolved(), START_NS, "")
    order.add(2, SUBJECT, make_event(), START_NS, HOOK)
    assert order.may_go(2)


def test_an_event_that_has_left_the_queue_holds_nothing_back_even_without_a_record() -> None:
    order = DeliveryOrder()
    order.add(1, SUBJECT, make_event(), START_NS, HOOK)
    order.add(2, SUBJECT, make_resolved(), START_NS, HOOK)
    order.forget_up_to(1)
    assert (order.is_done(1), order.may_go(2), order.is_done(2)) == (True, True, False)
    order.forget_up_to(2)
    assert len(order) == 0
    order.add(2, SUBJECT, make_resolved(), START_NS, HOOK)
    assert len(order) == 0, "an event that left the queue is not added again"


def test_attempts_and_pauses_come_from_records_of_any_alerter_and_a_repeated_record_changes_nothing() -> None:
    order = DeliveryOrder()
    event = make_event()
    order.add(1, SUBJECT, event, START_NS, HOOK)
    for _ in range(2):
        note(order, make_record(event, "retry", 1))
        assert (order.attempts(1), order.failures(1), order.again_s(1)) == (1, 1, 100.5)
    note(order, make_record(event, "retry", 2, retry_after_s=30.0))
    assert (order.attempts(1), order.failures(1), order.again_s(1)) == (2, 1, 130.0)
    # A record that is read late leaves only the rest of the pause; one of a clock ahead leaves no more than the pause.
    order.note(make_record(event, "retry", 3, START_NS - 3 * SECOND, retry_after_s=30.0), START_NS, 100.0)
    assert order.again_s(1) == 127.0
    order.note(make_record(event, "retry", 4, START_NS + 600 * SECOND, retry_after_s=30.0), START_NS, 100.0)
    assert order.again_s(1) == 130.0


def test_the_resolution_of_a_firing_that_was_too_late_is_not_told() -> None:
    def untold(*outcomes: tuple[AlertEvent, Outcome]) -> bool:
        order = DeliveryOrder()
        end = make_resolved()
        for sequence, (event, _) in enumerate(outcomes):
            order.add(sequence + 1, SUBJECT, event, START_NS, HOOK)
        order.add(9, SUBJECT, end, START_NS, HOOK)
        for sequence, (_, outcome) in enumerate(outcomes):
            order.finish(sequence + 1, outcome, START_NS)
        return order.is_untold(9)

    first, again = make_event(), make_event(fired_at=OVER)
    assert first.starts_at == again.starts_at == FIRED
    assert untold((first, "expired"))
    assert untold((first, "expired"), (again, "expired"))
    assert not untold((first, "delivered"))
    assert not untold((first, "dead")), "an attempt that got no answer may have arrived"
    assert not untold((first, "delivered"), (again, "expired"))
    assert not untold((again, "expired")), "the first firing was told before"
    assert not untold((first, "expired"), (again, "delivered"))
    assert not untold((make_event(fired_at=OVER, starts_at=OVER), "expired")), "it is of another episode"


def test_waiting_behind_an_event_that_is_given_up_counts_as_trying() -> None:
    order = DeliveryOrder()
    firing, end, later = make_event(), make_resolved(), make_event(fired_at=OVER, starts_at=OVER)
    order.add(1, SUBJECT, firing, START_NS, HOOK)
    order.add(2, SUBJECT, end, START_NS + MINUTE, HOOK)
    order.add(3, SUBJECT, later, START_NS + 6 * MINUTE, HOOK)
    note(order, make_record(firing, "retry", 1))
    note(order, make_record(firing, "dead", 13, START_NS + 6 * MINUTE))
    assert (order.failures(2), order.failures(3)) == (attempts_within(5 * MINUTE), 0)
    assert order.attempts(2) == 0
    refused = DeliveryOrder()
    refused.add(1, SUBJECT, firing, START_NS, HOOK)
    refused.add(2, SUBJECT, end, START_NS, HOOK)
    note(refused, make_record(firing, "dead", 1, START_NS + 6 * MINUTE))
    assert refused.failures(2) == 0


def test_the_attempts_within_a_time_are_those_that_the_pauses_allow() -> None:
    pauses = [backoff_ns(attempt) for attempt in range(1, 14)]
    for count in range(13):
        over = sum(pauses[:count])
        assert attempts_within(over) <= count <= attempts_within(over + pauses[count])
    assert attempts_within(-SECOND) == attempts_within(0) == 0
    assert 13 <= attempts_within(7 * MINUTE) <= 15


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_whatever_two_alerters_record_the_events_of_an_instance_go_in_order(seed: int, count: int) -> None:
    """Two alerters see the same events and, late and in bursts, each other's records."""
    dice = random.Random(seed)
    events = [
        make_event(fired_at=render_instant(START_NS + at * SECOND), group={"u": dice.choice("ab")})
        for at in range(count)
    ]
    records: list[DeliveryRecord] = []
    orders, read = (DeliveryOrder(), DeliveryOrder()), [0, 0]
    sent: list[int] = []
    for order in orders:
        for at, event in enumerate(events):
            order.add(at + 1, SUBJECT, event, START_NS, HOOK)
    for _ in range(20 * count):
        who = dice.randrange(2)
        order, sequence = orders[who], dice.randrange(count) + 1
        # An alerter reads all records before an attempt.
        for record in records[read[who] :]:
            note(order, record)
        read[who] = len(records)
        if order.may_go(sequence) and not order.is_done(sequence):
            sent.append(sequence)
            outcome = dice.choice(["retry", "delivered", "dead"])
            records.append(make_record(events[sequence - 1], outcome, order.attempts(sequence) + 1))
    for group in "ab":
        own = [sequence for sequence in sent if events[sequence - 1].group == {"u": group}]
        assert own == sorted(own)
        assert len({record.key for record in records if record.outcome != "retry"}) <= count


# -- Retry-After


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "3600"}, 3600.0),
        ({"Retry-After": "86400"}, MAX_RETRY_AFTER_S),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Mon, 21 Sep 2026 14:00:30 GMT"}, 30.0),
        ({"Retry-After": "Mon, 21 Sep 2026 13:00:00 GMT"}, 0.0),
        ({"Retry-After": "Tue, 22 Sep 2026 14:00:00 GMT"}, MAX_RETRY_AFTER_S),
        # The receiver's clock is ten minutes behind ours.
        ({"Retry-After": "Mon, 21 Sep 2026 13:50:20 GMT", "Date": "Mon, 21 Sep 2026 13:50:00 GMT"}, 20.0),
        ({"Retry-After": "Mon, 99 Sep 2026 14:00:00 GMT"}, None),
    ],
    ids=str,
)
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(httpx.Headers(headers), START_NS / SECOND) == seconds


def test_a_pause_is_never_shorter_than_the_receiver_asks_nor_than_without_asking() -> None:
    assert pause_ns(1, None) == backoff_ns(1)
    assert pause_ns(1, 30.0) == 30 * SECOND
    assert pause_ns(1, 0.0) == backoff_ns(1)
    assert pause_ns(20, 1.0) == backoff_ns(20)
