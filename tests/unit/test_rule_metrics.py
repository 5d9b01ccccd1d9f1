"""Rules on the numbers of attributes and on the figures of reporters."""

from __future__ import annotations

from typing import Any

import pytest

from kit.alert_story import CREATED, SETTLED, Story, at, call, make_rule, ns
from tokentrace.bus import Message
from tokentrace.errors import ConfigError
from tokentrace.records import Batch, ReporterStats, encode_batches


def brief(story: Story, now: float) -> list[tuple[float, str, float | None, int]]:
    return [(at(event), event.status, event.value, event.span_count) for event in story.tick(now)]


# --- attributes


@pytest.mark.parametrize(
    ("figure", "value"), [("count", 4.0), ("sum", 100.0), ("avg", 25.0), ("p50", 25.0), ("p95", 38.5)]
)
def test_a_rule_on_an_attribute_measures_what_its_metric_shows(figure: str, value: float) -> None:
    rule = make_rule(metric=f"attr.docs.read:{figure}", op="gt", threshold=-1, window="10s")
    story = Story(rule)
    story.send(0.5, *(call(0.5, attributes={"docs": {"read": number}}) for number in (10, 20, 30, 40)), call(0.6))
    [event] = story.tick(1 + SETTLED)
    assert (event.metric, event.span_count) == (f"attr.docs.read:{figure}", 4)
    assert event.value == pytest.approx(value, rel=0.006)


def test_a_rule_on_an_attribute_may_be_filtered_and_grouped() -> None:
    story = Story(make_rule(metric="attr.n:sum", threshold=5, window="10s", group_by="user_id", filter={"model": "m"}))
    story.send(0.5, *(call(0.5, user_id=user, model="m", attributes={"n": n}) for user, n in (("a", 9), ("b", 4))))
    story.send(0.6, call(0.6, user_id="b", model="other", attributes={"n": 9}))
    assert [(event.group, event.value) for event in story.tick(1 + SETTLED)] == [({"user_id": "a"}, 9.0)]


@pytest.mark.parametrize("metric", ["attr.n", "attr.n:max", "attr.:avg", "attr.", "attr.n:"])
def test_an_attribute_without_a_number_is_refused_with_the_choices(metric: str) -> None:
    with pytest.raises(ConfigError, match=r"^rule\.metric: .* write one of .*:count, .*:sum, .*:avg, .*:p50, .*:p95$"):
        make_rule(metric=metric)


# --- reporters


class Reporters(Story):
    """A story in which reporters send batches."""

    def report(self, at: float, spans: int = 0, reporter: str = "r", number: int = 0, **stats: Any) -> None:
        """Store a batch of a reporter *at* seconds after the start, and fold its message."""
        message_number = len(self.log) + 1
        batch = Batch(
            id=f"default.{reporter}.0",
            sequence=number or message_number,
            spans=[call(at) for _ in range(spans)],
            reporter=ReporterStats(**stats),
        )
        message = Message("tokentrace.spans.default.0", encode_batches([batch]), message_number, ns(at), {})
        self.log.append(message)
        self.alerter.fold(message, CREATED)


def make(metric: str, **overrides: Any) -> Reporters:
    return Reporters(
        make_rule(metric=f"transport_{metric}", **{"op": "gt", "threshold": 0, "window": "3s", **overrides})
    )


@pytest.mark.parametrize(("metric", "field"), [("dropped", "newly_dropped"), ("failed", "newly_failed")])
def test_losses_of_reporters_fire_while_they_are_in_the_window(metric: str, field: str) -> None:
    story = make(metric)
    story.report(0.5, 1)
    lost: dict[str, Any] = {field: 3}
    story.report(1.5, 1, **lost)
    story.report(1.6, 1, reporter="other", **lost)
    for second in (2.5, 3.5, 4.5):
        story.report(second, 1)
    assert brief(story, 5 + SETTLED) == [(2, "firing", 6.0, 3), (5, "resolved", 0.0, 3)]


