"""A second implementation of rules, which uses no evaluation code of the product, and random rules and streams."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from kit.alert_story import (
    CUSTOMS,
    at,
    ns,
    seconds,
)
from kit.builders import make_span
from tokentrace.records import AlertEvent, Span
from tokentrace_alerter.rules import Rule, parse_rule


class Sent(NamedTuple):
    """A span, and when the broker stored it, in seconds after START."""

    stored: float
    span: Span


Value = tuple[float | None, int]


def text_of(span: Span, key: str) -> str | None:
    if key in ("model", "provider", "caller", "name", "status", "kind"):
        return getattr(span, key) or "unknown"
    value = span.attributes.get(key.removeprefix("attr."))
    return value if value is None or isinstance(value, str) else json.dumps(value)


def llm(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "llm"]


def paid(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind not in ("http", "agent", "workflow", "chain")]


def mean(values: Sequence[float], divisor: float = 1) -> Value:
    return (sum(values) / len(values) / divisor if values else None), len(values)


def p95(values: Sequence[float]) -> Value:
    return (float(np.quantile(values, 0.95)) if values else None), len(values)


def hops(spans: Iterable[Span]) -> list[int]:
    return [span.attributes["hops"] for span in spans if "hops" in span.attributes]


def total(values: Sequence[float]) -> Value:
    return (sum(values) if values else None), len(values)


RECOUNT: dict[str, Callable[[list[Span]], Value]] = {
    "span_count": lambda spans: total([1 for _ in llm(spans)]),
    "total_cost": lambda spans: (
        sum(span.cost_nusd or 0 for span in paid(spans)) / 1e9
        if any(span.cost_nusd is not None for span in paid(spans))
        else None,
        len(paid(spans)),
    ),
    "error_rate": lambda spans: mean([span.status != "ok" for span in llm(spans)]),
    "latency_avg": lambda spans: mean([span.latency_ns for span in llm(spans) if span.latency_ns], 1e6),
    "latency_p95": lambda spans: p95([span.latency_ns / 1e6 for span in llm(spans) if span.latency_ns]),
    "quality_score": lambda spans: mean([span.score for span in spans if span.score is not None], 1e9),
    "hops": lambda spans: total(hops(spans)),
    "hop_count": lambda spans: total([1 for _ in hops(spans)]),
    "hop_avg": lambda spans: mean(hops(spans)),
    "hop_p95": lambda spans: p95(hops(spans)),
    "spent_on_o3": lambda spans: total(
        [span.cost_nusd / 1e9 for span in paid(spans) if span.model == "o3" and span.cost_nusd is not None]
    ),
    "calls_with_user": lambda spans: total([1 for span in llm(spans) if span.attributes.get("user") is not None]),
}


class Told(NamedTuple):
    """The facts of one event; *instant* and *starts* are seconds after START."""

    instant: int
    group: str
    status: str
    value: float | None
    span_count: int
    starts: float


class Instance:
    """The state of one instance in the second implementation."""

    def __init__(self) -> None:
        self.firing = False
        self.starts = self.fired = 0
        self.has_fired = False
        self.pending: int | None = None


def recount(written: Mapping[str, Any], sent: Sequence[Sent], end: int, silent_until: float = 0) -> list[Told]:
    """
    Compute the events of a rule for the instants up to *end*, independently of the product.

    A window has the spans that ended in it and were stored before the instant. For a rule on low values or on missing
    data, spans that were stored less than five seconds after the instant count too.
    """
    interval, window = int(written["eval_interval"][:-1]), int(written["window"][:-1])
    lasting, cooldown = int(written.get("for", "0s")[:-1]), int(written["cooldown"][:-1])
    op, threshold = written["op"], written["threshold"]
    no_data, key, change = written.get("no_data", "ignore"), written.get("group_by"), written.get("change")
    lag = 5 if op in ("lt", "lte") or no_data == "fire" else 0
    compare = {
        "gt": operator.gt,
        "gte": operator.ge,
        "lt": operator.lt,
        "lte": operator.le,
    }[op]
    events: list[Told] = []
    memory: dict[str, Instance] = {}

    def values(known: Sequence[Span], low: int, high: int) -> dict[str, Value]:
        inside = [span for span in known if ns(low) <= span.ended_ns < ns(high)]
        groups: dict[str, list[Span]] = {} if key else {"": inside}
        if key:
            for span in inside:
                name = text_of(span, key)
                if name is not None:
                    groups.setdefault(name, []).append(span)
        return {name: RECOUNT[written["metric"]](spans) for name, spans in groups.items()}

    def lacks_cost(span: Span, instant: int) -> bool:
        is_paid = span in paid([span]) and written["metric"] in ("total_cost", "spent_on_o3")
        is_paid = is_paid and (written["metric"] == "total_cost" or span.model == "o3")
        return is_paid and span.cost_nusd is None and ns(instant - window) <= span.ended_ns < ns(instant)

    for instant in range(1, end + 1):
        if instant % interval:
            continue
        known = [
            span
            for stored, span in sent
            if stored < instant + lag and all(text_of(span, k) == v for k, v in written.get("filter", {}).items())
        ]
        readings = values(known, instant - window, instant)
        unpriced = {text_of(span, key) if key else "" for span in known if lacks_cost(span, instant)}
        if change:
            before = values(known, instant - 2 * window, instant - window)
            for name in {*readings, *before}:
                value, count = readings.get(name, (None, 0))
                old, _ = before.get(name, (None, 0))
                if value is None or old is None or (change == "percent" and old == 0):
                    value = None
                else:
                    value = value - old if change == "absolute" else (value - old) / abs(old) * 100
                readings[name] = (value, count)
        for name in sorted(
            {*readings, *(name for name, held in memory.items() if held.firing or held.pending is not None)}
        ):
            value, count = readings.get(name, (None, 0))
            state = memory.setdefault(name, Instance())
            if value is None or count == 0:
                value, count = (None, count)
                if no_data == "keep":
                    continue
                # Spans of unknown cost are no missing data.
                breach = no_data == "fire" and name not in unpriced
            elif count < written.get("min_spans", 0):
                continue
            else:
                recovery = written.get("recovery_threshold")
                breach = compare(value, recovery if state.firing and recovery is not None else threshold)
            quiet = instant < silent_until
            if not breach:
                state.pending = None
                if state.firing and not quiet:
                    state.firing = False
                    events.append(Told(instant, name, "resolved", value, count, state.starts))
                continue
            if lasting and not state.firing and state.pending is None:
                state.pending = instant
            if quiet or (state.pending is not None and instant - state.pending < lasting):
                continue
            if state.has_fired and instant - state.fired < cooldown:
                continue
            if not state.firing:
                state.starts = instant
            state.firing, state.has_fired, state.fired, state.pending = True, True, instant, None
            events.append(Told(instant, name, "firing", value, count, state.starts))
    return events


def told(events: Iterable[AlertEvent]) -> list[Told]:
    """Return the facts of *events*, ordered by instant and group as those of ``recount`` are."""
    facts = [
        Told(
            int(at(event)),
            next(iter(event.group.values()), ""),
            event.status,
            event.value,
            event.span_count,
            seconds(event.starts_at) or 0,
        )
        for event in events
    ]
    return sorted(facts, key=lambda event: (event.instant, event.group))


def assert_told(events: Iterable[AlertEvent], expected: Sequence[Told], *, starts: bool = True) -> None:
    facts = told(events)
    if not starts:
        facts = [event._replace(starts=0) for event in facts]
        expected = [event._replace(starts=0) for event in expected]
    assert [event._replace(value=None) for event in facts] == [event._replace(value=None) for event in expected]
    for event, wanted in zip(facts, expected, strict=True):
        assert event.value == (None if wanted.value is None else pytest.approx(wanted.value, rel=1e-6, abs=1e-5)), event


random_spans: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    age=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.2, 4.9, 5.5, 12.0]),
    kind=st.sampled_from(["llm", "llm", "llm", "tool", "agent"]),
    model=st.sampled_from(["gpt-4o", "o3", ""]),
    status=st.sampled_from(["ok", "ok", "error", "timeout"]),
    cost_nusd=st.sampled_from([None, 0, 10**9, 25 * 10**8]),
    latency_ns=st.sampled_from([0, 10**6, 3 * 10**8, 1_234_567_890]),
    score=st.sampled_from([None, 0, 333_333_333, 10**9]),
    attributes=st.fixed_dictionaries(
        {}, optional={"user": st.sampled_from(["alice", "bob", True, 3]), "hops": st.sampled_from([-3, 0, 1, 2, 8])}
    ),
)
random_streams = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.25, 1.0, 1.0, 1.9, 4.0]), st.lists(random_spans, min_size=1, max_size=4)),
    min_size=2,
    max_size=16,
)
Stream = list[tuple[float, list[dict[str, Any]]]]
THRESHOLDS: dict[str, list[float]] = {
    "span_count": [1, 2, 3],
    "total_cost": [0, 1, 2.5],
    "error_rate": [0, 0.5],
    "latency_p95": [2.7, 290.1],
    "quality_score": [0.3, 0.5],
    "hops": [-1, 0, 2],
    "hop_count": [1, 2],
    "hop_avg": [0, 0.5],
    "hop_p95": [0.25, 1.7],
    "spent_on_o3": [1, 3.1],
    "calls_with_user": [1, 2],
}


@st.composite
def random_rules(draw: st.DrawFn, *, plain: bool = False) -> dict[str, Any]:
    """Draw a rule in its written form; *plain* = without cooldown, ``for`` and recovery threshold."""
    metric = draw(st.sampled_from(sorted(THRESHOLDS)))
    rule: dict[str, Any] = {
        "name": "any",
        "metric": metric,
        "op": draw(st.sampled_from(["gt", "gt", "gte", "lt", "lte"])),
        "threshold": draw(st.sampled_from(THRESHOLDS[metric])),
        "window": draw(st.sampled_from(["1s", "2s", "3s", "10s", "60s"])),
        "eval_interval": draw(st.sampled_from(["1s", "1s", "2s", "5s"])),
        "cooldown": "0s" if plain else draw(st.sampled_from(["0s", "2s", "5s", "60s"])),
        "no_data": draw(st.sampled_from(["ignore", "ignore", "fire", "keep"])),
    }
    if draw(st.booleans()):
        # Other tests cover instances without data of rules with no_data "fire".
        rule["group_by"] = draw(st.sampled_from(["model", "user", "attr.user", "status"]))
        rule["no_data"] = "keep" if rule["no_data"] == "fire" else rule["no_data"]
    if draw(st.integers(0, 3)) == 0:
        rule["change"] = draw(st.sampled_from(["absolute", "percent"]))
        rule["threshold"] = draw(st.sampled_from([-1.3, 0.7, 49.9]))
    if draw(st.integers(0, 3)) == 0:
        rule["min_spans"] = draw(st.integers(1, 3))
    if draw(st.integers(0, 3)) == 0:
        rule["filter"] = draw(st.sampled_from([{"model": "o3"}, {"user": "true"}, {"status": "ok", "model": "gpt-4o"}]))
    if not plain and draw(st.booleans()):
        rule["for"] = draw(st.sampled_from(["1s", "2s", "3s", "5s"]))
    if not plain and draw(st.integers(0, 2)) == 0:
        away = draw(st.sampled_from([0, 0.25, 1, 2]))
        rule["recovery_threshold"] = rule["threshold"] + (-away if rule["op"] in ("gt", "gte") else away)
    return rule


def make_sent(stream: Stream) -> list[list[Sent]]:
    """Return the messages of *stream*; the clock begins 20 s after START, and each is stored after its pause."""
    stored, messages = 20.0, []
    for pause, spans in stream:
        stored = round(stored + pause, 3)
        message = []
        for fields in spans:
            rest = {key: value for key, value in fields.items() if key != "age"}
            ended = ns(stored - fields["age"])
            message.append(Sent(stored, make_span(ended_ns=ended, arrived_ns=ns(stored), **rest)))
        messages.append(message)
    return messages


def parse(written: Mapping[str, Any], **overrides: Any) -> Rule:
    return parse_rule({**written, **overrides}, "rule", None, CUSTOMS)


def flat(messages: Iterable[Iterable[Sent]]) -> list[Sent]:
    return [sent_span for message in messages for sent_span in message]
