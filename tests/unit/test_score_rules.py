"""
Rules and scores that arrive after their span: a score counts at the end of its span, from its arrival in the log on.

``expected``, a second implementation, computes values from the messages that the log held when an instant was due.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokentrace
from kit.alerter_log import begin_log
from kit.builders import make_span
from kit.examples import examples
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.metrics import CustomMetric, value_text
from tokentrace.records import AlertEvent, Batch, Score, Span, encode_batches
from tokentrace.units import parse_instant
from tokentrace_alerter.machine import VERSION, AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, parse_rule

#: 2026-09-21T14:00:00Z in seconds.
START = 497_222 * 3600
SECOND = 10**9
ONE = 10**9
CREATED = 7
HELPFUL = CustomMetric(name="helpful", type="avg", field="attr.eval.helpful")
BEST = CustomMetric(name="best", type="count", filter_key="eval.helpful", filter_val="1.0")
CUSTOM = {"helpful": HELPFUL, "best": BEST}


def ns(seconds: float) -> int:
    """Return the instant *seconds* after START in Unix nanoseconds."""
    return START * SECOND + round(seconds * 1000) * (SECOND // 1000)


def make_rule(**fields: Any) -> Rule:
    given = {"window": "60s", "eval_interval": "1s", "cooldown": "1h", "min_spans": 1, **fields}
    return parse_rule(given, "alerts[0]", None, CUSTOM)


def drop(**fields: Any) -> Rule:
    """Return a rule that fires when the mean score of a minute is below 0.75."""
    return make_rule(**tokentrace.quality_drop("drop", 0.75, "60s", eval_interval="1s", cooldown="1h"), **fields)


def call(ended: float, score: float | None = None, **attributes: Any) -> Span:
    """Return a call that ended *ended* seconds after START."""
    named = {} if score is None else {"eval.score": score}
    given = None if score is None else round(score * ONE)
    at = ns(ended)
    return make_span(
        span_id=f"s{ended}", started_ns=at, ended_ns=at, arrived_ns=at, score=given, attributes=named | attributes
    )


def scored(
    span: Span, value: float | None, previous: float | None, name: str = "eval.score", **attributes: Any
) -> Score:
    """Return a score as the api publishes it; *attributes* are those that other scores have added to the span."""
    return Score(
        trace_id=span.trace_id,
        span_id=span.span_id,
        name=name,
        value=None if value is None else round(value * ONE),
        previous=None if previous is None else round(previous * ONE),
        kind=span.kind,
        model=span.model,
        provider=span.provider,
        caller=span.caller,
        span_name=span.name,
        status=span.status,
        ended_ns=span.ended_ns,
        arrived_ns=span.arrived_ns,
        attributes={key: held for key, held in {**span.attributes, **attributes}.items() if key != name},
        session_id=span.session_id,
        user_id=span.user_id,
    )


class Story:
    """An alerter, and the log that it reads, which begins a day before START."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self.events: list[AlertEvent] = []
        self.log: list[Message] = []
        self.alerter = self._begin()
        self.alerter.caught_up = True
        self.tick(0)

    def _begin(self) -> AlerterMachine:
        alerter = AlerterMachine(self.rules, "default", capacity=CAPACITY)
        begin_log(alerter, ns(-86400))
        return alerter

    def send(self, at: float, *records: Span | Score, id: str = "") -> None:
        """Fold one batch, which the broker stored *at* seconds after START."""
        number = len(self.log) + 1
        spans = [record for record in records if isinstance(record, Span)]
        scores = [record for record in records if isinstance(record, Score)]
        payload = encode_batches([Batch(id=id or f"request-{number}", spans=spans, scores=scores)])
        self.log.append(Message("tokentrace.spans.default.0", payload, number, ns(at), {}))
        self.alerter.fold(self.log[-1], CREATED)

    def tick(self, now: float) -> list[tuple[float, str, str]]:
        """Publish what is due *now* s after START; return (seconds after START, status, instance) of each event."""
        published: list[tuple[float, str, str]] = []
        for effect in self.alerter.tick(ns(now)):
            self.alerter.performed(effect)
            event = msgspec.json.decode(effect.payload, type=AlertEvent)
            self.events.append(event)
            at = (parse_instant(event.fired_at) - ns(0)) / SECOND
            published.append((at, event.status, next(iter(event.group.values()), "")))
        return published

    def restart(self) -> None:
        """Restart from a snapshot; the published events are applied before it."""
        snapshot = save(self.alerter)
        self.alerter = self._begin()
        for event in self.events:
            self.alerter.apply_event(event)
        load(self.alerter, snapshot)
        self.alerter.caught_up = True

    def reading(self, name: str, group: str = "") -> tuple[float | None, int]:
        """Return (value, span count) of the last evaluation of the instance *group* of the rule *name*."""
        state = self.alerter.evaluators[name].states.get(group)
        return (None, 0) if state is None else (state.value, state.span_count)