def test_sent_spans_are_those_of_the_window_repeated_ones_too() -> None:
    story = make("sent", threshold=4, window="2s")
    story.report(0.5, 5)
    story.report(2.5, 1)
    assert brief(story, 3 + SETTLED) == [(1, "firing", 5.0, 1), (3, "resolved", 1.0, 1)]


def test_a_batch_that_is_told_twice_counts_once() -> None:
    story = make("dropped", threshold=4)
    for _ in range(3):
        story.report(0.5, 1, number=7, newly_dropped=3)
    assert brief(story, 1 + SETTLED) == []


def test_the_queue_depth_is_what_waits_in_all_reporters_at_the_instant() -> None:
    story = make("queue_depth", threshold=99, window="1h", cooldown="1h")
    story.report(0.5, reporter="a", queue_depth=60)
    assert brief(story, 1 + SETTLED) == []
    story.report(1.5, reporter="b", queue_depth=40)
    assert brief(story, 2 + SETTLED) == [(2, "firing", 100.0, 2)]
    story.report(2.5, reporter="a", queue_depth=0)
    assert brief(story, 3 + SETTLED) == [(3, "resolved", 40.0, 2)]


def test_a_reporter_that_is_silent_for_half_a_minute_has_no_queue() -> None:
    story = make("queue_depth", threshold=99, window="1h", cooldown="1h")
    story.report(0.5, queue_depth=100)
    assert brief(story, 30 + SETTLED) == [(1, "firing", 100.0, 1)]
    assert brief(story, 31 + SETTLED) == [(31, "resolved", None, 0)]


def test_without_a_batch_there_is_no_data() -> None:
    assert brief(make("sent", op="lt", threshold=1), 20) == []
    assert [at(event) for event in make("sent", op="lt", threshold=1, no_data="fire").tick(7)] == [1]


def test_figures_of_reporters_survive_a_restart_and_are_backfilled() -> None:
    for fits in (True, False):
        story = make("dropped", window="10s")
        story.report(0.5, newly_dropped=3)
        story.restart(story.snapshot() if fits else None)
        assert brief(story, 1 + SETTLED) == ([(1, "firing", 3.0, 1)] if fits else [])
        assert story.shown(2)["current_value"] in (3.0, None)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"filter": {"model": "m"}}, "filter"), ({"group_by": "caller"}, "group_by")],
)
def test_reporters_have_no_dimensions(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rule\.{key}: transport_sent is about reporters"):
        make_rule(metric="transport_sent", **change)


def test_a_queue_depth_cannot_be_compared_with_another_window() -> None:
    with pytest.raises(ConfigError, match=r"^rule\.change: transport_queue_depth"):
        make_rule(metric="transport_queue_depth", change="absolute")


def test_a_change_of_losses_is_the_difference_from_the_window_before() -> None:
    story = make("dropped", change="absolute", threshold=3, window="2s")
    for second, lost in ((0.5, 1), (1.5, 1), (2.5, 3), (3.5, 3)):
        story.report(second, newly_dropped=lost)
    assert [(at(event), event.value) for event in story.tick(4 + SETTLED)] == [(4, 4.0)]


# --- scores that are given later


@pytest.mark.parametrize(
    ("rule", "misses"),
    [
        ({"metric": "span_count", "filter": {"eval.helpful": "1.0"}}, True),
        ({"metric": "total_cost", "group_by": "attr.eval.grade"}, True),
        ({"metric": "quality_score", "filter": {"eval.helpful": "1.0"}}, False),
        ({"metric": "attr.eval.helpful:avg", "filter": {"eval.helpful": "1.0"}}, False),
        ({"metric": "span_count", "filter": {"model": "m"}}, False),
    ],
)
def test_a_rule_that_ignores_later_scores_says_so(rule: dict[str, Any], misses: bool) -> None:
    assert Story(make_rule(**rule)).shown(0)["misses_late_scores"] == misses
