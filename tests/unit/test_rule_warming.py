"""Rules whose window the log does not cover yet, late spans, and rules with ``change``."""

from __future__ import annotations

from typing import Any

import pytest

from kit.alert_story import (
    LONG_AGO,
    SETTLED,
    Story,
    at,
    brief,
    call,
    make_rule,
    ns,
    slow,
    states_shown,
)
from kit.builders import make_span
from tokentrace.units import SECOND

# --- warming


def test_no_data_fires_nothing_until_the_window_is_covered() -> None:
    # The window is 10 s and the log begins at 0.5, so 11 is the first instant whose window is covered.
    rule = make_rule(metric="span_count", threshold=99, window="10s", no_data="fire", filter={"caller": "unknown"})
    story = Story(rule, began=0.5)
    story.tick(10 + 5 + SETTLED)
    assert story.published == []
    assert story.shown(10.4)["state"] == "warming"
    assert story.shown(10.4)["why_not_fired"] == "warming"
    assert brief(story.tick(11 + 5 + SETTLED)) == [(11, "firing")]


def test_the_time_of_for_begins_when_the_window_is_covered() -> None:
    rule = make_rule(
        **{"metric": "span_count", "threshold": 99, "window": "10s", "no_data": "fire", "for": "3s"},
        filter={"caller": "unknown"},
    )
    story = Story(rule, began=0.5)
    assert brief(story.tick(20 + 5 + SETTLED)) == [(14, "firing")]


def test_a_rule_on_a_low_count_does_not_fire_until_the_window_is_covered() -> None:
    few = {"metric": "span_count", "op": "lt", "threshold": 8, "window": "10s"}
    for began, instants in ((LONG_AGO, list(range(1, 8))), (0.5, [])):
        story = Story(make_rule(**few, cooldown="0s"), began=began)
        for second in range(1, 25):
            story.send(second - 0.5, call(second - 0.5))
        story.tick(18 + 5 + SETTLED)
        assert [at(event) for event in story.published if event.status == "firing"] == instants


def test_a_rule_on_an_average_may_fire_before_the_window_is_covered() -> None:
    story = Story(make_rule(metric="quality_score", op="lt", threshold=0.5, window="10s"), began=0.3)
    story.send(0.5, call(0.5, score=0))
    assert brief(story.tick(1 + 5 + SETTLED)) == [(1, "firing")]


def test_a_rule_on_a_high_sum_may_fire_before_the_window_is_covered() -> None:
    story = Story(make_rule(metric="total_cost", threshold=1, window="1h"), began=0.3)
    story.send(0.5, call(0.5, cost_nusd=2 * 10**9))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]


def test_a_rule_with_change_does_not_fire_until_both_windows_are_covered() -> None:
    rule = make_rule(metric="span_count", threshold=0, op="gte", window="5s", change="absolute", cooldown="0s")
    story = Story(rule, began=0.5)
    for second in range(1, 16):
        story.send(second - 0.4, call(second - 0.4))
    story.tick(15 + SETTLED)
    assert [at(event) for event in story.published if event.status == "firing"] == [11, 12, 13, 14, 15]
    assert story.shown(10.4)["state"] == "firing"


def test_a_warming_rule_shows_warming_until_its_window_is_covered() -> None:
    # The window is 10 s and the log begins at 0.5, so 11 is the first instant whose window is covered.
    story = Story(make_rule(window="10s"), began=0.5)
    for second in range(1, 13):
        story.send(second - 0.4, slow(second - 0.4, 300))
    assert states_shown(story, 12, 0) == "wwwwwwwwwwii"


def test_a_rule_that_fires_while_warming_is_shown_as_firing() -> None:
    story = Story(make_rule(window="10s"), began=0.5)
    story.send(0.6, slow(0.6, 600))
    assert states_shown(story, 3, 0) == "fff"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rule_on_missing_data_fires_although_the_log_is_empty(restarted: bool) -> None:
    """No span was ever sent; the data counts as complete from the start of the alerter on."""
    story = Story(make_rule(metric="span_count", threshold=99, window="10s", no_data="fire"), began=None)
    story.tick(30)
    if restarted:
        story.restart(story.snapshot())
    story.tick(60)
    assert story.shown(60)["state"] == "firing"
    assert [event.status for event in story.published][:1] == ["firing"]


