"""The instances of grouped rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kit.alert_story import (
    OFFSETS,
    SETTLED,
    Story,
    at,
    brief,
    call,
    make_rule,
    seconds,
    slow,
)
from tokentrace.metrics import CustomMetric
from tokentrace.units import SECOND
from tokentrace_alerter.rules import Rule, parse_rule


def instances(story: Story, now: float) -> dict[str, dict[str, Any]]:
    return {one["group"]: one for one in story.shown(now)["instances"]}


def play_groups(rule: Rule, seen: Mapping[str, str]) -> dict[str, str]:
    """Play *seen*, user -> marks as in ``Drawing.seen``; return the events of each instance."""
    story, lag = Story(rule), rule.lag_ns / SECOND
    length = max(map(len, seen.values()))
    said = {name: ["."] * length for name in seen}
    steps = [(second - 0.5, 0, second) for second in range(1, length + 1)]
    steps += [(second + lag + SETTLED, 1, second) for second in range(1, length + 1)]
    for now, ticks, second in sorted(steps):
        if ticks:
            for event in story.tick(now):
                said[next(iter(event.group.values()))][second - 1] = event.status[0].upper()
        else:
            story.send(
                now,
                *(
                    slow(now, 500 + OFFSETS[marks[second - 1]], attributes={"user": name})
                    for name, marks in seen.items()
                    if marks[second - 1] != "-"
                ),
            )
    return {name: "".join(letters) for name, letters in said.items()}


@pytest.mark.parametrize("key", ["user", "attr.user"])
def test_each_instance_has_its_own_state(key: str) -> None:
    seen = {"alice": "..##..", "bob": "#.#.#.", "carol": "......"}
    said = play_groups(make_rule(group_by=key, cooldown="2s"), seen)
    assert said == {"alice": "..F.R.", "bob": "FRFRFR", "carol": "......"}


def test_each_instance_waits_for_its_own_for() -> None:
    seen = {"alice": "####.", "bob": "#.###", "carol": "##-##"}
    said = play_groups(make_rule(**{"group_by": "user", "for": "2s"}), seen)
    assert said == {"alice": "..F.R", "bob": "....F", "carol": "....."}


def test_each_instance_has_its_own_cooldown() -> None:
    seen = {"alice": "########", "bob": "..######"}
    assert play_groups(make_rule(group_by="user", cooldown="3s"), seen) == {"alice": "F..F..F.", "bob": "..F..F.."}


def test_an_event_names_its_instance() -> None:
    story = Story(make_rule(group_by="user", filter={"model": "gpt-4o"}))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    (event,) = story.tick(1 + SETTLED)
    assert (event.group, event.filter) == ({"user": "alice"}, {"model": "gpt-4o"})


@pytest.mark.parametrize(
    ("key", "fields", "names"),
    [
        ("model", [{"model": "o3"}, {"model": "gpt-4o"}, {"model": ""}], ["gpt-4o", "o3", "unknown"]),
        ("caller", [{"caller": "chat"}, {}], ["chat", "unknown"]),
        ("status", [{"status": "ok"}, {"status": "error"}], ["error", "ok"]),
        ("name", [{"name": "sum"}, {"name": "plan"}], ["plan", "sum"]),
        ("user", [{"attributes": {"user": "alice"}}, {}, {"attributes": {"other": "x"}}], ["alice"]),
        ("user", [{"attributes": {"user": None}}], []),
        ("user", [{"attributes": {"user": True}}, {"attributes": {"user": False}}], ["false", "true"]),
        ("user", [{"attributes": {"user": "true"}}, {"attributes": {"user": True}}], ["true"]),
        ("user", [{"attributes": {"user": 3}}, {"attributes": {"user": 0.5}}], ["0.5", "3"]),
        ("user", [{"attributes": {"user": 2**63}}, {"attributes": {"user": -1}}], ["-1", "9223372036854775808"]),
        ("a.b", [{"attributes": {"a": {"b": "in"}}}, {"attributes": {"a.b": "flat"}}], ["flat", "in"]),
        ("attr.model", [{"attributes": {"model": "mine"}}, {}], ["mine"]),
        ("user", [{"attributes": {"user": "ünïcode 🙂"}}], ["ünïcode 🙂"]),
    ],
)
@pytest.mark.parametrize("metric", ["span_count", "calls"])
def test_the_value_of_group_by_is_the_instance(
    key: str, fields: list[dict[str, Any]], names: list[str], metric: str
) -> None:
    calls = CustomMetric(name="calls", type="count")
    rule = parse_rule(
        {
            "name": "any",
            "metric": metric,
            "op": "gte",
            "threshold": 1,
            "window": "1s",
            "eval_interval": "1s",
            "group_by": key,
        },
        "rule",
        None,
        {"calls": calls},
    )
    story = Story(rule)
    story.send(0.5, *(call(0.5, **one) for one in fields))
    assert sorted(event.group[key] for event in story.tick(1 + SETTLED)) == names
    if names:
        assert sum(event.span_count for event in story.published) <= len(fields)


def test_a_rule_says_which_instance_it_shows_and_since_when_each_fires() -> None:
    story = Story(make_rule(group_by="user", window="10s"))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}), slow(0.5, 400, attributes={"user": "bob"}))
    story.tick(1 + SETTLED)
    story.send(1.5, *(slow(1.5, 700, attributes={"user": user}) for user in ("carol", "carol")))
    story.tick(2 + SETTLED)
    shown = story.shown(2.5)
    began = {name: seconds(one["starts_at"]) for name, one in instances(story, 2.5).items()}
    assert began == {"alice": 1, "bob": None, "carol": 2}
    assert (shown["worst_group"], seconds(shown["starts_at"]), shown["current_value"]) == ("carol", 2, 700)
    assert "worst_group" not in Story(make_rule()).shown(1)


def test_an_empty_attribute_is_a_separate_instance() -> None:
    """It is not the instance of spans whose attribute is "unknown"."""
    story = Story(make_rule(metric="span_count", op="gte", threshold=1, group_by="user"))
    story.send(0.5, call(0.5, attributes={"user": ""}), *(call(0.5, attributes={"user": "unknown"}) for _ in range(2)))
    told = {event.group["user"]: event.span_count for event in story.tick(1 + SETTLED)}
    assert told == {"": 1, "unknown": 2}


def test_a_firing_instance_that_vanishes_is_resolved_and_dropped_after_its_cooldown() -> None:
    story = Story(make_rule(group_by="user", cooldown="5s"))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    story.tick(1 + SETTLED)
    assert story.shown(1.2)["instance_count"] == 1
    assert brief(story.tick(2 + SETTLED)) == [(2, "resolved")]
    story.tick(6 + SETTLED)
    assert instances(story, 6)["alice"]["state"] == "resolved"
    assert story.tick(20) == []
    assert (story.shown(20)["instance_count"], story.shown(20)["instances"]) == (0, [])


def test_an_instance_that_never_fired_is_dropped_when_it_vanishes() -> None:
    story = Story(make_rule(group_by="user", window="2s"))
    story.send(0.5, slow(0.5, 300, attributes={"user": "alice"}))
    story.tick(2 + SETTLED)
    assert list(instances(story, 2)) == ["alice"]
    story.tick(4 + SETTLED)
    assert instances(story, 4) == {}


def test_an_instance_that_vanishes_while_pending_is_not_pending_any_more() -> None:
    story = Story(make_rule(**{"group_by": "user", "for": "9s"}))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    story.tick(1 + SETTLED)
    assert instances(story, 1)["alice"]["state"] == "pending"
    story.tick(2 + SETTLED)
    assert story.shown(2)["state"] != "pending"
    assert story.tick(20) == []


def test_an_instance_that_vanishes_within_its_cooldown_is_not_in_breach() -> None:
    #   alice  #.#---    fires, is resolved, comes back within the cooldown, and is gone
    story = Story(make_rule(group_by="user", cooldown="1h"))
    for second, latency in ((1, 600), (2, 300), (3, 600)):
        story.send(second - 0.5, slow(second - 0.5, latency, attributes={"user": "alice"}))
        story.tick(second + SETTLED)
    shown = story.shown(3.2)
    assert (shown["state"], shown["firing"], shown["breached"]) == ("resolved", False, True)
    story.tick(10)
    assert story.shown(10)["breached"] is False


def test_with_no_data_keep_a_firing_instance_without_data_stays_firing() -> None:
    said = play_groups(make_rule(group_by="user", no_data="keep", cooldown="2s"), {"alice": "#---#.", "bob": "......"})
    assert said == {"alice": "F...FR", "bob": "......"}


def test_with_no_data_fire_a_firing_instance_without_data_fires_again() -> None:
    said = play_groups(make_rule(group_by="user", no_data="fire", cooldown="2s"), {"alice": "#---.", "bob": "....."})
    assert said == {"alice": "F.F.R", "bob": "....."}


def test_with_no_data_fire_an_instance_that_vanishes_fires() -> None:
    """An ungrouped rule would fire, so the grouped one must fire too."""
    said = play_groups(make_rule(group_by="user", no_data="fire"), {"alice": "..--.", "bob": "....."})
    assert said == {"alice": "..F.R", "bob": "....."}


def test_a_rule_that_is_no_longer_grouped_ends_its_earlier_episodes() -> None:
    """The configuration removes group_by while the instance "alice" is firing."""
    story = Story(make_rule(group_by="user"))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]
    story.restart(story.snapshot(), make_rule())
    story.tick(2)
    story.send(3.5, slow(3.5, 300))
    story.tick(10)
    assert story.shown(10)["state"] != "firing"
    assert story.alerter.open_episodes() == []


def test_a_rule_that_becomes_grouped_ends_its_earlier_episode() -> None:
    story = Story(make_rule())
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.restart(story.snapshot(), make_rule(group_by="user"))
    story.tick(2)
    story.tick(10)
    assert story.shown(10)["state"] != "firing"
    assert story.alerter.open_episodes() == []


def test_a_silence_applies_to_all_instances() -> None:
    story = Story(make_rule(group_by="user"))
    story.silence(3)
    for second in (1, 2, 3):
        story.send(second - 0.5, *(slow(second - 0.5, 600, attributes={"user": name}) for name in "ab"))
    events = story.tick(3 + SETTLED)
    assert [(at(event), event.group["user"]) for event in events] == [(3, "a"), (3, "b")]