# ---- drawings


@pytest.mark.parametrize("restarts", [False, True])
def test_a_late_score_fires_a_rule_and_its_correction_ends_it(restarts: bool) -> None:
    #   1 s: two calls of 0.9     12 s: the score of one becomes 0.1     30 s: it becomes 0.95
    #   ................ 0.9 .... | 0.5 fires ........................... | 0.925 resolves
    story = Story(drop())
    first, second = call(1, 0.9), call(1.5, 0.9)
    story.send(1.6, first, second)
    assert story.tick(11.9) == []
    assert story.reading("drop") == (0.9, 2)
    story.send(12, scored(first, 0.1, 0.9))
    if restarts:
        story.restart()
    # Evaluation lags 5 s: when the score arrived, the instants up to 7 s had been evaluated.
    assert story.tick(20) == [(8, "firing", "")]
    assert story.reading("drop") == (0.5, 2)
    story.send(30, scored(first, 0.95, 0.1))
    if restarts:
        story.restart()
    assert story.tick(40) == [(26, "resolved", "")]
    assert story.reading("drop") == (0.925, 2)


def test_scores_do_not_count_as_spans() -> None:
    story = Story(drop(), make_rule(name="calls", metric="span_count", op="gt", threshold=100))
    span = call(1, 0.9)
    story.send(1.1, span)
    for number in range(5):
        story.send(2, scored(span, 0.1, 0.9), id="the same" if number else "")
        story.send(2, scored(span, 0.9, 0.1), id="the other")
    story.tick(10)
    assert story.reading("calls") == (1, 1)
    assert [watch.spans for watch in story.alerter.evaluators.values()] == [1, 1]
    assert story.alerter.spans == 1
    assert [shown["spans_considered"] for shown in story.alerter.render(ns(10))] == [1, 1]


def test_a_batch_of_scores_counts_once_before_and_after_a_restart() -> None:
    story = Story(drop())
    first, second = call(1, 0.9), call(1.5, 0.9)
    story.send(1.6, first, second)
    for _ in range(3):
        story.send(2, scored(first, 0.5, 0.9), id="the same")
        story.restart()
    story.tick(10)
    value, count = story.reading("drop")
    assert value == pytest.approx(0.7)
    assert count == 2


def test_a_score_of_a_span_outside_the_window_changes_nothing() -> None:
    #   1 s: 0.9          70 s: 0.9                   75 s: the first score becomes 0.0
    story = Story(drop())
    old = call(1, 0.9)
    story.send(1.1, old)
    story.send(70, call(70, 0.9))
    story.send(75, scored(old, 0.0, 0.9))
    story.tick(100)
    assert story.reading("drop") == (0.9, 1)
    assert story.events == []


def test_scores_of_tool_calls_count() -> None:
    story = Story(drop())
    tool = msgspec.structs.replace(call(1), kind="tool")
    story.send(1.1, tool, call(1.2, 0.9))
    story.send(2, scored(tool, 0.1, None))
    story.tick(10)
    assert story.reading("drop") == (0.5, 2)