# --- late spans


def test_a_span_that_is_late_by_less_than_the_window_counts_from_then_on() -> None:
    #   0    1    2    3    4    5
    #   a              |              a ended at 0.5 and was stored at 3.5
    story = Story(make_rule(metric="span_count", op="gte", threshold=1, window="5s", cooldown="0s"))
    story.send(3.5, call(0.5))
    assert brief(story.tick(7 + SETTLED)) == [(4, "firing"), (5, "firing"), (6, "resolved")]


@pytest.mark.parametrize(("stored", "fires"), [(5.9, False), (6.0, True), (6.1, True)])
def test_a_span_that_arrives_within_the_lag_counts_for_a_rule_on_low_values(stored: float, fires: bool) -> None:
    """The window of one second that ends at 1 is evaluated at stream time 6."""
    story = Story(make_rule(metric="quality_score", op="lt", threshold=0.5))
    story.send(0.9, call(0.5, score=4 * 10**8))
    story.send(stored, call(0.6, score=10**9))
    assert brief(story.tick(6.5)) == ([(1, "firing")] if fires else [])


@pytest.mark.parametrize("no_data", ["ignore", "fire", "keep"])
@pytest.mark.parametrize("stored", [20, 35, 500, 5000])
def test_a_span_that_is_later_than_the_window_changes_nothing_and_is_counted_as_late(
    stored: float, no_data: str
) -> None:
    story = Story(make_rule(metric="span_count", op="gte", threshold=2, window="10s", no_data=no_data, cooldown="0s"))
    story.send(0.5, call(0.5), call(0.5))
    story.tick(stored - 0.5)
    before = len(story.published)
    story.send(stored, call(0.4), call(0.4), call(0.4))
    story.tick(stored + 30)
    assert [event.span_count for event in story.published[before:] if event.span_count] == []
    assert story.shown(stored + 30)["late_spans"] == 3
    story.restart(story.snapshot())
    assert story.shown(stored + 30)["late_spans"] == 3


def test_a_late_span_does_not_revoke_a_resolution() -> None:
    #   0    1    2    3    4       the call that ended at 1.9 arrives at 3.5
    story = Story(make_rule(window="2s"))
    story.send(0.5, slow(0.5, 600))
    story.tick(3 + SETTLED)
    story.send(3.5, slow(1.9, 900))
    story.tick(10)
    assert brief(story.published) == [(1, "firing"), (3, "resolved")]


def test_a_late_span_is_counted_for_the_rules_whose_filter_it_passes_and_whose_window_it_missed() -> None:
    story = Story(
        make_rule(name="short"), make_rule(name="long", window="1h"), make_rule(name="none", filter={"a": "b"})
    )
    story.send(0.5, call(0.5))
    story.send(100, call(0.5))
    story.tick(102)
    assert [story.shown(102, name)["late_spans"] for name in ("short", "long", "none")] == [1, 0, 0]
    assert [story.shown(102, name)["spans_considered"] for name in ("short", "long", "none")] == [2, 2, 0]


# --- change against the window before


def changes(counts: str, change: str, **overrides: Any) -> str:
    """Return the events of a rule on a change of the span count; *counts* has a digit for each second, ``-`` = none."""
    story = Story(make_rule(metric="span_count", cooldown="0s", change=change, **overrides))
    steps = [(second - 0.5, 0, second) for second in range(1, len(counts) + 1)]
    steps += [(second + story.rules[0].lag_ns / SECOND + SETTLED, 1, second) for second in range(1, len(counts) + 1)]
    said = ""
    for now, ticks, second in sorted(steps):
        if ticks:
            said += "".join(event.status[0].upper() for event in story.tick(now)) or "."
        else:
            mark = counts[second - 1]
            story.send(now, *(call(now) for _ in range(0 if mark == "-" else int(mark))))
    return said


