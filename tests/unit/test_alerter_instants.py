"""When an instant is evaluated, which spans its window holds, and what is published and shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kit.alerter_log import CREATED, RULES, SETTLED, Story, at, breach, brief, call, make_rule, ns
from kit.builders import make_span
from kit.whole_snapshots import CAPACITY, parts_of
from tokentrace.bus import Message, subjects
from tokentrace.errors import Rejected
from tokentrace.records import Batch, Position, encode_batches
from tokentrace.units import render_instant
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule

# --- when an instant is evaluated, and which spans its window holds


def test_an_instant_is_evaluated_before_a_later_message_is_folded() -> None:
    #   0    1    2    3    4
    #   |----|----|--a-|--b-|     both ended in second 1; a is stored at 2.5, b at 3.5
    story = Story(make_rule())
    story.send(2.5, call(1.5))
    assert story.tick(2.5) == []
    story.send(3.5, call(1.7))
    assert brief(story.tick(3.5)) == [(3, "firing", 1)]
    assert brief(story.tick(4 + SETTLED)) == [(4, "firing", 2)]


def test_a_message_stored_at_the_instant_is_folded_after_the_evaluation() -> None:
    story = Story(make_rule())
    story.send(1.5, call(0.5))
    story.send(2.0, call(0.6))
    assert brief(story.tick(2.0)) == [(2, "firing", 1)]


def test_a_message_stored_a_nanosecond_before_the_instant_counts() -> None:
    story = Story(make_rule())
    payload = encode_batches([Batch(id="a", spans=[call(0.5)])])
    story.alerter.fold(Message("tokentrace.spans.default.0", payload, 1, ns(2) - 1, {}), CREATED)
    assert brief(story.tick(2 + SETTLED)) == [(2, "firing", 1)]


def test_every_instant_before_a_message_far_ahead_is_evaluated_first() -> None:
    story = Story(make_rule(window="3s"))
    story.send(0.5, call(0.5))
    story.send(9.5, call(9.5))
    assert brief(story.tick(9.5)) == [(1, "firing", 1), (2, "firing", 1), (3, "firing", 1), (4, "resolved", 0)]


def test_without_messages_instants_are_evaluated_up_to_200_ms_ago() -> None:
    story = Story(make_rule())
    story.send(0.5, call(0.5))
    assert story.tick(1 + SETTLED - 0.001) == []
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing", 1)]
    assert story.tick(1 + SETTLED) == []


def test_a_clock_that_goes_back_evaluates_no_instant_twice() -> None:
    story = Story(make_rule())
    story.send(0.5, call(0.5))
    assert len(story.tick(3 + SETTLED)) == 3
    assert story.tick(1 + SETTLED) == []
    assert story.tick(3 + SETTLED) == []
    assert brief(story.tick(4 + SETTLED)) == [(4, "firing", 1)]


def test_an_alerter_that_has_not_caught_up_evaluates_nothing_at_a_tick() -> None:
    story = Story(make_rule(), begin=None)
    story.send(0.5, call(0.5))
    assert story.tick(100) == []


@pytest.mark.parametrize(("interval", "instants"), [("1s", [1, 2, 3, 4, 5, 6]), ("2s", [2, 4, 6]), ("5s", [5])])
def test_instants_are_multiples_of_the_interval_whenever_the_alerter_started(
    interval: str, instants: list[float]
) -> None:
    story = Story(make_rule(eval_interval=interval), begin=0.3)
    story.send(0.5, call(0.5))
    assert [at(event) for event in story.tick(6.9)] == instants


def test_a_window_excludes_its_end_and_includes_its_start() -> None:
    #   0         10
    #   [---------)      window of 10 s at 10: b and c are inside
    #  a b       c d  e
    story = Story(make_rule())
    story.send(9.9, call(-0.001), call(0), call(9.999), call(10), call(12))
    events = story.tick(13 + SETTLED)
    assert brief(events) == [(10, "firing", 2), (11, "firing", 2), (12, "firing", 2), (13, "firing", 3)]


def test_a_call_counts_at_the_time_it_ended_however_late_it_arrives() -> None:
    story = Story(make_rule())
    story.send(8.5, call(1.5), call(-5))
    assert brief(story.tick(12 + SETTLED)) == [
        (9, "firing", 1),
        (10, "firing", 1),
        (11, "firing", 1),
        (12, "resolved", 0),
    ]


def test_a_call_that_ends_an_hour_ahead_counts_at_its_arrival() -> None:
    story = Story(make_rule())
    story.send(1.5, make_span(ended_ns=ns(3600), arrived_ns=ns(1.5)))
    assert brief(story.tick(2 + SETTLED)) == [(2, "firing", 1)]


def test_a_rule_on_low_values_is_evaluated_five_seconds_later() -> None:
    story = Story(make_rule(name="up"), make_rule(name="down", op="lt", threshold=100))
    story.send(0.5, call(0.5))
    assert [event.alert for event in story.tick(5.9 + SETTLED)] == ["up"] * 5
    down = [event for event in story.tick(6 + SETTLED) if event.alert == "down"]
    assert brief(down) == [(1, "firing", 1)]


def test_a_span_that_arrives_within_the_five_seconds_counts_for_a_rule_on_low_values() -> None:
    story = Story(make_rule(op="lt", threshold=2, window="3s"))
    story.send(0.5, call(0.5))
    story.send(5.9, call(0.7))
    assert story.tick(6 + SETTLED) == []


def test_a_late_span_at_the_start_of_the_window_counts_for_a_rule_on_low_values() -> None:
    """The window [2, 12) is evaluated at stream time 17, so the span stored at 16.5 counts."""
    story = Story(make_rule(op="lte", threshold=1000))
    story.send(11.5, call(11.5))
    story.send(16.5, call(2.5))
    story.tick(16.9 + SETTLED)
    assert brief(story.tick(17 + SETTLED)) == [(12, "firing", 2)]


@pytest.mark.parametrize(
    ("rule", "stored"),
    [
        (make_rule(window="10m"), 63.5),
        (make_rule(window="10m", op="lte", threshold=1000), 65.5),
    ],
)
def test_a_window_of_wide_buckets_ends_at_its_instant(rule: Rule, stored: float) -> None:
    """The span that ends at 65.5 is in the same bucket of 6 s as the instant 64, but does not count at this instant."""
    story = Story(rule)
    story.send(10, call(9.5))
    story.send(stored, make_span(ended_ns=ns(65.5), arrived_ns=ns(stored)))
    story.tick(70)
    assert [event.span_count for event in story.published if at(event) == 64] == [1]


def test_a_window_is_never_shorter_than_configured() -> None:
    #     8.5  9   10
    #     [----|----)     window of 1500 ms at 10; buckets of 1 s begin at 8, 9 and 10
    #      a
    story = Story(make_rule(window="1500ms"))
    story.send(9.9, call(8.6))
    assert brief(story.tick(10 + SETTLED)) == [(10, "firing", 1)]


# --- what is published, and what cannot be decoded


def test_an_event_goes_to_the_subject_of_its_rule_with_a_unique_id() -> None:
    rule = make_rule(name="Kosten/h > 5 €")
    alerter = AlerterMachine([rule], "my shop")
    alerter.caught_up = True
    alerter.tick(ns(0))
    payload = encode_batches([Batch(id="a", spans=[call(0.5)])])
    alerter.fold(Message("tokentrace.spans.my=20shop.0", payload, 1, ns(0.5), {}), CREATED)
    effects = alerter.tick(ns(2.5))
    assert {effect.subject for effect in effects} == {subjects.alerts("my shop", rule.name)}
    assert [effect.id for effect in effects] == [
        f"{rule.rule_id}@{render_instant(ns(second))}@firing@{hashlib.sha256(rule.name.encode()).hexdigest()[:24]}"
        for second in (1, 2)
    ]


def test_an_unreadable_message_is_skipped_and_due_instants_are_evaluated() -> None:
    story = Story(make_rule())
    story.send(0.5, call(0.5))
    with pytest.raises(Rejected):
        story.alerter.fold(Message("tokentrace.spans.default.0", b"\xc1rubbish", 2, ns(1.5), {}), CREATED)
    assert story.alerter.position is not None
    assert story.alerter.position.sequence == 2
    assert brief(story.tick(1.5)) == [(1, "firing", 1)]


def test_a_message_of_a_shard_beyond_the_shard_count_is_rejected_and_the_next_one_is_folded() -> None:
    story = Story(make_rule())
    payload = encode_batches([Batch(id="a", spans=[call(0.5)])])
    with pytest.raises(Rejected, match="shard count"):
        story.alerter.fold(Message("tokentrace.spans.default.1", payload, 1, ns(0.6), {}), CREATED)
    story.alerter.fold(Message("tokentrace.spans.default.0", payload, 2, ns(0.7), {}), CREATED)
    assert brief(story.tick(1.5)) == [(1, "firing", 1)]


def test_a_message_about_a_deletion_belongs_to_no_shard_and_changes_no_rule() -> None:
    story = Story(make_rule())
    payload = encode_batches([Batch(id="a", spans=[call(0.5)])])
    story.alerter.fold(Message(subjects.tombstones("default"), payload, 1, ns(0.6), {}), CREATED)
    assert story.alerter.position == Position(CREATED, 1)
    assert story.tick(1.5) == []


def test_a_gap_or_a_rewound_log_moves_the_position_and_no_batch_counts_twice() -> None:
    story = Story(make_rule(cooldown="1h"))
    breach(story, [0.5])
    story.tick(1.5)
    story.alerter.lost(2, 9, CREATED)
    assert story.alerter.position == Position(CREATED, 9)
    story.alerter.rewound(CREATED + 1)
    assert story.alerter.position == Position(CREATED + 1, 0)
    story.alerter.fold(story.log[0], CREATED + 1)
    story.tick(2.5)
    (shown,) = story.alerter.render(ns(2.5))
    assert shown["span_count"] == 1


def saved_state() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return (decoded state, parts) of a snapshot of an alerter with the rule ``any``."""
    story = Story(make_rule())
    breach(story, [0.5, 1.5])
    story.tick(2.5)
    saved = story.alerter.snapshot({})
    return msgspec.msgpack.decode(saved.state()), parts_of(saved)