@pytest.mark.parametrize("filter_key", ["attr.team", "team"])
def test_a_filter_on_scores_compares_the_attributes_of_the_span(filter_key: str) -> None:
    story = Story(drop(filter={filter_key: "red"}))
    red, blue = call(1, 0.9, team="red"), call(1.2, 0.9, team="blue")
    story.send(1.3, red, blue)
    story.send(2, scored(blue, 0.0, 0.9))
    story.tick(10)
    assert story.reading("drop") == (0.9, 1)
    story.send(11, scored(blue, 0.5, 0.0), scored(red, 0.2, 0.9), scored(blue, None, 0.5))
    story.tick(20)
    assert story.reading("drop") == (0.2, 1)


@pytest.mark.parametrize(("metric", "value"), [("quality_p10", 0.22), ("quality_p50", 0.3), ("quality_score", 0.4)])
def test_every_quality_metric_follows_a_changed_score(metric: str, value: float) -> None:
    #   0.2  0.3  0.9      ->     0.2  0.3  0.7
    story = Story(make_rule(name="any", metric=metric, op="lt", threshold=0))
    spans = [call(1, 0.2), call(1.2, 0.9), call(1.3, 0.9)]
    story.send(1.4, *spans)
    story.send(2, scored(spans[1], 0.3, 0.9), scored(spans[2], 0.7, 0.9))
    story.tick(10)
    read, count = story.reading("any")
    assert read == pytest.approx(value)
    assert count == 3


def test_removing_the_score_of_an_unknown_span_leaves_no_data() -> None:
    # The log begins after the span and before the removal of its score.
    story = Story(drop(), make_rule(name="mine", metric="helpful", op="lt", threshold=0.5))
    span = call(1, 0.1, **{"eval.helpful": 0.1})
    story.send(2, scored(span, None, 0.1), scored(span, None, 0.1, "eval.helpful"))
    story.tick(10)
    assert story.reading("drop") == story.reading("mine") == (None, 0)
    assert story.events == []


def test_each_instance_fires_by_its_own_scores() -> None:
    story = Story(drop(group_by="attr.team"))
    red, blue, none = call(1, 0.9, team="red"), call(1.2, 0.9, team="blue"), call(1.3, 0.9)
    story.send(1.4, red, blue, none)
    story.send(8, scored(blue, 0.1, 0.9), scored(none, 0.1, 0.9))
    assert [event[1:] for event in story.tick(20)] == [("firing", "blue")]
    story.restart()
    story.send(21, scored(blue, None, 0.1))
    # Without any score left there is no data, and no data does not breach.
    assert [event[1:] for event in story.tick(30)] == [("resolved", "blue")]
    assert (story.reading("drop", "red"), story.reading("drop", "blue")) == ((0.9, 1), (None, 0))


@pytest.mark.parametrize("key", ["user_id", "attr.user_id", "session_id"])
def test_a_late_score_counts_for_the_user_and_the_session_of_its_span(key: str) -> None:
    grouped, filtered = drop(group_by=key), drop(filter={key: "alice"})
    span = msgspec.structs.replace(call(1), user_id="alice", session_id="alice")
    for rule, instance in ((grouped, "alice"), (filtered, "")):
        story = Story(rule)
        story.send(1.4, span)
        story.send(8, scored(span, 0.1, None))
        assert [event[1:] for event in story.tick(20)] == [("firing", instance)]


def test_a_score_moves_a_span_into_another_instance() -> None:
    # A call with score 0.4 is unrated, another with 0.8 is rated 0.5; then the first is rated 1.0, and later 0.5.
    story = Story(drop(group_by="attr.eval.helpful"))
    one, other = call(1, 0.4), call(1.2, 0.8, **{"eval.helpful": 0.5})
    story.send(1.3, one, other)
    story.send(2, scored(one, 1.0, None, "eval.helpful"))
    story.tick(10)
    assert (story.reading("drop", "1.0"), story.reading("drop", "0.5")) == ((0.4, 1), (0.8, 1))
    story.send(11, scored(one, 0.6, 0.4, "eval.score", **{"eval.helpful": 1.0}))
    story.send(12, scored(one, 0.5, 1.0, "eval.helpful", **{"eval.score": 0.6}))
    story.tick(20)
    assert (story.reading("drop", "1.0"), story.reading("drop", "0.5")) == ((None, 0), (0.7, 2))


