"""Every episode has an end: also if its rule is deleted, replaced, changed or removed from the configuration."""

from __future__ import annotations

from typing import Any

import pytest

from kit.alert_story import LONG_AGO, SETTLED, Story, at, make_rule, ns, slow
from tokentrace.records import AlertEvent
from tokentrace.units import MS
from tokentrace_alerter.event_memory import event_id
from tokentrace_alerter.rules import Rule


def fire(*rules: Rule, **span: Any) -> Story:
    """Return a story whose rules have fired at 1."""
    story = Story(*rules)
    story.send(0.5, slow(0.5, 600, **span))
    assert {event.status for event in story.tick(1 + SETTLED)} == {"firing"}
    return story


def brief(events: list[AlertEvent]) -> list[tuple[float, str, Any]]:
    return [(at(event), event.status, event.ended_by) for event in events]


def replace(story: Story, rule: Rule, since: float) -> None:
    """Replace the rule of that name *since* seconds after the start, as the alerter does."""
    story.alerter.remove_rule(rule.name, ns(since))
    story.alerter.add_rule(rule)
    story.alerter.finish_backfill(rule.name, ns(LONG_AGO), ns(since))


def test_the_episode_of_a_deleted_rule_ends_at_the_deletion_and_says_so() -> None:
    story = fire(make_rule(level="critical", filter={"model": "gpt-4o"}), model="gpt-4o")
    story.alerter.remove_rule("any", ns(1.5))
    [event] = story.tick(1.6)
    [fired, _] = story.published
    assert brief([event]) == [(1.5, "resolved", "deleted")]
    assert (event.starts_at, event.ends_at, event.value, event.span_count) == (fired.starts_at, event.fired_at, None, 0)
    assert (event.level, event.filter, event.metric, event.rule_id) == (
        "critical",
        {"model": "gpt-4o"},
        fired.metric,
        fired.rule_id,
    )
    assert event.message == "latency_avg is not watched any more: the rule was deleted"
    assert story.tick(100) == []


def test_a_rule_that_is_not_firing_is_deleted_without_an_event() -> None:
    story = fire(make_rule())
    assert brief(story.tick(3 + SETTLED)) == [(2, "resolved", "no_data")]
    story.alerter.remove_rule("any", ns(3.5))
    assert story.tick(100) == []


def test_each_instance_of_a_deleted_rule_is_resolved() -> None:
    story = Story(make_rule(group_by="caller"))
    story.send(0.5, *(slow(0.5, 600, caller=caller) for caller in ("a", "b", "c")))
    story.tick(1 + SETTLED)
    story.alerter.remove_rule("any", ns(1.5))
    events = story.tick(1.6)
    assert [(event.group, event.ended_by) for event in events] == [({"caller": caller}, "deleted") for caller in "abc"]


def test_a_silence_does_not_hold_back_the_end_of_a_deleted_rule() -> None:
    story = fire(make_rule())
    story.silence(1000)
    story.alerter.remove_rule("any", ns(1.5))
    assert brief(story.tick(1.6)) == [(1.5, "resolved", "deleted")]


@pytest.mark.parametrize("snapshot", ["before", "after", "none"])
def test_a_deletion_is_told_after_a_kill_too(snapshot: str) -> None:
    story = fire(make_rule(), make_rule(name="other", threshold=1e9))
    saved = story.snapshot() if snapshot == "before" else None
    story.alerter.remove_rule("any", ns(1.5))
    first = story.alerter.tick(ns(1.6))
    if snapshot == "after":
        saved = story.snapshot()
    # Killed before the event was published. The entry of the bucket says when the rule was deleted.
    story.restart(saved, make_rule(name="other", threshold=1e9))
    story.alerter.ignore_events("any", ns(1.5))
    [event] = story.tick(2)
    assert brief([event]) == [(1.5, "resolved", "deleted")]
    assert [event_id(event)] == [effect.id for effect in first]
    assert story.tick(100) == []


def test_all_alerters_end_the_episode_of_a_deleted_rule_with_the_same_event() -> None:
    stories = [fire(make_rule()) for _ in range(3)]
    for late, story in enumerate(stories):
        story.alerter.remove_rule("any", ns(1.5))
        story.tick(2 + late)
    assert len({event_id(story.published[-1]) for story in stories}) == 1


def test_the_end_that_another_alerter_published_is_not_published_again() -> None:
    story, other = fire(make_rule()), fire(make_rule())
    for each in (story, other):
        each.alerter.remove_rule("any", ns(1.5))
    [ended] = other.tick(1.6)
    story.alerter.apply_event(ended)
    assert story.tick(100) == []


def test_a_replaced_rule_ends_its_episode_and_the_new_one_begins_its_own() -> None:
    story = fire(make_rule(cooldown="1h"))
    replace(story, make_rule(cooldown="1h", threshold=400), 1.5)
    assert brief(story.tick(1.6)) == [(1.5, "resolved", "replaced")]
    story.send(1.7, slow(1.7, 450))
    [event] = story.tick(2 + SETTLED)
    assert (at(event), event.status, event.starts_at) == (2, "firing", event.fired_at)
    assert [episode.threshold for episode in story.alerter.open_episodes()] == [400]


def test_an_instant_up_to_the_creation_of_a_rule_is_not_evaluated() -> None:
    """The clock of the alerter that creates a rule may be ahead of that of the alerter that evaluates it."""
    story = Story()
    story.alerter.ignore_events("any", ns(5))
    story.alerter.add_rule(make_rule())
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(1))
    for second in range(1, 8):
        story.send(second + 0.5, slow(second + 0.5, 600))
    assert [at(event) for event in story.tick(7 + SETTLED)] == [6]


