"""The machine gives the same events however its stream is cut, repeated, or read again after a kill."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.bus import Message, subjects
from tokentrace.dedup import FoldedBatches
from tokentrace.errors import Rejected
from tokentrace.metrics import METRICS
from tokentrace.records import AlertEvent, Batch, Position, Span, encode_batches
from tokentrace.service.machine import Effect
from tokentrace.units import SECOND, parse_instant, render_instant
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, parse_rule

#: 2026-09-21T14:00:00Z in seconds, a whole hour.
START = 497_222 * 3600
CREATED = 7
#: Once caught up, data older than this is considered complete, seconds.
SETTLED = 0.2


def ns(seconds: float) -> int:
    """*seconds* after START as Unix nanoseconds."""
    return START * SECOND + round(seconds * 1000) * (SECOND // 1000)


def make_rule(**overrides: Any) -> Rule:
    """A rule that fires at every instant that has a span."""
    given = {
        "name": "any",
        "metric": "span_count",
        "op": "gte",
        "threshold": 0,
        "window": "10s",
        "eval_interval": "1s",
        "cooldown": "0s",
    }
    return parse_rule({**given, **overrides}, "alerts[0]")


def call(ended: float, **overrides: Any) -> Span:
    """A call that ended *ended* seconds after START."""
    return make_span(ended_ns=ns(ended), arrived_ns=ns(max(ended, 0)), **overrides)


def backfill(alerter: AlerterMachine, name: str, message: Message, seen: FoldedBatches) -> None:
    """Fold an older message for the rule *name* alone."""
    watches = {name: alerter.evaluators[name]} if name in alerter.evaluators else {}
    alerter.backfill(watches, FilterIndex({name: watch.rule.filter for name, watch in watches.items()}), message, seen)


class Story:
    """An alerter, the log that it reads, and the events that it has published."""

    def __init__(self, *rules: Rule, begin: float | None = 0, began: float = -40 * 86400) -> None:
        #: Begin of the log, seconds after START: so early that every window is covered.
        self.began = ns(began)
        self.rules = list(rules)
        self.alerter = AlerterMachine(self.rules, "default")
        self.alerter._began_ns = self.began
        self.published: list[AlertEvent] = []
        self.log: list[Message] = []
        if begin is not None:
            self.alerter.caught_up = True
            assert self.tick(begin) == []

    def send(self, at: float, *spans: Span, id: str = "", sequence: int = 0) -> None:
        """The broker stores one batch *at* seconds after START."""
        number = len(self.log) + 1
        payload = encode_batches([Batch(id=id or f"request-{number}", sequence=sequence, spans=list(spans))])
        self.log.append(Message("tokentrace.spans.default.0", payload, number, ns(at), {}))
        self.alerter.fold(self.log[-1], CREATED)

    def tick(self, now: float) -> list[AlertEvent]:
        """Return the events that are published when the clock shows *now*."""
        effects = self.alerter.tick(ns(now))
        for effect in effects:
            self.alerter.performed(effect)
        events = [read(effect) for effect in effects]
        self.published += events
        return events

    def backfill(self, now_ns: int) -> None:
        """Backfill the new rules as the service does; they are evaluated from *now_ns* on."""
        done = self.alerter.position.sequence if self.alerter.position else 0
        for name in [name for name, watch in self.alerter.evaluators.items() if watch.backfilling]:
            seen = FoldedBatches()
            for message in self.log[:done]:
                backfill(self.alerter, name, message, seen)
            self.alerter.finish_backfill(name, self.began, now_ns)

    def restart(self, snapshot: bytes | None, *rules: Rule, caught_up: bool = True) -> None:
        """Start as the service does: with the events, then the snapshot, then the later messages."""
        self.rules = list(rules) or self.rules
        self.alerter = AlerterMachine(self.rules, "default")
        self.alerter._began_ns = self.began
        for event in self.published:
            self.alerter.apply_event(event)
        if snapshot is not None:
            self.alerter.restore(snapshot, {})
        done = self.alerter.position.sequence if self.alerter.position else 0
        if caught_up:
            self.backfill(self.log[-1].time_ns if self.log else self.began)
        for message in self.log[done:]:
            self.alerter.fold(message, CREATED)
        self.alerter.caught_up = caught_up


def read(effect: Effect) -> AlertEvent:
    return msgspec.json.decode(effect.payload, type=AlertEvent)


def at(event: AlertEvent) -> float:
    """The instant of *event*, seconds after START."""
    return (parse_instant(event.fired_at) - START * SECOND) / SECOND


def brief(events: Iterable[AlertEvent]) -> list[tuple[float, str, int]]:
    """(Instant, status, span_count) of each."""
    return [(at(event), event.status, event.span_count) for event in events]


# --- when an instant is evaluated, and which spans its window holds


def test_an_instant_is_evaluated_before_a_later_message_is_folded() -> None:
    #   0    1    2    3    4
    #   |----|----|--a-|--b-|     a ended in second 1, stored at 2.5; b is stored at 3.5
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


def test_before_it_has_caught_up_the_clock_evaluates_nothing() -> None:
    story = Story(make_rule(), begin=None)
    story.send(0.5, call(0.5))
    assert story.tick(100) == []


@pytest.mark.parametrize(("interval", "instants"), [("1s", [1, 2, 3, 4, 5, 6]), ("2s", [2, 4, 6]), ("5s", [5])])
def test_instants_are_multiples_of_the_interval_whenever_the_alerter_started(interval: str, instants: list[float]) -> None:
    story = Story(make_rule(eval_interval=interval), begin=0.3)
    story.send(0.5, call(0.5))
    assert [at(event) for event in story.tick(6.9)] == instants


def test_a_window_excludes_its_end_and_includes_its_start() -> None:
    #   0         10
    #   [---------)      window of 10 s at 10
    #  a b       c d
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


def test_every_late_span_of_the_window_counts_for_a_rule_on_low_values() -> None:
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
    """Buckets of 6 s: the span that ends at 65.5 shares one with the instant 64, and comes after it."""
    story = Story(rule)
    story.send(10, call(9.5))
    story.send(stored, make_span(ended_ns=ns(65.5), arrived_ns=ns(stored)))
    story.tick(70)
    assert [event.span_count for event in story.published if at(event) == 64] == [1]


def test_a_window_is_never_shorter_than_configured() -> None:
    #     8.5  9   10
    #     [----|----)     window of 1500 ms at 10
    #      a
    story = Story(make_rule(window="1500ms"))
    story.send(9.9, call(8.6))
    assert brief(story.tick(10 + SETTLED)) == [(10, "firing", 1)]


# --- each value equals a second implementation


class Sent(NamedTuple):
    """A span and when the broker stored it, seconds after START."""

    stored: float
    span: Span


def test_every_metric_has_a_second_implementation() -> None:
    assert set(RECOUNT) == set(METRICS)


def quantile(pick: Callable[[Span], int], q: float, scale: float, least: int) -> Callable[[list[Span]], Any]:
    def compute(spans: list[Span]) -> tuple[float | None, int]:
        values = [pick(span) / scale for span in spans if pick(span) >= least]
        return (float(np.quantile(values, q)) if values else None), len(values)

    return compute


def ratio(part: Callable[[Span], float], spans: list[Span]) -> tuple[float | None, int]:
    return (sum(map(part, spans)) / len(spans) if spans else None), len(spans)


def added(pick: Callable[[Span], int], spans: list[Span]) -> tuple[float | None, int]:
    return (sum(map(pick, spans)) if spans else None), len(spans)


def llm(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "llm"]


def paid(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.kind not in ("http", "agent", "workflow", "chain")]


def dollars(spans: Sequence[Span]) -> float:
    return sum(span.cost_nusd or 0 for span in paid(spans)) / 1e9


def scored(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.score is not None]


def timed(spans: Sequence[Span]) -> list[Span]:
    return [span for span in llm(spans) if span.latency_ns]


#: Metric -> (value, contributing spans) of the spans of a window, as the documents define them.
RECOUNT: dict[str, Callable[[list[Span]], tuple[float | None, int]]] = {
    "total_cost": lambda s: (dollars(s) if paid(s) else None, len(paid(s))),
    "cost_per_call": lambda s: (dollars(s) / len(llm(s)) if llm(s) else None, len(llm(s))),
    "unpriced_span_count": lambda s: added(lambda span: span.cost_nusd is None, paid(s)),
    "prompt_tokens": lambda s: added(lambda span: span.prompt_tokens, llm(s)),
    "completion_tokens": lambda s: added(lambda span: span.completion_tokens, llm(s)),
    "total_tokens": lambda s: added(lambda span: span.total_tokens, llm(s)),
    "prompt_token_p50": lambda s: quantile(lambda span: span.prompt_tokens, 0.50, 1, 0)(llm(s)),
    "prompt_token_p95": lambda s: quantile(lambda span: span.prompt_tokens, 0.95, 1, 0)(llm(s)),
    "completion_token_p50": lambda s: quantile(lambda span: span.completion_tokens, 0.50, 1, 0)(llm(s)),
    "completion_token_p95": lambda s: quantile(lambda span: span.completion_tokens, 0.95, 1, 0)(llm(s)),
    "latency_p50": lambda s: quantile(lambda span: span.latency_ns, 0.50, 1e6, 1)(llm(s)),
    "latency_p95": lambda s: quantile(lambda span: span.latency_ns, 0.95, 1e6, 1)(llm(s)),
    "latency_p99": lambda s: quantile(lambda span: span.latency_ns, 0.99, 1e6, 1)(llm(s)),
    "latency_avg": lambda s: ratio(lambda span: span.latency_ns / 1e6, timed(s)),
    "ttft_p50": lambda s: quantile(lambda span: span.ttft_ns, 0.50, 1e6, 1)(llm(s)),
    "ttft_p95": lambda s: quantile(lambda span: span.ttft_ns, 0.95, 1e6, 1)(llm(s)),
    "error_rate": lambda s: ratio(lambda span: span.status != "ok", llm(s)),
    "error_count": lambda s: added(lambda span: span.status != "ok", llm(s)),
    "timeout_rate": lambda s: ratio(lambda span: span.status == "timeout", llm(s)),
    "timeout_count": lambda s: added(lambda span: span.status == "timeout", llm(s)),
    "span_count": lambda s: added(lambda span: 1, llm(s)),
    "quality_score": lambda s: ratio(lambda span: (span.score or 0) / 1e9, scored(s)),
    "quality_p10": lambda s: quantile(lambda span: span.score or 0, 0.10, 1e9, 0)(scored(s)),
    "quality_p50": lambda s: quantile(lambda span: span.score or 0, 0.50, 1e9, 0)(scored(s)),
}


def recount(rule: Rule, sent: Sequence[Sent], instant: int) -> tuple[float | None, int]:
    """Compute the value of *rule* from the spans that ended in the window and were stored before the instant."""
    second = START + instant
    low = (second - rule.window_ns // SECOND) // rule.bucket_s * rule.bucket_s
    known = [one.span for one in sent if ns(one.stored) < second * SECOND + rule.lag_ns]
    inside = [span for span in known if low <= span.ended_ns // SECOND < second]
    return RECOUNT[rule.metric]([s for s in inside if all(getattr(s, k) == v for k, v in rule.filter.items())])


random_spans = st.builds(
    dict,
    age=st.one_of(st.floats(0, 3), st.floats(0, 15), st.floats(0, 700)),
    kind=st.sampled_from(["llm", "llm", "llm", "tool", "agent", "embedding"]),
    model=st.sampled_from(["gpt-4o", "o3"]),
    status=st.sampled_from(["ok", "ok", "error", "timeout"]),
    prompt_tokens=st.sampled_from([0, 1, 374, 2**40]),
    completion_tokens=st.sampled_from([0, 44, 2**40]),
    cost_nusd=st.sampled_from([None, 0, 1, 1_375_000, 10**15]),
    latency_ns=st.sampled_from([0, 10**6, 1_234_567_890, 30 * 86400 * SECOND]),
    ttft_ns=st.sampled_from([0, 5 * 10**6, 10**9]),
    score=st.sampled_from([None, None, 0, 333_333_333, 10**9]),
)
#: Pauses between messages and the spans in each.
random_streams = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.25, 1.0, 1.9, 4.0]), st.lists(random_spans, min_size=1, max_size=3)),
    min_size=2,
    max_size=14,
)
Stream = list[tuple[float, list[dict[str, Any]]]]


def make_sent(stream: Stream) -> list[list[Sent]]:
    """The messages of *stream*, the first 20 s after START."""
    stored, messages, number = 20.0, [], 0
    for pause, spans in stream:
        stored += pause
        message = []
        for fields in spans:
            number += 1
            rest = {key: value for key, value in fields.items() if key != "age"}
            ended = ns(stored - fields["age"])
            span = make_span(span_id=f"{number}", ended_ns=ended, arrived_ns=ns(stored), **rest)
            message.append(Sent(stored, span))
        messages.append(message)
    return messages


@settings(max_examples=40, deadline=None)
@given(
    stream=random_streams,
    window=st.sampled_from(["1s", "3s", "10s", "60s", "199s", "10m"]),
    every=st.sampled_from([1, 2, 7]),
    filter_=st.sampled_from([{}, {}, {"model": "o3"}, {"status": "ok", "model": "gpt-4o"}]),
    metrics=st.lists(st.sampled_from(sorted(RECOUNT)), min_size=6, max_size=6, unique=True),
)
def test_every_value_at_every_instant_equals_a_second_implementation(
    stream: Stream, window: str, every: int, filter_: dict[str, str], metrics: list[str]
) -> None:
    rules = [
        make_rule(name=metric, metric=metric, window=window, eval_interval=f"{every}s", filter=filter_)
        for metric in metrics
    ]
    check_against_recount(rules, stream, every)


@settings(max_examples=40, deadline=None)
@given(stream=random_streams, window=st.sampled_from(["1s", "3s", "10s", "60s", "199s"]), every=st.sampled_from([1, 3]))
def test_every_value_of_a_rule_on_low_values_equals_a_second_implementation(stream: Stream, window: str, every: int) -> None:
    metrics = ("span_count", "quality_score", "latency_p50", "total_cost")
    rules = [
        make_rule(name=metric, metric=metric, window=window, eval_interval=f"{every}s", op="lte", threshold=1e300)
        for metric in metrics
    ]
    check_against_recount(rules, stream, every)


def check_against_recount(rules: Sequence[Rule], stream: Stream, every: int) -> None:
    story, messages = Story(*rules), make_sent(stream)
    for message in messages:
        story.send(message[0].stored, *(one.span for one in message))
    end = int(messages[-1][0].stored) + 30
    story.tick(end + SETTLED)
    sent = [one for message in messages for one in message]
    fired = {(event.alert, at(event)): event for event in story.published if event.status == "firing"}
    for rule in rules:
        for instant in range(1, end + 1 - rule.lag_ns // SECOND):
            if (START + instant) % every:
                continue
            value, count = recount(rule, sent, instant)
            event = fired.pop((rule.name, instant), None)
            if value is None or count == 0:
                assert event is None, (rule.name, instant)
            else:
                assert event is not None, (rule.name, instant, value, count)
                assert event.span_count == count, (rule.name, instant)
                assert event.value == pytest.approx(value, rel=1e-9, abs=1e-6), (rule.name, instant)
    assert not fired


# --- the same stream gives the same events, however it is read

RULES = [
    make_rule(name="cost", metric="total_cost", op="gt", threshold=0.001, window="5s", cooldown="3s"),
    make_rule(name="p95", metric="latency_p95", op="gt", threshold=1000, window="10s", cooldown="4s"),
    make_rule(name="errors", metric="error_rate", threshold=0.5, window="3s", cooldown="2s", min_spans=2),
    make_rule(name="quality", metric="quality_p10", op="lt", threshold=0.5, window="6s", cooldown="5s"),
    make_rule(name="few", op="lte", threshold=3, window="4s", eval_interval="2s", cooldown="3s"),
    make_rule(name="o3", metric="ttft_p50", threshold=5, window="60s", filter={"model": "o3"}, cooldown="10s"),
    make_rule(name="wide", metric="prompt_token_p95", threshold=374, window="10m", eval_interval="7s", cooldown="20s"),
    make_rule(name="burst", metric="total_cost", window="1s", cooldown="30s"),
    make_rule(name="always", window="2s"),
]


def said(events: Iterable[AlertEvent]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the events of each rule, in order."""
    result: dict[str, list[tuple[Any, ...]]] = {}
    for event in events:
        told = (event.fired_at, event.status, event.value, event.span_count, event.starts_at, event.ends_at)
        result.setdefault(event.alert, []).append(told)
    return result


