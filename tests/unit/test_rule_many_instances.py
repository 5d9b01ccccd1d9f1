"""Grouped rules with more instances than the limit, and with almost as many."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.alert_recount import (
    told,
)
from kit.alert_story import (
    SETTLED,
    Story,
    at,
    call,
    make_rule,
    ns,
    slow,
)
from kit.examples import examples
from tokentrace.records import Span
from tokentrace.units import SECOND
from tokentrace_alerter.rules import Rule
from tokentrace_alerter.rules import window as measure

LIMIT = 8


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower the limit of the instances of a rule, and return the new limit."""
    monkeypatch.setattr(measure, "MAX_GROUPS", LIMIT)
    return LIMIT


def firing_counts(story: Story, instant: float) -> dict[str, int]:
    """Return instance -> span count of the firing events at *instant*."""
    return {
        next(iter(event.group.values())): event.span_count
        for event in story.published
        if at(event) == instant and event.status == "firing"
    }


def grouped_rule(metric: str = "span_count", **overrides: Any) -> Rule:
    """Return a rule that fires at every instant for every instance with data."""
    fields = {"metric": metric, "op": "gte", "threshold": -1e300, "window": "10s", "cooldown": "0s", **overrides}
    return make_rule(group_by="user", **fields)


def of_users(second: float, counts: Mapping[str, int], **fields: Any) -> list[Span]:
    return [
        call(second, attributes={"user": name, "hops": 1}, **fields)
        for name, count in counts.items()
        for _ in range(count)
    ]


def overflow(story: Story, name: str = "any") -> int:
    """Return how many spans the last evaluation counted in no instance."""
    return story.alerter.evaluators[name].overflow.span_count


@pytest.mark.parametrize("metric", ["span_count", "hop_count", "latency_p95"])
def test_at_the_limit_the_heaviest_instances_are_kept_and_the_rest_is_overflow(limit: int, metric: str) -> None:
    story = Story(grouped_rule(metric))
    crowd = {f"u{n}": n + 1 for n in range(40)}
    story.send(0.5, *of_users(0.5, crowd, latency_ns=10**9))
    story.tick(1 + SETTLED)
    first = firing_counts(story, 1)
    assert len(first) <= 4 * limit
    assert overflow(story) == sum(crowd.values()) - sum(first.values()) > 0
    assert story.shown(1)["overflow"]["span_count"] == overflow(story)
    story.tick(2 + SETTLED)
    stayed = firing_counts(story, 2)
    assert sum(stayed.values()) + overflow(story) == sum(crowd.values())
    assert 0 < len(stayed) <= limit
    assert min(stayed.values()) >= max(count for name, count in first.items() if name not in stayed)


@pytest.mark.parametrize("metric", ["span_count", "hop_count"])
def test_an_instance_that_becomes_heavy_later_is_kept(limit: int, metric: str) -> None:
    story = Story(grouped_rule(metric))
    story.send(0.5, *of_users(0.5, {f"u{n}": 2 for n in range(30)}))
    story.tick(1 + SETTLED)
    assert "heavy" not in firing_counts(story, 1)
    for second in range(2, 8):
        story.send(second - 0.5, *of_users(second - 0.5, {"heavy": 20, **{f"v{second}{n}": 1 for n in range(3)}}))
        story.tick(second + SETTLED)
    assert firing_counts(story, 7)["heavy"] >= 100
    assert sum(firing_counts(story, 7).values()) + overflow(story) == 60 + 6 * 23


def test_an_instance_named_other_is_an_instance_like_any_other(limit: int) -> None:
    story = Story(grouped_rule())
    story.send(0.5, *of_users(0.5, {"other": 5}), *of_users(0.5, {f"u{n}": 1 for n in range(50)}))
    for second in (1, 2, 3):
        story.tick(second + SETTLED)
        assert sum(firing_counts(story, second).values()) + overflow(story) == 55
        assert firing_counts(story, second)["other"] == 5


@pytest.mark.parametrize("op", ["gt", "lt"])
@pytest.mark.parametrize("number", [30, 300])
def test_instances_over_the_limit_are_never_compared_with_the_threshold_of_one(
    limit: int, op: str, number: int
) -> None:
    """Many users who spend 0.01 USD each together spend over 1 USD, which no user does."""
    threshold = 0.1 if op == "gt" else 0.001
    story = Story(make_rule(metric="total_cost", op=op, threshold=threshold, window="60s", group_by="user_id"))
    for second in range(1, 5):
        cheap = [call(second - 0.5, user_id=f"{second}-{n}", cost_nusd=10**7) for n in range(number)]
        story.send(second - 0.5, *cheap)
        story.tick(second + SETTLED)
    story.tick(12 + SETTLED)
    assert story.published == []
    count = overflow(story)
    assert story.shown(12)["overflow"] == {"current_value": pytest.approx(count / 100), "span_count": count}
    assert overflow(story) > 10