def test_a_rule_on_a_custom_metric_follows_the_score_of_that_name() -> None:
    story = Story(
        make_rule(name="mine", metric="helpful", op="lt", threshold=0.5),
        make_rule(name="top", metric="best", op="gte", threshold=1),
    )
    span = call(1, 0.9, **{"eval.helpful": 1.0})
    story.send(1.1, span)
    story.tick(8)
    assert (story.reading("mine"), story.reading("top")) == ((1.0, 1), (1.0, 1))
    story.send(9, scored(span, 0.25, 1.0, "eval.helpful"), scored(span, 0.1, 0.9))
    story.tick(20)
    assert (story.reading("mine"), story.reading("top")) == ((0.25, 1), (None, 0))
    assert sorted((event.alert, event.status) for event in story.events) == [
        ("mine", "firing"),
        ("top", "firing"),
        ("top", "resolved"),
    ]


def test_a_rule_added_later_is_backfilled_with_earlier_scores() -> None:
    story = Story()
    span = call(1, 0.9)
    story.send(1.1, span)
    story.send(2, scored(span, 0.2, 0.9))
    story.alerter.add_rule(drop())
    memory, evaluators = story.alerter.new_memory(), {"drop": story.alerter.evaluators["drop"]}
    for message in story.log:
        story.alerter.backfill(evaluators, FilterIndex({"drop": {}}), message, memory)
    story.alerter.finish_backfill("drop", ns(-86400), ns(3))
    story.send(4, scored(span, 0.3, 0.2))
    story.tick(20)
    assert story.reading("drop") == (0.3, 1)


def test_a_snapshot_from_before_the_previous_version_is_refused() -> None:
    state = msgspec.msgpack.decode(Story(drop()).alerter.snapshot({}).state())
    assert state["version"] == VERSION
    for version in range(VERSION - 1):
        with pytest.raises(tokentrace.errors.Rejected, match="written by version"):
            AlerterMachine([drop()], "default").restore(msgspec.msgpack.encode({**state, "version": version}), {})


# ---- random stories


class History(NamedTuple):
    """A span and, in log order, (stream time in seconds after START, attributes of the span from then on)."""

    span: Span
    since: list[tuple[float, dict[str, Any]]]

    def at(self, seen_until: float) -> dict[str, Any] | None:
        """Return the attributes after all messages stored before *seen_until*; None = the span came later."""
        known = [attributes for time, attributes in self.since if time < seen_until]
        return known[-1] if known else None


VALUE = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, ONE).map(lambda value: value / ONE))
STEP = st.tuples(st.floats(0, 15), st.sampled_from(["eval.score", "eval.helpful"]), VALUE)
SCORE = st.sampled_from([None, 0.2, 0.9])
CALL = st.tuples(
    st.floats(0, 30),
    st.sampled_from(["red", "blue", None]),
    st.sampled_from([None, 0.2, 0.9]),
    st.lists(STEP, max_size=4),
)


def histories_of(calls: Sequence[Any]) -> tuple[list[History], list[tuple[float, Span | Score]]]:
    """Return the history of each span, and the log: (stream time in seconds after START, record), in order."""
    histories: list[History] = []
    log: list[tuple[float, Span | Score]] = []
    for number, (ended, team, score, steps) in enumerate(calls):
        span = call(round(ended, 3), score, **({} if team is None else {"team": team}))
        span = msgspec.structs.replace(span, span_id=f"s{number}")
        now, at = dict(span.attributes), round(ended, 3) + 0.001
        histories.append(History(span, [(at, dict(now))]))
        log.append((at, span))
        for after, name, value in steps:
            at = round(at + after + 0.001, 3)
            old = now.pop(name, None)
            log.append((at, msgspec.structs.replace(scored(span, value, old, name), attributes=dict(now))))
            if value is not None:
                now[name] = value
            histories[-1].since.append((at, dict(now)))
    return histories, sorted(log, key=lambda entry: entry[0])


