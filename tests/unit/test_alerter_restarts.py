"""The alerter after a kill, beside another alerter, and with changed rules."""

from __future__ import annotations

import msgspec
import pytest

from kit.alerter_log import CREATED, SETTLED, Story, at, breach, brief, call, make_rule, ns
from kit.whole_snapshots import CAPACITY, save
from tokentrace.errors import Rejected
from tokentrace.units import render_instant
from tokentrace_alerter.machine import AlerterMachine

# --- after a kill


def test_a_firing_later_than_the_snapshot_starts_the_cooldown() -> None:
    #   0  1  2  3  4  5  6  7  8  9  10 11 12
    #   S  F      killed                 F    S = snapshot, F = firing; cooldown 10 s
    story = Story(make_rule(cooldown="10s", window="5s"))
    snapshot = save(story.alerter)
    breach(story, [0.5, 1.5, 2.5])
    assert brief(story.tick(3.3)) == [(1, "firing", 1)]
    story.restart(snapshot)
    assert story.tick(3.4) == []
    breach(story, [3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5])
    assert [at(event) for event in story.tick(12.3)] == [11]


@pytest.mark.parametrize("twice", [False, True])
def test_the_cooldown_of_a_resolved_firing_survives_a_kill(twice: bool) -> None:
    #   0  1  2  3  4         6 ...      31
    #   S  F     R   killed   breach     F       S = snapshot, F = firing, R = resolution; window 2 s, cooldown 30 s
    story = Story(make_rule(cooldown="30s", window="2s"))
    snapshot = save(story.alerter)
    breach(story, [0.5])
    assert brief(story.tick(4.3)) == [(1, "firing", 1), (3, "resolved", 0)]
    story.restart(snapshot)
    if twice:
        for event in story.published:
            story.alerter.apply_event(event)
    breach(story, [6.5, 8.5])
    assert story.tick(9.3) == []
    breach(story, [29.5, 30.5])
    assert [at(event) for event in story.tick(31.3)] == [31]


def test_nothing_is_published_for_instants_up_to_the_last_event() -> None:
    story = Story(make_rule())
    snapshot = save(story.alerter)
    breach(story, [0.5, 1.5, 2.5])
    assert len(story.tick(3.3)) == 3
    story.restart(snapshot)
    assert brief(story.tick(4.3)) == [(4, "firing", 3)]


@pytest.mark.parametrize("event", ["firing", "resolved"])
def test_a_snapshot_between_deciding_and_publishing_loses_no_event(event: str) -> None:
    """A snapshot may be saved while an event waits to be published; after a kill, only the snapshot has this event."""
    story = Story(make_rule(cooldown="1h", window="2s"))
    story.send(0.5, call(0.5))
    if event == "resolved":
        assert len(story.tick(1 + SETTLED)) == 1
    story.send(9.5, call(9.4))
    snapshot = save(story.alerter)
    story.restart(snapshot)
    expected = [(1, "firing", 1)] if event == "firing" else []
    assert brief(story.tick(9.5)) == [*expected, (3, "resolved", 0)]


def test_an_event_that_was_decided_before_the_snapshot_and_not_stored_starts_no_cooldown() -> None:
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, call(0.5))
    assert len(story.tick(1 + SETTLED)) == 1
    snapshot = save(story.alerter)
    story.published.clear()
    story.restart(snapshot)
    assert [event.status for event in story.tick(2 + SETTLED)] == ["firing"]


def test_events_applied_before_an_unreadable_snapshot_start_the_cooldown() -> None:
    story = Story(make_rule(cooldown="30s"))
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1
    story.alerter = AlerterMachine(story.rules, "default", capacity=CAPACITY)
    for event in story.published:
        story.alerter.apply_event(event)
    with pytest.raises(Rejected):
        story.alerter.restore(b"rubbish", {})
    for message in story.log:
        story.alerter.fold(message, CREATED)
    story.alerter.caught_up = True
    story.tick(2.5)
    breach(story, [3.5])
    assert story.tick(6) == []