def invalid_states() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of states that are a valid one but for the part in the name."""
    encode = msgspec.msgpack.encode
    yield from {"empty": b"", "no msgpack": b"\xc1", "null": encode(None), "list": encode([])}.items()
    valid, _ = saved_state()
    fingerprint = valid["watches"]["any"]["fingerprint"]
    for key in valid:
        yield f"without {key}", encode({name: value for name, value in valid.items() if name != key})
        yield f"{key} is 1.5", encode({**valid, key: 1.5})
    for version in (valid["version"] - 2, valid["version"] + 1):
        yield f"version {version}", encode({**valid, "version": version})
    yield "the version before, without its batches", encode({**valid, "version": valid["version"] - 1})
    yield "no shard", encode({**valid, "dedup": {}})
    yield "no calls", encode({**valid, "dedup": {0: {**valid["dedup"][0], "calls": None}}})
    yield "another capacity", encode({**valid, "dedup": {0: {**valid["dedup"][0], "calls": [2 * CAPACITY, 2, 0]}}})
    yield "watches is a list", encode({**valid, "watches": [1]})
    yield "a rule is a number", encode({**valid, "watches": {"any": 1}})
    yield "a rule has only a fingerprint", encode({**valid, "watches": {"any": {"fingerprint": fingerprint}}})


def test_the_state_that_the_invalid_ones_are_made_from_is_valid() -> None:
    alerter = AlerterMachine([make_rule()], "default", capacity=CAPACITY)
    state, parts = saved_state()
    alerter.restore(msgspec.msgpack.encode(state), parts)
    assert alerter.position is not None
    assert len(alerter.dedup[0].calls) == 2


@pytest.mark.parametrize("state", [pytest.param(state, id=name) for name, state in invalid_states()])
def test_an_invalid_snapshot_is_refused_and_the_alerter_still_works(state: bytes) -> None:
    story = Story(make_rule(), begin=None)
    with pytest.raises(Rejected):
        story.alerter.restore(state, saved_state()[1])
    assert story.alerter.position is None
    story.alerter.caught_up = True
    story.tick(0)
    breach(story, [0.5])
    assert len(story.tick(1.5)) == 1


def test_a_truncated_snapshot_is_refused() -> None:
    story = Story(*RULES)
    breach(story, [0.5, 1.5])
    story.tick(2.5)
    saved = story.alerter.snapshot({})
    state, parts = saved.state(), parts_of(saved)
    for size in range(0, len(state), max(1, len(state) // 40)):
        with pytest.raises(Rejected):
            AlerterMachine(RULES, "default", capacity=CAPACITY).restore(state[:size], parts)


@pytest.mark.parametrize("parts", [{}, {"0.0": b""}, {"0.0": bytes(32 * CAPACITY - 1)}, {"1.0": bytes(32 * CAPACITY)}])
def test_a_snapshot_whose_calls_are_missing_or_damaged_is_refused(parts: dict[str, bytes]) -> None:
    alerter = AlerterMachine([make_rule()], "default", capacity=CAPACITY)
    with pytest.raises(Rejected, match="memory of calls"):
        alerter.restore(msgspec.msgpack.encode(saved_state()[0]), parts)
    assert (alerter.position, len(alerter.dedup[0].calls)) == (None, 0)


# --- what is shown


def test_before_its_first_evaluation_a_rule_shows_no_values() -> None:
    (shown,) = AlerterMachine([make_rule()], "default").render(ns(0))
    assert shown["last_evaluated"] is shown["last_fired"] is shown["current_value"] is shown["silenced_until"] is None
    assert shown["firing"] is shown["silenced"] is False


def test_a_rule_shows_the_values_of_its_last_evaluation() -> None:
    story = Story(make_rule(window="3s", cooldown="1h"))
    breach(story, [0.5])
    story.tick(2.5)
    (shown,) = story.alerter.render(ns(2.5))
    assert shown["last_evaluated"] == render_instant(ns(2))
    assert shown["last_fired"] == render_instant(ns(1))
    assert (shown["current_value"], shown["firing"], shown["state"]) == (1, True, "firing")
    assert shown["why_not_fired"] == "cooldown"
    story.tick(9.5)
    (shown,) = story.alerter.render(ns(9.5))
    assert (shown["current_value"], shown["firing"], shown["state"]) == (None, False, "resolved")
    assert shown["last_fired"] == render_instant(ns(1))


def test_a_silenced_rule_shows_a_breach_and_publishes_nothing() -> None:
    story = Story(make_rule(silenced=True))
    breach(story, [0.5])
    assert story.tick(2.5) == []
    (shown,) = story.alerter.render(ns(2.5))
    assert (shown["firing"], shown["silenced"], shown["current_value"]) == (True, True, 1)
    assert (shown["last_fired"], shown["why_not_fired"]) == (None, "silenced")
