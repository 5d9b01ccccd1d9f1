"""An alerter with its log, its ticks and its restarts, and tests written as one character per second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from kit.builders import make_span
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.dedup import Deduplicator
from tokentrace.metrics import parse_custom_metrics
from tokentrace.records import AlertEvent, Batch, Span, encode_batches
from tokentrace.units import DAY, SECOND, parse_instant
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, parse_rule

#: 2026-09-21T14:00:00Z in seconds, a whole hour.
START = 497_222 * 3600
CREATED = 7
#: The alerter evaluates an instant this many seconds after it (``SETTLED_NS``); the lag of a rule is added.
SETTLED = 0.2
#: Default begin of the log, seconds after START; it is so early that the log covers every window.
LONG_AGO = -40 * DAY / SECOND
LETTERS = {
    "inactive": "i",
    "pending": "p",
    "firing": "f",
    "resolved": "r",
    "no_data": "n",
    "warming": "w",
}
CUSTOMS = parse_custom_metrics(
    [
        {"name": "hops", "type": "sum", "field": "attr.hops"},
        {"name": "hop_count", "type": "count", "field": "attr.hops"},
        {"name": "hop_avg", "type": "avg", "field": "attr.hops"},
        {"name": "hop_p95", "type": "p95", "field": "attr.hops"},
        {"name": "spent_on_o3", "type": "sum", "field": "cost", "filter_key": "model", "filter_val": "o3"},
        {"name": "calls_with_user", "type": "count", "filter_key": "user"},
    ]
)


def ns(seconds: float) -> int:
    """Return the instant *seconds* after START in Unix nanoseconds."""
    return START * SECOND + round(seconds * 1000) * (SECOND // 1000)


def make_rule(**overrides: Any) -> Rule:
    """Return a rule; by default, average latency over 500 ms in the last second, evaluated every second."""
    written = {
        "name": "any",
        "metric": "latency_avg",
        "op": "gt",
        "threshold": 500,
        "window": "1s",
        "eval_interval": "1s",
        "cooldown": "60s",
        **overrides,
    }
    return parse_rule({key: value for key, value in written.items() if value is not None}, "rule", None, CUSTOMS)


def call(ended: float, **overrides: Any) -> Span:
    """Return a call that ended *ended* seconds after START."""
    return make_span(ended_ns=ns(ended), arrived_ns=ns(ended), **overrides)


def slow(ended: float, latency_ms: float, **overrides: Any) -> Span:
    return call(ended, latency_ns=round(latency_ms * 1e6), **overrides)


def backfill(alerter: AlerterMachine, name: str, message: Message, memory: Mapping[int, Deduplicator]) -> None:
    """Fold an older message for the rule *name* only; does nothing if there is no such rule."""
    watches = {name: alerter.evaluators[name]} if name in alerter.evaluators else {}
    index = FilterIndex({name: watch.rule.filter for name, watch in watches.items()})
    alerter.backfill(watches, index, message, memory)


class Story:
    """
    An alerter, the log that it reads, and the events that it has published.

    Args:
        began: When the first message of the log was stored, seconds after START; None = the log is empty.
        begin: When the clock of the alerter begins, seconds after START.
    """

    def __init__(self, *rules: Rule, began: float | None = LONG_AGO, begin: float = 0) -> None:
        self.rules = list(rules)
        self.alerter = AlerterMachine(self.rules, "default", capacity=CAPACITY)
        self.published: list[AlertEvent] = []
        self.silences: dict[str, int] = {}
        #: When the silences were made, Unix nanoseconds; 0 = unknown.
        self.silenced_at = 0
        self.log: list[Message] = []
        if began is not None:
            self.send(began)
        self.alerter.caught_up = True
        assert self.tick(begin) == []

    def send(self, at: float, *spans: Span, id: str = "") -> Message:
        """Store one batch *at* seconds after START, fold its message and return it."""
        number = len(self.log) + 1
        payload = encode_batches([Batch(id=id or f"request-{number}", spans=list(spans))])
        message = Message("tokentrace.spans.default.0", payload, number, ns(at), {})
        self.log.append(message)
        self.alerter.fold(message, CREATED)
        return message

    def tick(self, now: float) -> list[AlertEvent]:
        """Return the events that the alerter publishes at *now*, seconds after START."""
        events = []
        for effect in list(self.alerter.tick(ns(now))):
            self.alerter.performed(effect)
            event = msgspec.json.decode(effect.payload, type=AlertEvent)
            self.alerter.apply_event(event)
            events.append(event)
        self.published += events
        return events

    def silence(self, until: float, name: str = "any") -> None:
        self.silences[name] = ns(until) if until else 0
        self.alerter.silence(name, self.silences[name])

    def shown(self, now: float, name: str = "any") -> dict[str, Any]:
        """Return the rule as ``GET /alerts`` shows it."""
        (shown,) = [rule for rule in self.alerter.render(ns(now)) if rule["name"] == name]
        return shown

    def snapshot(self) -> bytes:
        return save(self.alerter)

    def restart(self, snapshot: bytes | None, *rules: Rule) -> None:
        """Restart as the service does: apply silences, events, snapshot and later messages, then backfill new rules."""
        self.rules = list(rules) or self.rules
        self.alerter = AlerterMachine(self.rules, "default", capacity=CAPACITY)
        for name, until_ns in self.silences.items():
            self.alerter.silence(name, until_ns, self.silenced_at)
        for event in self.published:
            self.alerter.apply_event(event)
        if snapshot is not None:
            load(self.alerter, snapshot)
        done = self.alerter.position.sequence if self.alerter.position else 0
        new = [name for name, watch in self.alerter.evaluators.items() if watch.backfilling]
        for message in self.log[done:]:
            self.alerter.fold(message, CREATED)
        for name in new:
            memory = self.alerter.new_memory()
            for message in self.log[:done]:
                backfill(self.alerter, name, message, memory)
            self.alerter.finish_backfill(name, ns(LONG_AGO), self.log[-1].time_ns)
        self.alerter.caught_up = True


def at(event: AlertEvent) -> float:
    """Return the instant of *event*, seconds after START."""
    return (parse_instant(event.fired_at) - START * SECOND) / SECOND


def seconds(instant: str | None) -> float | None:
    return None if instant is None else (parse_instant(instant) - START * SECOND) / SECOND


def brief(events: Iterable[AlertEvent]) -> list[tuple[float, str]]:
    return [(at(event), event.status) for event in events]


class Drawing(NamedTuple):
    """
    What one rule measures, publishes and shows over time, one character per second.

    Attributes:
        what: What is tested.
        rule: Keys of the rule that differ from ``make_rule``.
        seen: The measured value: ``#`` a breach by two spans, ``1`` a breach by one span, ``=`` the threshold, ``~``
            between the two thresholds, ``_`` the recovery threshold, ``.`` no breach, ``-`` no span.
        said: The event of the instant: ``F`` firing, ``R`` resolved, ``.`` none.
        state: The state shown after the instant, one of ``LETTERS``.
        silence: (The instant after which a silence begins, the second at which it ends).
    """

    what: str
    rule: dict[str, Any]
    seen: str
    said: str
    state: str
    silence: tuple[int, float] = (0, 0)


OFFSETS = {"#": 100, "1": 100, "=": 0, "~": -50, "_": -100, ".": -200}


def play(drawing: Drawing, after: Callable[[Story, int], None] = lambda story, instant: None) -> tuple[str, str]:
    """Play *drawing* and return (events, states shown), as it writes them; call *after* after each instant."""
    rule = make_rule(**drawing.rule)
    sign = 1 if rule.op in ("gt", "gte") else -1
    lag = rule.lag_ns / SECOND
    story = Story(rule)
    steps = [(second - 0.5, 0, second) for second in range(1, len(drawing.seen) + 1)]
    steps += [(second + lag + SETTLED, 1, second) for second in range(1, len(drawing.seen) + 1)]
    said: dict[float, str] = {}
    states = ""
    for now, looking, second in sorted(steps):
        if not looking:
            mark = drawing.seen[second - 1]
            count = {"-": 0, "1": 1}.get(mark, 2)
            story.send(now, *(slow(now, 500 + sign * OFFSETS[mark]) for _ in range(count)))
            continue
        for event in story.tick(now):
            said[at(event)] = said.get(at(event), "") + {"firing": "F", "resolved": "R"}[event.status]
        states += LETTERS[story.shown(now)["state"]]
        if second == drawing.silence[0]:
            story.silence(drawing.silence[1])
        after(story, second)
    return "".join(said.pop(n, ".") for n in range(1, len(drawing.seen) + 1)) + str(said or ""), states


def states_shown(story: Story, until: int, lag: float) -> str:
    """Return the states shown after the instants 1 to *until*, one letter each; *lag* is that of the rule."""
    shown = ""
    for second in range(1, until + 1):
        story.tick(second + lag + SETTLED)
        shown += LETTERS[story.shown(second)["state"]]
    return shown
