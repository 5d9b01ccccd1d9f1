"""Values of rules equal a second implementation; a stream gives the same events after restarts and with repetitions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.alerter_log import RULES, SETTLED, START, Story, at, brief, call, make_rule, ns
from kit.builders import make_span
from kit.examples import examples
from kit.whole_snapshots import save
from tokentrace.dedup import LeftOut
from tokentrace.metrics import METRICS
from tokentrace.records import AlertEvent, Span
from tokentrace.units import SECOND
from tokentrace_alerter.rules import Rule

# --- each value equals a second implementation


class Sent(NamedTuple):
    """A span, and the time at which the broker stored it in seconds after START."""

    stored: float
    span: Span


def test_every_built_in_metric_has_a_second_implementation() -> None:
    assert set(RECOUNT) == set(METRICS)


def quantile(pick: Callable[[Span], int], q: float, scale: float, least: int) -> Callable[[list[Span]], Any]:
    def compute(spans: list[Span]) -> tuple[float | None, int]:
        values = [pick(span) / scale for span in spans if pick(span) >= least]
        return (float(np.quantile(values, q)) if values else None), len(values)

    return compute


def mean(part: Callable[[Span], float], spans: list[Span]) -> tuple[float | None, int]:
    return (sum(map(part, spans)) / len(spans) if spans else None), len(spans)


def total(pick: Callable[[Span], int], spans: list[Span]) -> tuple[float | None, int]:
    return (sum(map(pick, spans)) if spans else None), len(spans)


def llm(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "llm"]


def paid(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.kind not in ("http", "agent", "workflow", "chain")]


def dollars(spans: Sequence[Span]) -> float | None:
    known = [span.cost_nusd for span in spans if span.cost_nusd is not None]
    return sum(known) / 1e9 if known else None


def priced(spans: Sequence[Span]) -> list[Span]:
    return [span for span in llm(spans) if span.cost_nusd is not None]


def split(spans: Sequence[Span]) -> list[Span]:
    return [span for span in llm(spans) if span.prompt_tokens or span.completion_tokens]


def scored(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.score is not None]


def timed(spans: Sequence[Span]) -> list[Span]:
    return [span for span in llm(spans) if span.latency_ns]


#: Metric -> function from the spans of a window to (value, number of contributing spans), as the documents define it.
RECOUNT: dict[str, Callable[[list[Span]], tuple[float | None, int]]] = {
    "total_cost": lambda s: (dollars(paid(s)), len(paid(s))),
    "cost_per_call": lambda s: mean(lambda span: (span.cost_nusd or 0) / 1e9, priced(s)),
    "unpriced_span_count": lambda s: total(lambda span: span.cost_nusd is None, paid(s)),
    "partly_priced_span_count": lambda s: total(lambda span: span.cost_source == "partly_priced", paid(s)),
    "prompt_tokens": lambda s: total(lambda span: span.prompt_tokens, llm(s)),
    "completion_tokens": lambda s: total(lambda span: span.completion_tokens, llm(s)),
    "total_tokens": lambda s: total(lambda span: span.total_tokens, llm(s)),
    "prompt_token_p50": lambda s: quantile(lambda span: span.prompt_tokens, 0.50, 1, 0)(split(s)),
    "prompt_token_p95": lambda s: quantile(lambda span: span.prompt_tokens, 0.95, 1, 0)(split(s)),
    "completion_token_p50": lambda s: quantile(lambda span: span.completion_tokens, 0.50, 1, 0)(split(s)),
    "completion_token_p95": lambda s: quantile(lambda span: span.completion_tokens, 0.95, 1, 0)(split(s)),
    "latency_p50": lambda s: quantile(lambda span: span.latency_ns, 0.50, 1e6, 1)(llm(s)),
    "latency_p95": lambda s: quantile(lambda span: span.latency_ns, 0.95, 1e6, 1)(llm(s)),
    "latency_p99": lambda s: quantile(lambda span: span.latency_ns, 0.99, 1e6, 1)(llm(s)),
    "latency_avg": lambda s: mean(lambda span: span.latency_ns / 1e6, timed(s)),
    "ttft_p50": lambda s: quantile(lambda span: span.ttft_ns, 0.50, 1e6, 1)(llm(s)),
    "ttft_p95": lambda s: quantile(lambda span: span.ttft_ns, 0.95, 1e6, 1)(llm(s)),
    "error_rate": lambda s: mean(lambda span: span.status != "ok", llm(s)),
    "error_count": lambda s: total(lambda span: span.status != "ok", llm(s)),
    "timeout_rate": lambda s: mean(lambda span: span.status == "timeout", llm(s)),
    "timeout_count": lambda s: total(lambda span: span.status == "timeout", llm(s)),
    "span_count": lambda s: total(lambda span: 1, llm(s)),
    "quality_score": lambda s: mean(lambda span: (span.score or 0) / 1e9, scored(s)),
    "quality_p10": lambda s: quantile(lambda span: span.score or 0, 0.10, 1e9, 0)(scored(s)),
    "quality_p50": lambda s: quantile(lambda span: span.score or 0, 0.50, 1e9, 0)(scored(s)),
}


def recount(rule: Rule, sent: Sequence[Sent], instant: int) -> tuple[float | None, int]:
    """Return (value, contributing spans) of *rule* at *instant*, from the spans stored before its evaluation."""
    second = START + instant
    low = (second - rule.window_ns // SECOND) // rule.bucket_s * rule.bucket_s
    known = [sent_span.span for sent_span in sent if ns(sent_span.stored) < second * SECOND + rule.lag_ns]
    inside = [span for span in known if low <= span.ended_ns // SECOND < second]
    return RECOUNT[rule.metric]([s for s in inside if all(getattr(s, k) == v for k, v in rule.filter.items())])


random_spans: st.SearchStrategy[dict[str, Any]] = st.builds(
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
#: For each message: the seconds since the message before, and its spans.
random_streams = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.25, 1.0, 1.9, 4.0]), st.lists(random_spans, min_size=1, max_size=3)),
    min_size=2,
    max_size=14,
)
Stream = list[tuple[float, list[dict[str, Any]]]]


def make_sent(stream: Stream) -> list[list[Sent]]:
    """Return the messages of *stream*; the clock begins 20 s after START, and each message comes after its pause."""
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


@settings(max_examples=examples(40), deadline=None)
@given(
    stream=random_streams,
    window=st.sampled_from(["1s", "3s", "10s", "60s", "199s", "10m"]),
    every=st.sampled_from([1, 2, 7]),
    filter_=st.sampled_from([{}, {}, {"model": "o3"}, {"status": "ok", "model": "gpt-4o"}]),
    metrics=st.lists(st.sampled_from(sorted(RECOUNT)), min_size=6, max_size=6, unique=True),
)
def test_values_at_every_instant_equal_a_second_implementation(
    stream: Stream, window: str, every: int, filter_: dict[str, str], metrics: list[str]
) -> None:
    rules = [
        make_rule(name=metric, metric=metric, window=window, eval_interval=f"{every}s", filter=filter_)
        for metric in metrics
    ]
    check_against_recount(rules, stream, every)


@settings(max_examples=examples(40), deadline=None)
@given(stream=random_streams, window=st.sampled_from(["1s", "3s", "10s", "60s", "199s"]), every=st.sampled_from([1, 3]))
def test_values_of_rules_on_low_values_equal_a_second_implementation(stream: Stream, window: str, every: int) -> None:
    metrics = ("span_count", "quality_score", "latency_p50", "total_cost")
    rules = [
        make_rule(name=metric, metric=metric, window=window, eval_interval=f"{every}s", op="lte", threshold=1e300)
        for metric in metrics
    ]
    check_against_recount(rules, stream, every)


def check_against_recount(rules: Sequence[Rule], stream: Stream, every: int) -> None:
    story, messages = Story(*rules), make_sent(stream)
    for message in messages:
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
    end = int(messages[-1][0].stored) + 30
    story.tick(end + SETTLED)
    sent = [sent_span for message in messages for sent_span in message]
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


def by_rule(events: Iterable[AlertEvent]) -> dict[str, list[tuple[Any, ...]]]:
    """Return rule name -> the compared fields of its events, in order."""
    result: dict[str, list[tuple[Any, ...]]] = {}
    for event in events:
        fields = (event.fired_at, event.status, event.value, event.span_count, event.starts_at, event.ends_at)
        result.setdefault(event.alert, []).append(fields)
    return result


def expected_events(rules: Sequence[Rule], messages: list[list[Sent]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the events of each rule, as ``by_rule``, when the stream is read without a restart."""
    story = Story(*rules)
    for message in messages:
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
    story.tick(messages[-1][0].stored + 90)
    return by_rule(story.published)