RULES = (
    make_rule(name="all", metric="quality_score", op="lt", threshold=0.5, window="10s", cooldown="5s"),
    make_rule(
        name="red",
        metric="quality_p50",
        op="lt",
        threshold=0.5,
        window="10s",
        cooldown="5s",
        filter={"attr.team": "red"},
    ),
    make_rule(
        name="teams", metric="quality_score", op="gt", threshold=0.5, window="20s", cooldown="5s", group_by="attr.team"
    ),
    make_rule(
        name="rated",
        metric="quality_score",
        op="gt",
        threshold=0.5,
        window="10s",
        cooldown="5s",
        group_by="attr.eval.helpful",
    ),
    make_rule(name="top", metric="best", op="gte", threshold=1, window="10s", cooldown="5s"),
    make_rule(name="mean", metric="helpful", op="lt", threshold=0.5, window="20s", cooldown="5s", group_by="team"),
)


def expected(rule: Rule, histories: Sequence[History], instant: int, seen_until: float) -> dict[str, list[Fraction]]:
    """Return instance -> its values in the window that ends at *instant*, by the messages before *seen_until*."""
    values_by_instance: dict[str, list[Fraction]] = {}
    for history in histories:
        attributes = history.at(seen_until)
        second = history.span.ended_ns // SECOND - START
        if attributes is None or not instant - rule.window_s <= second < instant:
            continue
        now = msgspec.structs.replace(history.span, attributes=attributes)
        if any(value_text(now, key) != wanted for key, wanted in rule.filter.items()):
            continue
        group = value_text(now, rule.group_by) if rule.group_by else ""
        value = attributes.get("eval.helpful" if rule.custom else "eval.score")
        if rule.name == "top":
            value = 1 if value == 1.0 else None
        if group is not None and value is not None:
            values_by_instance.setdefault(group, []).append(Fraction(value))
    return values_by_instance


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(CALL, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_instant_counts_the_scores_that_the_log_held_by_then(calls: list[Any], dice: Any) -> None:
    histories, log = histories_of(calls)
    story = Story(*RULES)
    for at, record in [*log, (log[-1][0] + 40, call(-999))]:
        story.send(at, record)
        if dice.random() < 0.2:
            story.restart()
        for rule in RULES:
            lag = rule.lag_ns // SECOND
            instant = int((ns(at) - ns(0)) // SECOND) - lag
            if instant <= 0:
                continue
            # The instant was evaluated before the first message at or after its due time was folded.
            seen_until = next((time for time, _ in log if time >= instant + lag), at)
            wanted = expected(rule, histories, instant, min(seen_until, at))
            states = story.alerter.evaluators[rule.name].states
            for group in wanted.keys() | states.keys():
                values = wanted.get(group, [])
                value, count = story.reading(rule.name, group)
                assert (rule.name, group, count) == (rule.name, group, len(values))
                if not values:
                    assert value is None
                elif rule.name == "top":
                    assert value == len(values)
                elif rule.metric == "quality_p50":
                    ascending = sorted(values)
                    middle = (ascending[(len(values) - 1) // 2] + ascending[len(values) // 2]) / 2
                    assert value == pytest.approx(float(middle), abs=1e-9)
                else:
                    assert value == pytest.approx(float(sum(values) / len(values)), abs=1e-9)
    # Restarts change no event: an alerter that reads the whole log without a restart publishes the same events.
    again = Story(*RULES)
    for message in story.log:
        again.alerter.fold(message, CREATED)
    story.tick(0)
    again.tick(0)
    assert said(again.events) == said(story.events)


def said(events: Sequence[AlertEvent]) -> list[tuple[str, str, list[str], str]]:
    """Return (instant, rule, instance, status) of each event, sorted."""
    return sorted((event.fired_at, event.alert, [*event.group.values()], event.status) for event in events)