@pytest.mark.parametrize(
    ("op", "threshold", "counts", "said"),
    [
        ("gt", 2, "11345159", "......FF"),
        ("gte", 2, "11345159", "..FR..FF"),
        ("gt", 2, "1139", "...F"),
        ("gte", 2, "1139", "..FF"),
        ("gt", 0, "1112", "...F"),
        ("gte", 0, "1111", ".FFF"),
        ("lt", -2, "9631", ".FFR"),
        ("lte", -2, "9631", ".FFF"),
        ("lt", 0, "5556", "...."),
        ("lt", 0, "5545", "..FR"),
        ("gt", -100, "-3-3-", "....."),
        ("gt", -100, "33-33", ".FR.F"),
    ],
)
def test_an_absolute_change_is_the_difference_from_the_window_before(
    op: str, threshold: float, counts: str, said: str
) -> None:
    assert changes(counts, "absolute", op=op, threshold=threshold) == said


@pytest.mark.parametrize(
    ("op", "threshold", "counts", "said"),
    [
        ("gt", 50, "2346", "...."),
        ("gte", 50, "2346", ".FRF"),
        ("gt", 49.9, "2346", ".FRF"),
        ("lt", -50, "4219", "...."),
        ("lte", -50, "4219", ".FFR"),
        ("gt", 199, "1399-9", ".FFR.."),
    ],
)
def test_a_change_in_percent_is_relative_to_the_window_before(
    op: str, threshold: float, counts: str, said: str
) -> None:
    assert changes(counts, "percent", op=op, threshold=threshold) == said


@pytest.mark.parametrize(
    ("before", "now", "absolute", "percent"),
    [
        (4, 6, 2.0, 50.0),
        (6, 4, -2.0, -100 / 3),
        (0, 5, 5.0, None),
        (0, 0, 0.0, None),
        (5, 0, -5.0, -100.0),
        (-4, -6, -2.0, -50.0),
        (-4, 4, 8.0, 200.0),
        (4, 4, 0.0, 0.0),
        (None, 4, None, None),
        (4, None, None, None),
        (None, None, None, None),
    ],
)
@pytest.mark.parametrize("change", ["absolute", "percent"])
def test_the_value_of_a_change(
    change: str, before: float | None, now: float | None, absolute: float | None, percent: float | None
) -> None:
    story = Story(make_rule(metric="hops", change=change, window="2s", op="gte", threshold=-1e9))
    if before is not None:
        story.send(1.5, call(1.5, attributes={"hops": before}))
    if now is not None:
        story.send(3.5, call(3.5, attributes={"hops": now}))
    story.tick(4 + SETTLED)
    value = absolute if change == "absolute" else percent
    shown = story.shown(4 + SETTLED)
    assert shown["current_value"] == (None if value is None else pytest.approx(value))
    assert [event.value for event in story.published if at(event) == 4] == (
        [] if value is None else [shown["current_value"]]
    )
    if now is not None:
        assert shown["span_count"] == 1


def test_a_change_without_data_in_the_window_before_is_no_data() -> None:
    for no_data, state in (("ignore", "no_data"), ("keep", "no_data"), ("fire", "firing")):
        story = Story(make_rule(metric="span_count", change="absolute", window="2s", threshold=99, no_data=no_data))
        story.send(3.5, call(3.5))
        story.tick(4 + 5 + SETTLED)
        assert story.shown(4 + SETTLED)["state"] == state


def test_a_change_compares_two_windows_that_touch_and_do_not_overlap() -> None:
    #   0 1 2 3 4 5 6        at 6: [0, 3) before, [3, 6) now
    for ended, value in ((0, 4 - 2), (2.999, 4 - 2), (3, 5 - 1), (5.999, 5 - 1), (6, 4 - 1)):
        story = Story(make_rule(metric="span_count", change="absolute", window="3s", op="gte", threshold=-99))
        spans = [call(1.5), call(4.5), call(4.5), call(4.5), call(4.5)]
        story.send(5.9, *spans, make_span(ended_ns=ns(ended), arrived_ns=ns(5.9)))
        story.tick(6 + SETTLED)
        assert story.shown(6.5)["current_value"] == value, ended
