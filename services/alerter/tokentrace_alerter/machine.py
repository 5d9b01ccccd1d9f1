"""
The alerter's state: a ring of buckets for each rule, and what each rule's events say.

Its clock is the broker's. Before a message of stream time t is folded, every aligned instant up to t that is due is
evaluated: what a window holds is decided by event time, what was there to be seen by stream time. Live, after a restart
and in a backtest the same stream gives the same firings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tokentrace.bus import subjects
from tokentrace.cell import Table, rows_of
from tokentrace.errors import Rejected
from tokentrace.machine import Effect, Message, Publish, Saved
from tokentrace.quantile import Ints
from tokentrace.records import AlertEvent, Batch, Span, decode_batches
from tokentrace.records.position import Position
from tokentrace.seen import Seen
from tokentrace.units import HOUR, parse_instant, render_duration, render_instant
from tokentrace_alerter.measure import make_measure
from tokentrace_alerter.rule import Rule, State, breaches, decide

VERSION = 3
#: What is read is complete up to this long ago, once everything has been read.
SETTLED_NS = 200_000_000
_encode = msgspec.json.Encoder()


class Watch:
    """One rule, its ring and its state."""

    def __init__(self, rule: Rule, table: Table) -> None:
        self.rule = rule
        self.state = State()
        self.primed_ns = 0
        self.next_ns = 0
        self._measure = make_measure(rule, table)

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Take in the spans of a message of stream time *time_ns*; *rows* are theirs."""
        self._measure.fold(spans, rows, time_ns)

    def due(self, upto_ns: int) -> bool:
        """An instant is waiting to be evaluated."""
        return 0 < self.next_ns <= upto_ns - self.rule.lag_ns

    def evaluate(self) -> AlertEvent | None:
        """Look at the next instant; returns what is to be published."""
        rule, instant = self.rule, self.next_ns
        self.next_ns += rule.eval_interval_ns
        value, count = self._measure.read(instant)
        decision = decide(rule, self.state, instant, value, count)
        self.state.evaluated_ns, self.state.value, self.state.span_count = instant, value, count
        self.state.breached = breaches(rule, value, count)
        self.state.why = decision.why
        if decision.event is not None:
            self.take(decision.event)
        return decision.event

    def start_at(self, now_ns: int) -> None:
        """Evaluate from the first aligned instant after *now_ns*."""
        interval = self.rule.eval_interval_ns
        self.next_ns = (now_ns // interval + 1) * interval

    def take(self, event: AlertEvent) -> None:
        """The state that *event* says."""
        instant = parse_instant(event.fired_at)
        if event.status == "firing":
            self.state.fired_ns = max(self.state.fired_ns, instant)
        if instant < self.state.event_ns:
            return
        self.state.event_ns = instant
        self.state.firing = event.status == "firing"
        if self.state.firing:
            self.state.starts_ns = parse_instant(event.starts_at) if event.starts_at else instant

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Captured now, made into plain data for ``restore`` later and in any thread."""
        measure = self._measure.snapshot()
        state = {
            "fingerprint": self.rule.fingerprint,
            "seen": [self.state.evaluated_ns, self.state.value, self.state.span_count],
            "interval_ns": self.rule.eval_interval_ns,
            "primed_ns": self.primed_ns,
            "next_ns": self.next_ns,
        }
        return lambda: {**state, "measure": measure()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where ``snapshot`` was, if it watched the same; what fired is for the events to say."""
        if saved["fingerprint"] != self.rule.fingerprint:
            return
        self._measure.restore(saved["measure"])
        evaluated_ns, value, span_count = saved["seen"]
        self.state = State(evaluated_ns=evaluated_ns, value=value, span_count=span_count)
        self.primed_ns, self.next_ns = saved["primed_ns"], saved["next_ns"]
        if self.next_ns and saved["interval_ns"] != self.rule.eval_interval_ns:
            self.start_at(self.next_ns - saved["interval_ns"])


class Alerter:
    """``Machine`` of all rules, over all shards."""

    def __init__(self, rules: Sequence[Rule], project: str) -> None:
        self._project = project
        self._rules = list(rules)
        #: Of each rule the last firing and the last event: together they are its state.
        self._events: dict[str, dict[str, AlertEvent]] = {}
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = Table()
        self._seen = Seen()
        self._forgot_ns = 0
        self._effects: list[Effect] = []
        self._began_ns = 0
        self.caught_up = False
        self.watches = {rule.name: Watch(rule, self._table) for rule in self._rules}
        self.spans = 0
        self._take_events()

    def _take_events(self) -> None:
        for name, watch in self.watches.items():
            for event in self._events.get(name, {}).values():
                watch.take(event)

    @property
    def position(self) -> Position | None:
        """As ``Machine.position``."""
        return self._position

    def fold(self, message: Message, created_ns: int) -> None:
        """As ``Machine.fold``: first what was due before it, then the message."""
        self._began_ns = self._began_ns or message.time_ns
        self._evaluate(message.time_ns)
        self._position = Position(created_ns, message.sequence)
        for batch in decode_batches(message.payload):
            if self._seen.add(batch, message.time_ns):
                self._fold_batch(batch, message.time_ns)
        if message.time_ns - self._forgot_ns > HOUR:
            self._forgot_ns = message.time_ns
            self._seen.forget(message.time_ns)

    def _fold_batch(self, batch: Batch, time_ns: int) -> None:
        if batch.spans and self.watches:
            self.spans += len(batch.spans)
            rows = rows_of(batch.spans, self._table, time_ns)
            for watch in self.watches.values():
                watch.fold(batch.spans, rows, time_ns)

    def _evaluate(self, upto_ns: int) -> None:
        for watch in self.watches.values():
            while watch.due(upto_ns):
                event = watch.evaluate()
                if event is not None:
                    self._effects.append(self._publish(watch.rule, event))

    def _publish(self, rule: Rule, event: AlertEvent) -> Publish:
        subject = subjects.alerts(self._project, rule.name)
        return Publish(subject, _encode.encode(event), id=f"{rule.rule_id}@{event.fired_at}@{event.status}")

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """As ``Machine.lost``."""
        self._position = Position(created_ns, last)

    def rewound(self, created_ns: int) -> None:
        """As ``Machine.rewound``."""
        self._position = Position(created_ns, 0)

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """As ``Machine.tick``: once everything is read, the clock may be trusted up to a moment ago."""
        if self.caught_up:
            for watch in self.watches.values():
                if watch.next_ns == 0:
                    # A rule seen for the first time was primed by what was read, and is judged from now on.
                    watch.primed_ns = self._began_ns or now_ns
                    watch.start_at(now_ns)
            self._evaluate(now_ns - SETTLED_NS)
        return list(self._effects)

    def performed(self, effect: Effect) -> None:
        """As ``Machine.performed``."""
        self._effects.remove(effect)

    def learn(self, event: AlertEvent) -> None:
        """Somebody, perhaps this alerter before a restart, has published *event*."""
        held = self._events.setdefault(event.alert, {})
        if event.status == "firing":
            held["firing"] = event
        held["last"] = event
        watch = self.watches.get(event.alert)
        if watch is not None:
            watch.take(event)

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``, in one piece."""
        watches = {name: watch.snapshot() for name, watch in self.watches.items()}
        state = {
            "version": VERSION,
            "position": self._position,
            "cells": list(self._table.cells),
            "seen": self._seen.snapshot(),
            "forgot_ns": self._forgot_ns,
            "began_ns": self._began_ns,
            "effects": list(self._effects),
        }
        return Saved(
            lambda: msgspec.msgpack.encode({**state, "watches": {name: watch() for name, watch in watches.items()}})
        )

    def restore(self, state: bytes, parts: Mapping[str, bytes]) -> None:
        """As ``Machine.restore``; a rule that is new or watches something else has everything read again."""
        try:
            saved = msgspec.msgpack.decode(state)
            if saved["version"] != VERSION:
                raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
            known = {entry["fingerprint"] for entry in saved["watches"].values()}
            if not all(rule.fingerprint in known for rule in self._rules):
                # Rings of new rules are filled by reading the log again; the events tell what fired already.
                return
            self._table = Table(saved["cells"])
            self._position = msgspec.convert(saved["position"], Position | None)
            self._seen = Seen.restore(saved["seen"])
            self._forgot_ns, self._began_ns = saved["forgot_ns"], saved["began_ns"]
            self.watches = {rule.name: Watch(rule, self._table) for rule in self._rules}
            for name, watch in self.watches.items():
                watch.restore(saved["watches"][name])
            self._take_events()
            self._effects = [
                effect for effect in msgspec.convert(saved["effects"], list[Publish]) if self._owed(effect)
            ]
        except Rejected:
            self._reset()
            raise
        except (
            msgspec.DecodeError,
            msgspec.ValidationError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as exc:
            self._reset()
            raise Rejected(f"cannot be read: {exc}") from exc

    def _owed(self, effect: Publish) -> bool:
        """An event that was decided and had not been published when the snapshot was taken; it still holds."""
        event = msgspec.json.decode(effect.payload, type=AlertEvent)
        watch = self.watches.get(event.alert)
        if watch is None or parse_instant(event.fired_at) <= watch.state.event_ns:
            return False
        watch.take(event)
        return True

    def render(self, now_ns: int) -> list[dict[str, Any]]:
        """``GET /alerts``."""
        return [_render(watch, now_ns) for watch in self.watches.values()]


def _render(watch: Watch, now_ns: int) -> dict[str, Any]:
    rule, state = watch.rule, watch.state
    warming = watch.next_ns == 0 or now_ns < watch.primed_ns + rule.window_ns
    return {
        "name": rule.name,
        "metric": rule.metric,
        "op": rule.op,
        "threshold": rule.threshold,
        "window": rule.window,
        "last_evaluated": render_instant(state.evaluated_ns) if state.evaluated_ns else None,
        "last_fired": render_instant(state.fired_ns) if state.fired_ns else None,
        "current_value": state.value,
        "firing": state.breached,
        "silenced": rule.silenced,
        "silenced_until": None,
        "rule_id": rule.rule_id,
        "level": rule.level,
        "filter": rule.filter,
        "min_spans": rule.min_spans,
        "cooldown": render_duration(rule.cooldown_ns),
        "eval_interval": render_duration(rule.eval_interval_ns),
        "next_evaluation": render_instant(watch.next_ns) if watch.next_ns else None,
        "span_count": state.span_count,
        "state": "firing" if state.firing else "warming" if warming else "inactive",
        "why_not_fired": state.why or None,
    }