def tell(rules: Sequence[Rule], messages: list[list[Sent]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the events when the stream is read without a restart."""
    story = Story(*rules)
    for message in messages:
        story.send(message[0].stored, *(one.span for one in message))
    story.tick(messages[-1][0].stored + 90)
    return said(story.published)


def restarted(story: Story, snapshot: bytes, *, caught_up: bool) -> None:
    story.restart(msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot)), caught_up=caught_up)


@settings(max_examples=60, deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_ticks_and_restarts_anywhere_leave_the_same_events(stream: Stream, seed: int) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story = Story(*RULES)
    for number, message in enumerate(messages):
        story.send(message[0].stored, *(one.span for one in message))
        upto = messages[number + 1][0].stored if number + 1 < len(messages) else message[0].stored + 5
        for _ in range(dice.choice([0, 0, 1, 3])):
            story.tick(SETTLED + message[0].stored + dice.random() * (upto - message[0].stored))
        if dice.random() < 0.4:
            story.tick(0)
            restarted(story, story.alerter.snapshot({}).state(), caught_up=dice.random() < 0.7)
    story.alerter.caught_up = True
    story.tick(messages[-1][0].stored + 90)
    assert said(story.published) == tell(RULES, messages)


@settings(max_examples=60, deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_after_a_kill_the_unpublished_events_are_published_and_no_others(
    stream: Stream, seed: int
) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story, pending = Story(*RULES), list[AlertEvent]()
    saved_at = dice.choice([0, dice.randrange(len(messages))])
    killed_at = dice.randrange(saved_at, len(messages))
    snapshot = b""
    for number, message in enumerate(messages[: killed_at + 1]):
        story.send(message[0].stored, *(one.span for one in message))
        if number == saved_at:
            story.tick(0)
            snapshot = story.alerter.snapshot({}).state()
            before = len(story.published)
    story.tick(message[0].stored + SETTLED)
    pending = story.published[before:]
    story.published = story.published[: before + dice.randint(0, len(pending))]
    restarted(story, snapshot, caught_up=False)
    story.tick(0)
    for message in messages[killed_at + 1 :]:
        story.send(message[0].stored, *(one.span for one in message))
    story.alerter.caught_up = True
    story.tick(messages[-1][0].stored + 90)
    assert said(story.published) == tell(RULES, messages)


@settings(max_examples=40, deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_repeated_batches_change_nothing(stream: Stream, seed: int) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story, sent = Story(*RULES), []
    for number, message in enumerate(messages, start=1):
        key = {"id": "default.web.1", "sequence": number} if dice.random() < 0.5 else {"id": f"request-{number}"}
        sent.append((key, [one.span for one in message]))
        story.send(message[0].stored, *sent[-1][1], **key)
        for again, spans in dice.sample(sent, min(2, len(sent))):
            story.send(message[0].stored, *spans, **again)
            if dice.random() < 0.2:
                story.tick(0)
                restarted(story, story.alerter.snapshot({}).state(), caught_up=True)
    story.tick(messages[-1][0].stored + 90)
    assert said(story.published) == tell(RULES, messages)


def test_the_same_batch_again_counts_once() -> None:
    story = Story(make_rule())
    for stored in (0.5, 0.5, 0.9):
        story.send(stored, call(0.4), call(0.4), id="default.web.1", sequence=1)
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing", 2)]
    story.restart(story.alerter.snapshot({}).state())
    story.send(1.5, call(0.4), call(0.4), id="default.web.1", sequence=1)
    assert brief(story.tick(2 + SETTLED)) == [(2, "firing", 2)]


# --- after a kill


def breach(story: Story, seconds: Iterable[float]) -> None:
    for second in seconds:
        story.send(second, call(second))


def test_a_firing_later_than_the_snapshot_starts_the_cooldown() -> None:
    #   0  1  2  3  4  5  6  7  8  9  10 11 12
    #   |S |F           killed                 F    cooldown 10 s
    story = Story(make_rule(cooldown="10s", window="5s"))
    snapshot = story.alerter.snapshot({}).state()
    breach(story, [0.5, 1.5, 2.5])
    assert brief(story.tick(3.3)) == [(1, "firing", 1)]
    story.restart(snapshot)
    assert story.tick(3.4) == []
    breach(story, [3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5])
    assert [at(event) for event in story.tick(12.3)] == [11]


@pytest.mark.parametrize("twice", [False, True])
def test_the_cooldown_of_a_resolved_firing_survives_a_kill(twice: bool) -> None:
    #   0  1  2  3  4 killed  6 ...      31
    #   |S |F    |R           breach     F       window 2 s, cooldown 30 s
    story = Story(make_rule(cooldown="30s", window="2s"))
    snapshot = story.alerter.snapshot({}).state()
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


def test_nothing_is_published_for_instants_before_the_last_event() -> None:
    story = Story(make_rule())
    snapshot = story.alerter.snapshot({}).state()
    breach(story, [0.5, 1.5, 2.5])
    assert len(story.tick(3.3)) == 3
    story.restart(snapshot)
    assert brief(story.tick(4.3)) == [(4, "firing", 3)]


@pytest.mark.parametrize("event", ["firing", "resolved"])
def test_a_snapshot_between_deciding_and_publishing_loses_no_event(event: str) -> None:
    """The pump may save a snapshot while an event waits to be published. After a kill only the snapshot has the event."""
    story = Story(make_rule(cooldown="1h", window="2s"))
    story.send(0.5, call(0.5))
    if event == "resolved":
        assert len(story.tick(1 + SETTLED)) == 1
    story.send(9.5, call(9.4))
    snapshot = story.alerter.snapshot({}).state()
    story.restart(snapshot)
    expected = [(1, "firing", 1)] if event == "firing" else []
    assert brief(story.tick(9.5)) == [*expected, (3, "resolved", 0)]


def test_a_snapshot_while_an_event_is_being_published_loses_no_event() -> None:
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, call(0.5))
    assert len(story.tick(1 + SETTLED)) == 1
    snapshot = story.alerter.snapshot({}).state()
    story.published.clear()
    story.restart(snapshot)
    assert [event.status for event in story.tick(2 + SETTLED)] == ["firing"]


def test_events_applied_before_an_unreadable_snapshot_still_count() -> None:
    story = Story(make_rule(cooldown="30s"))
    breach(story, [0.5])
    assert len(story.tick(1 + SETTLED)) == 1
    story.alerter = AlerterMachine(story.rules, "default")
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


def test_without_a_snapshot_the_events_still_count() -> None:
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
def test_an_event_may_be_applied_twice(order: str) -> None:
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
    Who loses the race folds the winner's event and decides again (DESIGN 7b).

    Both know the firing at 1. This one has not read everything: it sees too few calls at 4 and none at 5, and says
    so; the other has fired at 4, as it may, and the broker took that first. Until 7 nothing may fire.
    """
    #   0    1    2    3    4    5    6    7
    #   aa   |F           b |F'  |R   cc  |F     window 2 s, at least 2 calls, cooldown 3 s; F' is the other's
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
    story.restart(story.alerter.snapshot({}).state(), old, new, caught_up=False)
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
    story.restart(story.alerter.snapshot({}).state(), new)
    for now, state in ((6, "warming"), (60.4, "warming"), (60.6, "inactive")):
        story.tick(now)
        (shown,) = story.alerter.render(ns(now))
        assert shown["state"] == state, now


def test_a_rule_keeps_its_firings_when_another_one_is_added() -> None:
    old = make_rule(name="old", cooldown="30s", window="60s")
    story = Story(old)
    breach(story, [0.5])
    assert len(story.tick(1.5)) == 1
    story.restart(story.alerter.snapshot({}).state(), old, make_rule(name="new", threshold=99))
    story.tick(5)
    assert story.tick(30.9 + SETTLED) == []
    assert [at(event) for event in story.tick(40)] == [31]


def test_removing_a_rule_changes_no_other() -> None:
    stays = make_rule(name="stays", cooldown="30s", window="60s")
    story = Story(stays, make_rule(name="goes"))
    breach(story, [0.5])
    story.tick(1.5)
    story.restart(story.alerter.snapshot({}).state(), stays)
    assert story.alerter.position is not None
    assert story.alerter.position.sequence == 1
    assert [at(event) for event in story.tick(40)] == [31]


@pytest.mark.parametrize(("before", "after", "instants"), [("7s", "5s", [5, 10, 15]), ("1h", "5s", [5, 10, 15])])
def test_a_rule_with_a_new_interval_is_evaluated_at_its_new_instants(
    before: str, after: str, instants: list[float]
) -> None:
    story = Story(make_rule(eval_interval=before, window="60s"))
    breach(story, [0.5])
    story.restart(story.alerter.snapshot({}).state(), make_rule(eval_interval=after, window="60s"))
    story.tick(0.9)
    assert [at(event) for event in story.tick(16)] == instants


def test_a_new_threshold_needs_no_backfill() -> None:
    story = Story(make_rule(threshold=99))
    breach(story, [0.5])
    story.tick(1.5)
    story.restart(story.alerter.snapshot({}).state(), make_rule(threshold=1))
    assert brief(story.tick(2.5)) == [(2, "firing", 1)]


# --- what is published, and what cannot be read


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


def test_a_gap_or_a_rewound_log_moves_the_position() -> None:
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


FINGERPRINT = make_rule().fingerprint


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"rubbish",
        zlib.compress(b"rubbish"),
        zlib.compress(msgspec.msgpack.encode(None)),
        zlib.compress(msgspec.msgpack.encode([])),
        zlib.compress(msgspec.msgpack.encode({})),
        zlib.compress(msgspec.msgpack.encode({"version": 0})),
        zlib.compress(msgspec.msgpack.encode({"version": 1, "watches": []})),
        zlib.compress(msgspec.msgpack.encode({"version": 1, "watches": {"any": None}})),
        zlib.compress(msgspec.msgpack.encode({"version": 1, "watches": {"any": {}}})),
        zlib.compress(msgspec.msgpack.encode({"version": 1, "watches": {"any": {"fingerprint": FINGERPRINT}}})),
    ],
    ids=lambda state: f"{len(state)} bytes",
)
def test_an_invalid_snapshot_is_refused_and_the_alerter_still_works(state: bytes) -> None:
    story = Story(make_rule(), begin=None)
    try:
        with pytest.raises(Rejected):
            story.alerter.restore(state, {})
    finally:
        assert story.alerter.position is None
    story.alerter.caught_up = True
    story.tick(0)
    breach(story, [0.5])
    assert len(story.tick(1.5)) == 1


def test_a_truncated_snapshot_is_refused() -> None:
    story = Story(*RULES)
    breach(story, [0.5, 1.5])
    story.tick(2.5)
    snapshot = story.alerter.snapshot({}).state()
    for size in range(0, len(snapshot), max(1, len(snapshot) // 40)):
        with pytest.raises(Rejected):
            AlerterMachine(RULES, "default").restore(snapshot[:size], {})


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