def test_a_rule_that_is_gone_from_the_file_after_a_restart_ends_its_episode() -> None:
    story = fire(make_rule(), make_rule(name="other", threshold=1e9))
    story.restart(story.snapshot(), make_rule(name="other", threshold=1e9))
    story.alerter.events.settle()
    [event] = story.tick(20)
    assert brief([event]) == [(20, "resolved", "removed")]
    assert event.message == "latency_avg is not watched any more: the rule was removed from the configuration"
    assert story.tick(100) == []


def test_a_rule_that_comes_back_to_the_file_does_not_reopen_its_episode() -> None:
    story = fire(make_rule(cooldown="0s"))
    story.restart(story.snapshot(), make_rule(name="other", threshold=1e9))
    story.alerter.events.settle()
    story.tick(20)
    story.restart(story.snapshot(), make_rule(cooldown="0s"))
    story.alerter.events.settle()
    assert story.tick(30) == []
    assert story.alerter.open_episodes() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"group_by": "caller"},
        {"level": "critical"},
        {"filter": {"model": "gpt-4o"}},
        {"metric": "latency_p95"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_rule_with_other_labels_after_a_restart_ends_the_episode_with_the_old_ones(changed: dict[str, Any]) -> None:
    story = fire(make_rule(cooldown="0s"), model="gpt-4o", caller="x")
    story.restart(story.snapshot(), make_rule(cooldown="0s", **changed))
    story.alerter.events.settle()
    [event] = [event for event in story.tick(20) if event.ended_by == "changed"]
    fired = story.published[0]
    assert brief([event]) == [(20, "resolved", "changed")]
    labels = ("metric", "level", "filter", "group", "starts_at")
    assert [getattr(event, label) for label in labels] == [getattr(fired, label) for label in labels]
    story.send(20.5, slow(20.5, 600, model="gpt-4o", caller="x"))
    [again] = story.tick(21 + SETTLED)
    assert (again.status, again.starts_at) == ("firing", again.fired_at)


def test_instances_of_another_group_with_the_same_value_are_kept_apart() -> None:
    story = fire(make_rule(group_by="caller", window="60s"), caller="x", model="x")
    story.restart(story.snapshot(), make_rule(group_by="model", window="60s"))
    story.alerter.events.settle()
    assert [(event.group, event.status) for event in story.tick(20)] == [
        ({"model": "x"}, "firing"),
        ({"caller": "x"}, "resolved"),
    ]
    assert [episode.group for episode in story.alerter.open_episodes()] == [{"model": "x"}]


def test_a_rule_whose_threshold_changed_in_the_file_continues_its_episode() -> None:
    story = fire(make_rule(window="60s"))
    story.restart(story.snapshot(), make_rule(window="60s", threshold=550))
    story.alerter.events.settle()
    assert story.tick(5) == []
    assert [episode.starts_at for episode in story.alerter.open_episodes()] == [story.published[0].starts_at]


def test_what_another_alerter_fires_for_a_rule_unknown_here_is_ended_a_minute_after_it_was_silent() -> None:
    """During an upgrade an alerter may have a file without a rule that another one still evaluates."""
    story, other = Story(), fire(make_rule(cooldown="30s", window="60s"))
    story.alerter.events.settle()
    story.alerter.apply_event(other.published[0])
    assert story.tick(60.9) == []
    [again] = other.tick(31 + SETTLED)
    story.alerter.apply_event(again)
    assert story.tick(90.9) == []
    assert brief(story.tick(91)) == [(91, "resolved", "removed")]


def test_a_firing_that_was_published_after_the_deletion_is_ended_too() -> None:
    """An alerter that has not read the deletion yet may still publish a firing for a later instant."""
    story, other = Story(make_rule()), fire(make_rule())
    story.alerter.events.settle()
    story.alerter.remove_rule("any", ns(0.9))
    story.alerter.apply_event(other.published[0])
    assert brief(story.tick(61)) == [(61, "resolved", "removed")]


def test_the_end_is_later_than_the_last_firing_even_if_the_clock_is_behind() -> None:
    story = fire(make_rule())
    story.restart(None, make_rule(name="other"))
    story.alerter.events.settle()
    [event] = story.tick(0.5)
    assert at(event) == 1 + MS / 1e9


def test_the_user_of_an_instance_is_deleted_during_a_silence() -> None:
    """A silence holds an end back until it is over, but an instance that is gone has no later instant."""
    story = Story(make_rule(group_by="user_id"))
    story.send(0.5, slow(0.5, 600, user_id="canary"))
    story.tick(1 + SETTLED)
    story.silence(1000)
    story.alerter._forget_user(story.alerter.evaluators, "canary", ns(1.5))
    assert brief(story.tick(1.6)) == [(1.5, "resolved", "user_deleted")]


def test_a_changed_rule_with_the_same_condition_keeps_its_window_its_episode_and_its_cooldown() -> None:
    story = fire(make_rule(window="60s", cooldown="30s", **{"for": "0s"}))
    story.alerter.change_rule(make_rule(window="60s", cooldown="10s"))
    assert not story.alerter.evaluators["any"].backfilling
    events = story.tick(12 + SETTLED)
    assert [(at(event), event.status, event.span_count) for event in events] == [(11, "firing", 1)]
    assert events[0].starts_at == story.published[0].starts_at


def test_a_pending_breach_survives_a_change_of_the_cooldown() -> None:
    story = Story(make_rule(window="60s", **{"for": "5s"}))
    story.send(0.5, slow(0.5, 600))
    assert story.tick(3 + SETTLED) == []
    story.alerter.change_rule(make_rule(window="60s", cooldown="10s", **{"for": "5s"}))
    assert [at(event) for event in story.tick(7 + SETTLED)] == [6]