def test_without_a_snapshot_the_events_start_the_cooldown() -> None:
    story = Story(make_rule(cooldown="30s", window="60s"))
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1
    story.restart(None)
    assert story.tick(20) == []
    assert brief(story.tick(31 + SETTLED)) == [(31, "firing", 1)]


def test_an_episode_that_began_before_a_kill_is_resolved_after_it() -> None:
    story = Story(make_rule(cooldown="30s", window="3s"))
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1
    story.restart(None)
    story.tick(5)
    (event,) = story.tick(7)
    assert (event.status, event.starts_at) == ("resolved", render_instant(ns(1)))


@pytest.mark.parametrize("order", ["as published", "twice", "late"])
def test_an_event_may_be_applied_again_or_after_a_later_one(order: str) -> None:
    story = Story(make_rule(cooldown="5s", window="60s"))
    breach(story, [0.5])
    assert [at(event) for event in story.tick(7 + SETTLED)] == [1, 6]
    events = {"as published": [0, 1], "twice": [0, 1, 0, 1], "late": [0]}[order]
    for index in events:
        story.alerter.apply_event(story.published[index])
    assert [at(event) for event in story.tick(16 + SETTLED)] == [11, 16]


def test_an_event_of_a_removed_rule_is_ignored() -> None:
    story, old = Story(make_rule()), Story(make_rule(name="gone"))
    breach(old, [0.5])
    for event in old.tick(2):
        story.alerter.apply_event(event)
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1


# --- after a clock that was ahead


def test_a_rule_that_was_evaluated_ahead_of_the_brokers_time_starts_anew_with_a_backfill() -> None:
    """An alerter that follows the clock of its host may leave such a snapshot, and events that are set aside."""
    story = Story(make_rule(window="5s", cooldown="0s"), make_rule(name="hourly", window="1d", eval_interval="1h"))
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1
    ahead = story.alerter.tick(ns(600))
    assert ahead
    for effect in ahead[:-1]:
        story.alerter.performed(effect)
    story.restart(save(story.alerter))
    assert story.alerter.evaluators["any"].next_ns == ns(600)
    story.alerter.start_anew_if_ahead(ns(2.5))
    assert [name for name, watch in story.alerter.evaluators.items() if watch.backfilling] == ["any"]
    story.backfill(ns(2.5))
    assert brief(story.tick(4.5)) == [(3, "firing", 1), (4, "firing", 1)]
    breach(story, [5.5])
    assert brief(story.tick(12)) == [
        (5, "firing", 1),
        (6, "firing", 1),
        *[(n, "firing", 1) for n in range(7, 11)],
        (11, "resolved", 0),
    ]


def test_a_snapshot_of_this_moment_is_kept() -> None:
    story = Story(make_rule())
    breach(story, [0.5, 1.5])
    story.tick(2.4)
    story.restart(save(story.alerter))
    story.alerter.start_anew_if_ahead(ns(2.1))
    assert not any(watch.backfilling for watch in story.alerter.evaluators.values())


# --- two alerters


def test_a_firing_of_another_alerter_starts_the_cooldown() -> None:
    story = Story(make_rule(cooldown="5s", window="60s"))
    other = Story(make_rule(cooldown="5s", window="60s"))
    breach(other, [0.5])
    (fired,) = other.tick(2.9)
    story.alerter.apply_event(fired)
    breach(story, [0.5])
    assert [at(event) for event in story.tick(12)] == [6, 11]