def restarted(story: Story, snapshot: bytes, *, caught_up: bool) -> None:
    story.restart(snapshot, caught_up=caught_up)


@settings(max_examples=examples(60), deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_ticks_and_restarts_anywhere_leave_the_same_events(stream: Stream, seed: int) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story = Story(*RULES)
    for number, message in enumerate(messages):
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
        upto = messages[number + 1][0].stored if number + 1 < len(messages) else message[0].stored + 5
        for _ in range(dice.choice([0, 0, 1, 3])):
            story.tick(SETTLED + message[0].stored + dice.random() * (upto - message[0].stored))
        if dice.random() < 0.4:
            story.tick(0)
            restarted(story, save(story.alerter), caught_up=dice.random() < 0.7)
    story.alerter.caught_up = True
    story.tick(messages[-1][0].stored + 90)
    assert by_rule(story.published) == expected_events(RULES, messages)


@settings(max_examples=examples(60), deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_after_a_kill_the_unpublished_events_are_published_and_no_others(stream: Stream, seed: int) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story = Story(*RULES)
    saved_at = dice.choice([0, dice.randrange(len(messages))])
    killed_at = dice.randrange(saved_at, len(messages))
    snapshot = b""
    for number, message in enumerate(messages[: killed_at + 1]):
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
        if number == saved_at:
            story.tick(0)
            snapshot = save(story.alerter)
            before = len(story.published)
    story.tick(message[0].stored + SETTLED)
    unsaved = story.published[before:]
    story.published = story.published[: before + dice.randint(0, len(unsaved))]
    restarted(story, snapshot, caught_up=False)
    story.tick(0)
    for message in messages[killed_at + 1 :]:
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
    story.alerter.caught_up = True
    story.tick(messages[-1][0].stored + 90)
    assert by_rule(story.published) == expected_events(RULES, messages)


@settings(max_examples=examples(40), deadline=None)
@given(stream=random_streams, seed=st.integers(0, 2**32))
def test_repeated_batches_and_repeated_spans_change_nothing(stream: Stream, seed: int) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story, sent = Story(*RULES), []
    for number, message in enumerate(messages, start=1):
        key = {"id": "default.web.1", "sequence": number} if dice.random() < 0.5 else {"id": f"request-{number}"}
        sent.append((key, [sent_span.span for sent_span in message]))
        story.send(message[0].stored, *sent[-1][1], **key)
        for again, spans in dice.sample(sent, min(2, len(sent))):
            # The same batch again, or its spans in another batch.
            told = again if dice.random() < 0.7 else {"id": f"again-{len(story.log)}"}
            story.send(message[0].stored, *dice.sample(spans, len(spans)), **told)
            if dice.random() < 0.2:
                story.tick(0)
                restarted(story, save(story.alerter), caught_up=True)
    story.tick(messages[-1][0].stored + 90)
    assert by_rule(story.published) == expected_events(RULES, messages)


def test_the_same_batch_again_counts_once() -> None:
    story = Story(make_rule())
    for stored in (0.5, 0.5, 0.9):
        story.send(stored, call(0.4), call(0.4), id="default.web.1", sequence=1)
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing", 2)]
    story.restart(save(story.alerter))
    story.send(1.5, call(0.4), call(0.4), id="default.web.1", sequence=1)
    assert brief(story.tick(2 + SETTLED)) == [(2, "firing", 2)]


def test_of_a_call_told_in_three_batches_the_first_one_counts_before_and_after_a_restart() -> None:
    story = Story(make_rule(metric="total_cost", op="gt", window="60s"))
    told = [call(0.4, trace_id="t", span_id="a", cost_nusd=cost) for cost in (10**9, 2 * 10**9, 3 * 10**9)]
    story.send(0.5, told[0])
    story.send(0.6, told[1], call(0.4, cost_nusd=5 * 10**9), id="default.web.1", sequence=1)
    story.restart(save(story.alerter))
    story.send(0.7, told[2])
    (event,) = story.tick(1 + SETTLED)
    assert (event.value, event.span_count) == (6, 2)
    assert story.alerter.dedup[0].left_out == LeftOut(1, repeated=2, conflicting=2, conflicting_nusd=5 * 10**9)
