"""An alerter with its log, its ticks and its restarts, and rules of many metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kit.builders import make_span
from kit.whole_snapshots import CAPACITY, load
from tokentrace.bus import Message
from tokentrace.dedup import Deduplicator
from tokentrace.records import AlertEvent, Batch, Span, encode_batches
from tokentrace.service.machine import Effect
from tokentrace.units import SECOND, parse_instant
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, parse_rule

#: 2026-09-21T14:00:00Z in seconds, a whole hour.
START = 497_222 * 3600
CREATED = 7
#: The alerter evaluates an instant this many seconds after it (``SETTLED_NS``); the lag of a rule is added.
SETTLED = 0.2


def ns(seconds: float) -> int:
    """Return the instant *seconds* after START in Unix nanoseconds."""
    return START * SECOND + round(seconds * 1000) * (SECOND // 1000)


def make_rule(**overrides: Any) -> Rule:
    """Return a rule; by default, one that fires at every instant with a span in its last 10 s."""
    written = {
        "name": "any",
        "metric": "span_count",
        "op": "gte",
        "threshold": 0,
        "window": "10s",
        "eval_interval": "1s",
        "cooldown": "0s",
    }
    return parse_rule({**written, **overrides}, "alerts[0]")


def call(ended: float, **overrides: Any) -> Span:
    """Return a call that ended *ended* seconds after START; a negative *ended* arrives at START."""
    return make_span(ended_ns=ns(ended), arrived_ns=ns(max(ended, 0)), **overrides)


def backfill(alerter: AlerterMachine, name: str, message: Message, memory: Mapping[int, Deduplicator]) -> None:
    """Fold an older message for the rule *name* only; does nothing if there is no such rule."""
    watches = {name: alerter.evaluators[name]} if name in alerter.evaluators else {}
    index = FilterIndex({name: watch.rule.filter for name, watch in watches.items()})
    alerter.backfill(watches, index, message, memory)


def begin_log(alerter: AlerterMachine, began_ns: int) -> None:
    """Fold an empty message stored at *began_ns*, so that the log covers everything since."""
    alerter.fold(Message("tokentrace.spans.default.0", encode_batches([]), 0, began_ns, {}), CREATED)


class Story:
    """
    An alerter, the log that it reads, and the events that it has published.

    Args:
        begin: When the clock begins, seconds after START; None = the alerter has not caught up.
        began: When the log began, seconds after START.
    """

    def __init__(self, *rules: Rule, begin: float | None = 0, began: float = -40 * 86400) -> None:
        self.began = ns(began)
        self.rules = list(rules)
        self.alerter = AlerterMachine(self.rules, "default", capacity=CAPACITY)
        begin_log(self.alerter, self.began)
        self.published: list[AlertEvent] = []
        self.log: list[Message] = []
        if begin is not None:
            self.alerter.caught_up = True
            assert self.tick(begin) == []

    def send(self, at: float, *spans: Span, id: str = "", sequence: int = 0) -> None:
        """Store one batch *at* seconds after START and fold its message."""
        number = len(self.log) + 1
        payload = encode_batches([Batch(id=id or f"request-{number}", sequence=sequence, spans=list(spans))])
        self.log.append(Message("tokentrace.spans.default.0", payload, number, ns(at), {}))
        self.alerter.fold(self.log[-1], CREATED)

    def tick(self, now: float) -> list[AlertEvent]:
        """Return the events that the alerter publishes at *now*, seconds after START."""
        effects = self.alerter.tick(ns(now))
        for effect in effects:
            self.alerter.performed(effect)
        events = [read(effect) for effect in effects]
        self.published += events
        return events

    def backfill(self, now_ns: int) -> None:
        """Backfill the rules that wait for it, as the service does; they are evaluated from *now_ns* on."""
        done = self.alerter.position.sequence if self.alerter.position else 0
        for name in [name for name, watch in self.alerter.evaluators.items() if watch.backfilling]:
            memory = self.alerter.new_memory()
            for message in self.log[:done]:
                backfill(self.alerter, name, message, memory)
            self.alerter.finish_backfill(name, self.began, now_ns)

    def restart(self, snapshot: bytes | None, *rules: Rule, caught_up: bool = True) -> None:
        """Restart as the service does: apply events, snapshot, backfill if *caught_up*, and later messages."""
        self.rules = list(rules) or self.rules
        self.alerter = AlerterMachine(self.rules, "default", capacity=CAPACITY)
        begin_log(self.alerter, self.began)
        for event in self.published:
            self.alerter.apply_event(event)
        if snapshot is not None:
            load(self.alerter, snapshot)
        done = self.alerter.position.sequence if self.alerter.position else 0
        if caught_up:
            self.backfill(self.log[-1].time_ns if self.log else self.began)
        for message in self.log[done:]:
            self.alerter.fold(message, CREATED)
        self.alerter.caught_up = caught_up


def read(effect: Effect) -> AlertEvent:
    return msgspec.json.decode(effect.payload, type=AlertEvent)


def at(event: AlertEvent) -> float:
    """Return the instant of *event*, seconds after START."""
    return (parse_instant(event.fired_at) - START * SECOND) / SECOND


def brief(events: Iterable[AlertEvent]) -> list[tuple[float, str, int]]:
    """Return (instant, status, span_count) of each event."""
    return [(at(event), event.status, event.span_count) for event in events]


def breach(story: Story, seconds: Iterable[float]) -> None:
    for second in seconds:
        story.send(second, call(second))


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