def test_a_firing_of_another_alerter_that_replaced_an_event_starts_the_cooldown() -> None:
    """
    An alerter whose event the broker refuses applies the event of the other alerter and decides again.

    Both alerters know the firing at 1. This one has not read all messages: at 3 and 4 it finds too few calls, at 5
    none, so it resolves the rule. The other one fired at 4, and the broker accepted that event, so nothing may fire
    before 7.
    """
    #   0    1    2    3    4    5    6    7
    #     aa |F     b       |F'  |R cc     |F    F' = firing of the other; window 2 s, min_spans 2, cooldown 3 s
    story = Story(make_rule(cooldown="3s", window="2s", min_spans=2))
    story.send(0.5, call(0.5), call(0.5))
    story.send(2.5, call(2.5))
    mine = story.tick(5 + SETTLED)
    assert brief(mine) == [(1, "firing", 2), (5, "resolved", 0)]
    story.alerter.apply_event(msgspec.structs.replace(mine[0], fired_at=render_instant(ns(4))))
    story.send(5.5, call(5.4), call(5.5))
    assert story.tick(6 + SETTLED) == []
    assert brief(story.tick(7 + SETTLED)) == [(7, "firing", 2)]


# --- rules that are changed


def test_a_new_rule_is_backfilled_and_does_not_fire_for_earlier_instants() -> None:
    old, new = make_rule(name="old", cooldown="1h"), make_rule(name="new", window="60s")
    story = Story(old)
    breach(story, [0.5, 1.5, 2.5])
    assert len(story.tick(3.5)) == 1
    story.restart(save(story.alerter), old, new, caught_up=False)
    assert story.alerter.position is not None
    assert story.alerter.position.sequence == 3
    assert story.tick(20.5) == []
    shown = {rule["name"]: rule for rule in story.alerter.render(ns(20.5))}
    assert (shown["new"]["state"], shown["new"]["last_evaluated"]) == ("warming", None)
    story.alerter.caught_up = True
    story.backfill(ns(20.5))
    assert [event for event in story.tick(20.5) if event.alert == "new"] == []
    events = story.tick(21.5)
    assert brief(event for event in events if event.alert == "new") == [(21, "firing", 3)]


def test_a_new_rule_is_warming_until_its_window_is_covered() -> None:
    new = make_rule(name="new", window="60s", threshold=99)
    story = Story(make_rule(name="old"), began=0.5)
    breach(story, [0.5])
    story.tick(5)
    story.restart(save(story.alerter), new)
    for now, state in ((6, "warming"), (60.4, "warming"), (60.6, "inactive")):
        story.tick(now)
        (shown,) = story.alerter.render(ns(now))
        assert shown["state"] == state, now


def test_a_rule_keeps_its_cooldown_when_another_one_is_added() -> None:
    old = make_rule(name="old", cooldown="30s", window="60s")
    story = Story(old)
    breach(story, [0.5])
    assert len(story.tick(1.5)) == 1
    story.restart(save(story.alerter), old, make_rule(name="new", threshold=99))
    story.tick(5)
    assert story.tick(30.9 + SETTLED) == []
    assert [at(event) for event in story.tick(40)] == [31]


def test_removing_a_rule_keeps_the_cooldown_of_another() -> None:
    stays = make_rule(name="stays", cooldown="30s", window="60s")
    story = Story(stays, make_rule(name="goes"))
    breach(story, [0.5])
    story.tick(1.5)
    story.restart(save(story.alerter), stays)
    assert story.alerter.position is not None
    assert story.alerter.position.sequence == 1
    assert [at(event) for event in story.tick(40)] == [31]


@pytest.mark.parametrize(("before", "after", "instants"), [("7s", "5s", [5, 10, 15]), ("1h", "5s", [5, 10, 15])])
def test_a_rule_with_a_new_interval_is_evaluated_at_its_new_instants(
    before: str, after: str, instants: list[float]
) -> None:
    story = Story(make_rule(eval_interval=before, window="60s"))
    breach(story, [0.5])
    story.restart(save(story.alerter), make_rule(eval_interval=after, window="60s"))
    story.tick(0.9)
    assert [at(event) for event in story.tick(16)] == instants


def test_a_new_threshold_applies_to_spans_folded_before_it_was_set() -> None:
    story = Story(make_rule(threshold=99))
    breach(story, [0.5])
    story.tick(1.5)
    story.restart(save(story.alerter), make_rule(threshold=1))
    assert brief(story.tick(2.5)) == [(2, "firing", 1)]