@pytest.mark.long
def test_the_one_user_over_the_threshold_fires_wherever_he_is_among_three_thousand() -> None:
    for position in (0, 1_500, 2_999):
        story = Story(make_rule(metric="total_cost", op="gt", threshold=5, window="60s", group_by="attr.user_id"))
        spans = [call(0.5, user_id=f"u{n}", cost_nusd=10**7) for n in range(2_999)]
        spans.insert(position, call(0.5, user_id="spender", cost_nusd=6 * 10**9))
        story.send(0.5, *spans)
        story.tick(12 + SETTLED)
        assert [(event.group, event.status) for event in story.published] == [({"attr.user_id": "spender"}, "firing")]


crowds = st.lists(
    st.tuples(st.sampled_from([0.3, 1.0, 2.5]), st.dictionaries(st.integers(0, 40), st.integers(1, 4), max_size=15)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=examples(40), deadline=None)
@given(
    stream=crowds,
    metric=st.sampled_from(["span_count", "hop_count", "latency_p95", "hop_p95"]),
    change=st.sampled_from([None, None, "absolute"]),
    seed=st.integers(0, 2**32),
)
def test_with_any_number_of_instances_every_span_counts_once(
    stream: list[tuple[float, dict[int, int]]], metric: str, change: str | None, seed: int
) -> None:
    """Every span with a user counts in exactly one instance or in the overflow, also after restarts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MAX_GROUPS", LIMIT)
        dice, now = random.Random(seed), 0.2
        story = Story(grouped_rule(metric, change=change), grouped_rule("span_count", name="plain"))
        sent: list[tuple[float, int]] = []
        beyond: dict[tuple[str, int], int] = {}

        def tick(now: float) -> None:
            before = {name: evaluator.next_ns for name, evaluator in story.alerter.evaluators.items()}
            story.tick(now)
            for name, evaluator in story.alerter.evaluators.items():
                last_ns = evaluator.next_ns - evaluator.rule.eval_interval_ns
                if evaluator.next_ns != before[name]:
                    beyond[name, (last_ns - ns(0)) // SECOND] = overflow(story, name)

        for pause, counts in stream:
            now += pause
            users = {f"u{number}": count for number, count in counts.items()}
            story.send(now, *of_users(now, users, latency_ns=10**9))
            sent.append((now, sum(users.values())))
            tick(now)
            if dice.random() < 0.4:
                story.restart(story.snapshot())
        end = int(now) + 14
        for second in range(int(now) + 1, end + 1):
            tick(second + SETTLED)
        for name in ("any", "plain"):
            if change and name == "any":
                continue
            for instant in range(1, end + 1):
                counted = [e.span_count for e in story.published if e.alert == name and at(e) == instant]
                wanted = sum(count for stored, count in sent if instant - 10 <= int(stored) < instant > stored)
                rest = beyond.get((name, instant), wanted - sum(counted))
                assert rest >= 0
                assert sum(counted) + rest == wanted, (name, instant)


@pytest.mark.parametrize("metric", ["span_count", "hop_count"])
def test_an_instance_counted_as_other_is_not_without_data(limit: int, metric: str) -> None:
    """Thirty users call every second, so no instance is without data."""
    story = Story(make_rule(metric=metric, threshold=1e9, group_by="user", no_data="fire"))
    for second in range(1, 15):
        story.send(second - 0.5, *of_users(second - 0.5, {f"u{n}": 1 + (n + second) % 3 for n in range(30)}))
        story.tick(second)
    assert [(event.group["user"], at(event)) for event in story.published] == []


@pytest.mark.parametrize("no_data", ["ignore", "keep", "fire"])
def test_instances_that_appear_once_are_dropped(limit: int, no_data: str) -> None:
    """With three new users each second, the number of instances stays bounded."""
    story = Story(make_rule(metric="span_count", threshold=1e9, group_by="user", no_data=no_data))
    for second in range(1, 60):
        story.send(second - 0.5, *of_users(second - 0.5, {f"session-{second}-{n}": 1 for n in range(3)}))
        story.tick(second)
    assert story.shown(60)["instance_count"] <= 4 * limit


def test_a_firing_instance_is_kept_although_others_are_heavier(limit: int) -> None:
    """For a rule on cost per user, a user with one expensive call is kept although others call more often."""
    story = Story(make_rule(metric="total_cost", threshold=5, window="60s", group_by="user"))
    spender = call(0.5, attributes={"user": "spender"}, cost_nusd=9 * 10**9)
    story.send(0.5, spender, *of_users(0.5, {f"u{n}": 3 for n in range(30)}, cost_nusd=1))
    story.tick(10 + SETTLED)
    told = [(at(event), event.status) for event in story.published if event.group == {"user": "spender"}]
    assert told == [(1, "firing")]


@pytest.mark.parametrize("no_data", ["ignore", "keep", "fire"])
def test_a_firing_instance_that_becomes_other_is_resolved(limit: int, no_data: str) -> None:
    """Without a resolution the receivers of the events would consider the episode open for ever."""
    story = Story(grouped_rule(no_data=no_data))
    for second in range(1, 8):
        story.send(second - 0.5, *of_users(second - 0.5, {f"u{n}": 2 for n in range(limit - 1)}))
        story.send(second - 0.5, *of_users(second - 0.5, {f"new-{second}": 3}))
        story.tick(second + SETTLED)
    story.tick(8 + SETTLED)
    last = {event.group["user"]: event for event in story.published}
    shown = {one["group"] for one in story.shown(8)["instances"] if one["state"] == "firing"}
    assert {name for name, event in last.items() if event.status == "firing"} == shown
    ended = [event for event in story.published if event.status == "resolved"]
    assert ended != []
    assert [event for event in ended if "'other'" not in event.message] == []
    assert [event for event in ended if event.starts_at == event.ends_at] == []


def test_the_cooldown_of_an_instance_survives_being_counted_as_other(limit: int) -> None:
    story = Story(make_rule(group_by="user", cooldown="1h"))
    for second in range(1, 12):
        spans = [slow(second - 0.5, 300, attributes={"user": f"{second}-{n}"}) for n in range(12)]
        if second in (1, 2, 8):
            spans.insert(0, slow(second - 0.5, 300 if second == 2 else 600, attributes={"user": "alice"}))
        story.send(second - 0.5, *spans)
        story.tick(second + SETTLED)
    told = [(at(event), event.status) for event in story.published if event.group == {"user": "alice"}]
    assert told == [(1, "firing"), (2, "resolved")]


@pytest.mark.story
@settings(max_examples=examples(200), deadline=None)
@given(
    stream=st.lists(
        st.dictionaries(st.integers(0, 24), st.sampled_from([300, 600]), max_size=14), min_size=2, max_size=9
    ),
    written=st.fixed_dictionaries(
        {
            "cooldown": st.sampled_from(["0s", "2s", "60s"]),
            "window": st.sampled_from(["1s", "3s"]),
            "for": st.sampled_from(["0s", "0s", "2s"]),
            "no_data": st.sampled_from(["ignore", "keep", "fire"]),
        }
    ),
    killed=st.sets(st.integers(1, 9)),
)
def test_a_restart_gives_the_same_events_with_any_number_of_instances(
    stream: list[dict[int, int]], written: dict[str, Any], killed: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MAX_GROUPS", LIMIT)
        rule = make_rule(group_by="user", **written)
        stories = [Story(rule), Story(rule)]
        for second, latencies in enumerate(stream, start=1):
            now = second - 0.5
            spans = [slow(now, latency, attributes={"user": f"u{user}"}) for user, latency in latencies.items()]
            for story in stories:
                story.send(now, *spans)
                story.tick(second)
            if second in killed:
                stories[1].restart(stories[1].snapshot())
        for story in stories:
            story.tick(len(stream) + 12)
        assert told(stories[0].published) == told(stories[1].published)


@pytest.mark.parametrize("metric", ["error_rate", "calls_with_user"])
def test_below_the_limit_an_instance_counts_its_spans_of_every_status(metric: str) -> None:
    """The limit is 1,000 instances, and 600 users with calls of three statuses each are within it."""
    story = Story(grouped_rule(metric))
    users = {f"u{n}": 1 for n in range(600)}
    for status in ("ok", "error", "timeout"):
        story.send(0.5, *of_users(0.5, users, status=status))
    story.tick(1 + SETTLED)
    told = {event.group["user"]: (event.span_count, event.value) for event in story.published}
    assert "other" not in told
    value = pytest.approx(2 / 3) if metric == "error_rate" else 3
    assert [told[name] == (3, value) for name in users].count(False) == 0
