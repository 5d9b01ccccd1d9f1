"""Rules that are added, removed and changed, at run time and between restarts."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.alert_recount import (
    Stream,
    Told,
    assert_told,
    flat,
    make_sent,
    parse,
    random_rules,
    random_streams,
    recount,
)
from kit.alert_story import (
    LONG_AGO,
    SETTLED,
    Story,
    at,
    backfill,
    brief,
    call,
    make_rule,
    ns,
    seconds,
    slow,
    states_shown,
)
from kit.examples import examples
from tokentrace.bus import Message
from tokentrace.units import SECOND
from tokentrace_alerter.event_memory import event_id

# --- rules that are added and removed during traffic


def after(expected: Sequence[Told], instant: float) -> list[Told]:
    """Return the events after *instant*, without the resolution of an episode that began at or before it."""
    later, begun = [], set()
    for event in expected:
        if event.instant > instant and (event.status == "firing" or event.group in begun):
            begun.add(event.group)
            later.append(event)
    return later


@settings(max_examples=examples(120), deadline=None)
@given(written=random_rules(plain=True), other=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_a_rule_added_at_run_time_publishes_what_it_would_have_published_if_it_had_always_existed(
    written: dict[str, Any], other: dict[str, Any], stream: Stream, seed: int
) -> None:
    """Messages arrive during the backfill. After its end the rule is evaluated over all spans, the older ones too."""
    dice, messages = random.Random(seed), make_sent(stream)
    rule, neighbour = parse(written, name="new"), parse(other, name="old")
    story = Story(neighbour)
    added, ready = sorted((dice.randrange(len(messages)), dice.randrange(len(messages))))
    older: list[Message] = []
    memory, started = story.alerter.new_memory(), 0.0
    for number, message in enumerate(messages):
        if number == added:
            story.alerter.add_rule(rule)
            older = list(story.log)
            assert story.shown(message[0].stored, "new")["state"] == "warming"
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
        if dice.random() < 0.2:
            id = dice.choice([f"request-{len(story.log)}", "again"])
            story.send(message[0].stored, *(sent_span.span for sent_span in message), id=id)
        for _ in range(dice.choice([0, 1, 5])):
            if older:
                backfill(story.alerter, "new", older.pop(0), memory)
        story.tick(message[0].stored + dice.choice([0, SETTLED]))
        assert [event for event in story.published if event.alert == "new"] == [] or number > ready
        if number == ready:
            while older:
                backfill(story.alerter, "new", older.pop(0), memory)
            started = round(message[0].stored + dice.choice([0, 0.1, SETTLED]), 3)
            story.alerter.finish_backfill("new", ns(LONG_AGO), ns(started))
    end = int(messages[-1][0].stored) + 20
    story.tick(end + 5 + SETTLED)
    mine = [event for event in story.published if event.alert == "new" and at(event) <= end]
    assert_told(mine, after(recount(written, flat(messages), end), started), starts=False)
    theirs = [event for event in story.published if event.alert == "old" and at(event) <= end]
    assert_told(theirs, recount(other, flat(messages), end))


@settings(max_examples=examples(60), deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_adding_removing_and_silencing_rules_changes_no_other_rule(
    written: dict[str, Any], stream: Stream, seed: int
) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story = Story(parse(written))
    for message in messages:
        for _ in range(dice.choice([0, 1, 2])):
            name = dice.choice(["one", "two"])
            action = dice.choice(["add", "finish_backfill", "remove", "silence", "backfill"])
            now = ns(message[0].stored)
            if action == "add":
                story.alerter.add_rule(parse({**written, "name": name, "window": dice.choice(["1s", "10s"])}))
            elif action == "finish_backfill":
                story.alerter.finish_backfill(name, now - 60 * SECOND, now)
            elif action == "remove":
                story.alerter.remove_rule(name)
            elif action == "silence":
                story.alerter.silence(name, dice.choice([0, now + 5 * SECOND]))
            else:
                backfill(story.alerter, name, dice.choice(story.log), story.alerter.new_memory())
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
        story.tick(message[0].stored)
    for name in ("one", "two"):
        story.alerter.remove_rule(name)
    end = int(messages[-1][0].stored) + 20
    story.tick(end + 5 + SETTLED)
    mine = [event for event in story.published if event.alert == "any" and at(event) <= end]
    assert_told(mine, recount(written, flat(messages), end))


def test_a_rule_added_before_the_first_message_is_evaluated_from_then_on() -> None:
    story = Story(began=None)
    story.alerter.add_rule(make_rule())
    story.alerter.finish_backfill("any", ns(0), ns(0))
    story.send(0.5, slow(0.5, 600))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]


def test_a_rule_is_not_evaluated_during_backfill_and_shows_why() -> None:
    story = Story()
    story.alerter.add_rule(make_rule())
    story.send(0.5, slow(0.5, 600))
    assert story.tick(10) == []
    shown = story.shown(10)
    assert (shown["state"], shown["why_not_fired"], shown["last_evaluated"]) == ("warming", "warming", None)
    assert shown["next_evaluation"] is None


def test_a_backfilled_rule_is_warming_until_its_window_is_covered() -> None:
    story = Story()
    story.alerter.add_rule(make_rule(metric="span_count", op="lt", threshold=5, window="10s"))
    story.alerter.finish_backfill("any", ns(0), ns(3))
    assert states_shown(story, 12, 5) == "wwwwwwwwwnnn"


def test_an_added_rule_does_not_fire_for_earlier_instants() -> None:
    story = Story()
    memory = story.alerter.new_memory()
    for second in range(1, 6):
        story.send(second - 0.5, slow(second - 0.5, 600))
    story.alerter.add_rule(make_rule(cooldown="0s", window="3s"))
    for message in story.log:
        backfill(story.alerter, "any", message, memory)
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(5.7))
    assert brief(story.tick(9 + SETTLED)) == [(6, "firing"), (7, "firing"), (8, "resolved")]


def test_a_message_that_is_backfilled_twice_counts_once() -> None:
    story = Story()
    memory = story.alerter.new_memory()
    message = story.send(0.5, call(0.5), call(0.5))
    story.alerter.add_rule(make_rule(metric="span_count", op="gte", threshold=1, window="10s"))
    for _ in range(3):
        backfill(story.alerter, "any", message, memory)
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(0.6))
    (event,) = story.tick(1 + SETTLED)
    assert event.span_count == 2


def test_a_rule_changed_at_run_time_is_evaluated_in_its_new_form() -> None:
    story = Story(make_rule(cooldown="0s"))
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.alerter.add_rule(make_rule(cooldown="0s", threshold=1000))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(1.3))
    story.send(1.5, slow(1.5, 700))
    assert brief(story.tick(2 + SETTLED)) == [(2, "resolved")]


def test_a_removed_rule_publishes_nothing_more_not_even_waiting_events() -> None:
    story = Story(make_rule(cooldown="0s"), make_rule(name="other", cooldown="0s"))
    story.send(0.5, slow(0.5, 600))
    story.send(1.5, slow(1.5, 600))
    story.alerter.remove_rule("any")
    assert [(event.alert, at(event)) for event in story.tick(2 + SETTLED)] == [("other", 1), ("other", 2)]
    assert [shown["name"] for shown in story.alerter.render(ns(3))] == ["other"]


def test_a_rule_with_the_name_of_a_removed_one_starts_without_state() -> None:
    """The new rule inherits neither the cooldown nor the episode of the removed one."""
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, slow(0.5, 600))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]
    story.alerter.remove_rule("any")
    story.alerter.add_rule(make_rule(cooldown="1h"))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(2))
    assert story.shown(2)["state"] != "firing"
    story.send(2.5, slow(2.5, 600))
    events = story.tick(3 + SETTLED)
    assert [(at(event), event.status, seconds(event.starts_at)) for event in events] == [
        (3, "firing", 3),
        (1, "resolved", 1),
    ]


def test_a_rule_created_again_starts_without_state_after_a_restart_too() -> None:
    """An alerter that ran at the deletion and one that started later must reach the same state."""
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.alerter.remove_rule("any")
    story.tick(1.5)
    story.alerter.add_rule(make_rule(cooldown="1h"))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(2))
    story.tick(3)
    assert (story.shown(3)["state"], story.alerter.open_episodes()) == ("inactive", [])
    story.restart(story.snapshot(), make_rule(cooldown="1h"))
    assert (story.shown(3)["firing"], story.alerter.open_episodes()) == (False, [])
    assert story.tick(5) == []


# --- restarts with changed rules


def test_a_rule_misses_no_span_while_another_one_is_added() -> None:
    """A second rule is added to the configuration while the alerter is down; the first one counts every span."""
    #   second  123456789012
    #   seen    .....####...    snapshot before second 5, restarted with a second rule after 12
    old, new = make_rule(), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 13):
        if second == 5:
            snapshot = story.snapshot()
        story.send(second - 0.5, slow(second - 0.5, 600 if 5 < second < 10 else 300))
    story.restart(snapshot, old, new)
    story.tick(12 + SETTLED)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing"), (10, "resolved")]


def test_a_breach_stays_pending_while_another_rule_is_added() -> None:
    old, new = make_rule(**{"for": "5s"}), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 10):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second == 4:
            story.restart(story.snapshot(), old, new)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing")]


def test_a_snapshot_taken_during_a_backfill_holds_the_other_rules() -> None:
    old, new = make_rule(**{"for": "5s"}), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 10):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second == 4:
            story.alerter.add_rule(new)
            story.restart(story.snapshot(), old, new)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing")]


def test_a_new_rule_of_the_configuration_is_backfilled() -> None:
    old, new = make_rule(), make_rule(name="new", metric="span_count", op="gte", threshold=3, window="60s")
    story = Story(old)
    for second in (1, 2, 3):
        story.send(second - 0.5, slow(second - 0.5, 300))
        story.tick(second + SETTLED)
    story.restart(story.snapshot(), old, new)
    assert [(event.alert, at(event), event.span_count) for event in story.tick(5 + SETTLED)] == [("new", 3, 3)]


@pytest.mark.parametrize("key", ["threshold", "cooldown", "level", "silenced", "for", "recovery_threshold"])
def test_a_change_that_does_not_affect_the_window_keeps_the_fingerprint(key: str) -> None:
    value = {
        "threshold": 400,
        "cooldown": "2s",
        "level": "critical",
        "silenced": True,
        "for": "1s",
        "recovery_threshold": 100,
    }[key]
    assert make_rule(**{key: value}).fingerprint == make_rule().fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group_by", "user"),
        ("change", "percent"),
        ("change", "absolute"),
        ("window", "2s"),
        ("filter", {"model": "o3"}),
        ("metric", "hops"),
        ("op", "lt"),
        ("no_data", "fire"),
    ],
)
def test_a_change_that_affects_the_window_changes_the_fingerprint(key: str, value: Any) -> None:
    assert make_rule(**{key: value}).fingerprint != make_rule().fingerprint


def test_rules_on_different_data_have_different_fingerprints() -> None:
    rules = [
        make_rule(group_by=group_by, change=change, metric=metric)
        for group_by in (None, "user", "absolute")
        for change in (None, "absolute", "percent")
        for metric in ("latency_avg", "hops")
    ]
    assert Counter(rule.fingerprint for rule in rules).most_common(1)[0][1] == 1


# --- rules with the same rule id


def test_events_of_two_rules_with_the_same_rule_id_have_different_ids() -> None:
    """A rule id has 32 bits of a hash, so among 10,000 rules two have the same with a probability of 1 %."""
    seen: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    for number in range(400_000):
        name = f"rule-{number}"
        other = seen.setdefault(hashlib.sha256(name.encode()).hexdigest()[:8], name)
        if other != name:
            pair = (other, name)
            break
    assert pair is not None
    rules = [make_rule(name=name) for name in pair]
    assert rules[0].rule_id == rules[1].rule_id
    story = Story(*rules)
    story.send(0.5, slow(0.5, 600))
    events = story.tick(1 + SETTLED)
    assert {event.alert for event in events} == set(pair)
    assert len({event_id(event) for event in events}) == 2
