"""
The alerter's state: a ring of buckets for each rule, and what each rule's events say.

Its clock is the broker's. Before a message of stream time t is folded, every aligned instant up to t that is due is
evaluated: what a window holds is decided by event time, what was there to be seen by stream time. Live, after a restart
and in a backtest the same stream gives the same firings.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Message, subjects
from tokentrace.dedup import FoldedBatches
from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent, Batch, Position, decode_batches, decode_event
from tokentrace.rollup import SeriesTable, changes_in, rows_of
from tokentrace.service.machine import Effect, Publish
from tokentrace.state import Saved
from tokentrace.units import HOUR, parse_instant
from tokentrace_alerter.rules import FilterIndex, Rule, RuleEvaluator, State, choose, instance_of, render_watch

VERSION = 6
#: What is read is complete up to this long ago, once everything has been read.
SETTLED_NS = 200_000_000
_encode = msgspec.json.Encoder()


class AlerterMachine:
    """``Machine`` of all rules, over all shards."""

    def __init__(self, rules: Sequence[Rule], project: str) -> None:
        self._project = project
        self._rules = list(rules)
        #: Of each instance of each rule the last firing and the last event: together they are its state.
        self._events: dict[str, dict[str, dict[str, AlertEvent]]] = {}
        self._silences: dict[str, int] = {}
        #: Of rules that were removed: what was said up to then is not said by a later rule of the same name.
        self._forgotten: dict[str, int] = {}
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = SeriesTable()
        self._seen = FoldedBatches()
        self._forgot_ns = 0
        self._effects: list[Effect] = []
        self._began_ns = 0
        #: Stream time of the last message taken in.
        self.time_ns = 0
        self.caught_up = False
        self.spans = 0
        self.watches: dict[str, RuleEvaluator] = {}
        self._watch_all({rule.name: RuleEvaluator(rule, self._table) for rule in self._rules})

    def _watch_all(self, watches: dict[str, RuleEvaluator]) -> None:
        known, self.watches = self.watches, watches
        self._due: list[tuple[int, int, str]] = []
        self._order = count()
        self._index = FilterIndex({name: watch.rule.filter for name, watch in watches.items()})
        for name, watch in watches.items():
            if watch is not known.get(name):
                watch.silenced_until_ns = self._silences.get(name, 0)
                for held in self._events.get(name, {}).values():
                    watch.recall(held)
            self._schedule(watch)

    def _schedule(self, watch: RuleEvaluator) -> None:
        if watch.due_ns:
            heapq.heappush(self._due, (watch.due_ns, next(self._order), watch.rule.name))

    @property
    def position(self) -> Position | None:
        """As ``Machine.position``."""
        return self._position

    # -- rules that come and go

    def begin(self, rules: Sequence[Rule]) -> None:
        """Watch these, before anything was read."""
        self._rules = list(rules)
        self._watch_all({rule.name: RuleEvaluator(rule, self._table) for rule in self._rules})

    def add(self, rule: Rule) -> None:
        """Watch *rule* from the next message on; it is looked at once it is ``primed``."""
        watch = RuleEvaluator(rule, self._table)
        watch.backfilling, watch.began_at = True, self._position
        self._rules = [one for one in self._rules if one.name != rule.name] + [rule]
        self._watch_all({**self.watches, rule.name: watch})

    def remove(self, name: str, upto_ns: int | None = None) -> None:
        """Watch it no more, if it is watched; what it said *upto_ns* is forgotten, None = all that is known of."""
        if upto_ns is None:
            said = [event for held in self._events.get(name, {}).values() for event in held.values()]
            upto_ns = max([0, *(parse_instant(event.fired_at) for event in said)])
        self.forget(name, upto_ns)
        if name not in self.watches:
            return
        self._rules = [rule for rule in self._rules if rule.name != name]
        subject = subjects.alerts(self._project, name)
        self._effects = [effect for effect in self._effects if effect.subject != subject]
        self._watch_all({other: watch for other, watch in self.watches.items() if other != name})

    def forget(self, name: str, upto_ns: int) -> None:
        """Before *name* is watched: what was said up to *upto_ns* was said by another rule of that name."""
        upto_ns = self._forgotten[name] = max(upto_ns, self._forgotten.get(name, 0))
        instances = self._events.pop(name, {})
        for group, held in instances.items():
            later = {word: event for word, event in held.items() if parse_instant(event.fired_at) > upto_ns}
            if "last" in later:
                self._events.setdefault(name, {})[group] = later

    def silence(self, name: str, until_ns: int) -> None:
        """Publish nothing of it until *until_ns*; 0 ends a silence."""
        self._silences[name] = until_ns
        if name in self.watches:
            self.watches[name].silenced_until_ns = until_ns

    def backfill(
        self, watches: Mapping[str, RuleEvaluator], index: FilterIndex, message: Message, seen: FoldedBatches
    ) -> None:
        """
        Take in a message that lies behind, for some rules alone.

        Args:
            index: Of their filters, by name.
            seen: What has been taken in for them so.

        Raises:
            Rejected: It cannot be read.
        """
        for batch in decode_batches(message.payload):
            if (batch.spans or batch.scores) and seen.add(batch, message.time_ns):
                self._fold_into(watches, index, batch, message.time_ns)

    def backfilled(self, name: str, since_ns: int, now_ns: int) -> None:
        """It knows everything from stream time *since_ns* on, and is looked at from now on."""
        watch = self.watches.get(name)
        if watch is not None:
            watch.backfilling, watch.backfilled_ns = False, since_ns
            watch.start_at(now_ns)
            self._schedule(watch)

    # -- the machine

    def fold(self, message: Message, created_ns: int) -> None:
        """As ``Machine.fold``: first what was due before it, then the message."""
        if not self._began_ns:
            self._began_ns = message.time_ns
            for watch in self.watches.values():
                watch.backfilled_ns = watch.backfilled_ns or message.time_ns
        self._evaluate(message.time_ns)
        self.time_ns = message.time_ns
        self._position = Position(created_ns, message.sequence)
        for batch in decode_batches(message.payload):
            if self._seen.add(batch, message.time_ns) and self.watches:
                self.spans += len(batch.spans)
                self._fold_into(self.watches, self._index, batch, message.time_ns)
        if message.time_ns - self._forgot_ns > HOUR:
            self._forgot_ns = message.time_ns
            self._seen.forget(message.time_ns)

    def _fold_into(self, watches: Mapping[str, RuleEvaluator], index: FilterIndex, batch: Batch, time_ns: int) -> None:
        if batch.spans:
            rows = rows_of(batch.spans, self._table, time_ns)
            for name, indices in index.match(batch.spans):
                watches[name].fold(*choose(batch.spans, rows, indices), time_ns)
        changes = changes_in(batch.scores)
        # Before it was given a span may have been in another rule or instance than after.
        for name, indices in index.match([span for _, span in changes]) if changes else ():
            watches[name].change(changes if indices is None else [changes[at] for at in indices], time_ns)

    def _evaluate(self, upto_ns: int) -> None:
        while self._due and self._due[0][0] <= upto_ns:
            due_ns, _, name = heapq.heappop(self._due)
            watch = self.watches.get(name)
            if watch is None or watch.due_ns != due_ns:
                continue
            self._effects += [self._publish(watch.rule, event) for event in watch.evaluate()]
            self._schedule(watch)

    def _publish(self, rule: Rule, event: AlertEvent) -> Publish:
        subject = subjects.alerts(self._project, rule.name)
        return Publish(subject, _encode.encode(event), id=event_id(event))

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """As ``Machine.lost``."""
        self._position = Position(created_ns, last)

    def rewound(self, created_ns: int) -> None:
        """As ``Machine.rewound``."""
        self._position = Position(created_ns, 0)

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """As ``Machine.tick``: once everything is read, the clock may be trusted up to a moment ago."""
        if self.caught_up:
            self.start(now_ns)
            self._evaluate(now_ns - SETTLED_NS)
        return self.decided()

    def start(self, now_ns: int) -> None:
        """Look from *now_ns* on at what is not looked at yet: it was primed by what was read."""
        for watch in self.watches.values():
            if watch.next_ns == 0 and not watch.backfilling:
                watch.backfilled_ns = self._began_ns or now_ns
                watch.start_at(now_ns)
                self._schedule(watch)

    def look_until(self, upto_ns: int) -> None:
        """Evaluate what is due at *upto_ns*: everything up to then has been read."""
        self._evaluate(upto_ns)

    def decided(self) -> list[Effect]:
        """What waits to be published."""
        return list(self._effects)

    def performed(self, effect: Effect) -> None:
        """As ``Machine.performed``."""
        if effect in self._effects:
            self._effects.remove(effect)

    def learn(self, event: AlertEvent) -> None:
        """Somebody, perhaps this alerter before a restart, has published *event*."""
        if parse_instant(event.fired_at) <= self._forgotten.get(event.alert, 0):
            return
        held = self._events.setdefault(event.alert, {}).setdefault(instance_of(event), {})
        if event.status == "firing":
            held["firing"] = event
        held["last"] = event
        watch = self.watches.get(event.alert)
        if watch is not None:
            watch.recall(held)

    def episodes(self) -> list[AlertEvent]:
        """The last event of every instance that fires now."""
        lasting = []
        for name, watch in self.watches.items():
            for group, held in self._events.get(name, {}).items():
                state = watch.states.get(group)
                if held["last"].status == "firing" and state is not None and state.firing:
                    lasting.append(held["last"])
        return lasting

    def render(self, now_ns: int) -> list[dict[str, Any]]:
        """``GET /alerts``."""
        return [render_watch(watch, now_ns) for watch in self.watches.values()]

    def heard(self, event: AlertEvent) -> AlertEvent | None:
        """The last that was published about the same instance."""
        return self._events.get(event.alert, {}).get(instance_of(event), {}).get("last")

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``, in one piece."""
        watches = {name: watch.snapshot() for name, watch in self.watches.items() if not watch.backfilling}
        state = {
            "version": VERSION,
            "position": self._position,
            "cells": list(self._table.series),
            "seen": self._seen.snapshot(),
            "forgot_ns": self._forgot_ns,
            "began_ns": self._began_ns,
            "effects": list(self._effects),
            "forgotten": dict(self._forgotten),
        }
        return Saved(
            lambda: msgspec.msgpack.encode({**state, "watches": {name: watch() for name, watch in watches.items()}})
        )

    def restore(self, state: bytes, parts: Mapping[str, bytes]) -> None:
        """As ``Machine.restore``; a rule that is new or watches something else has to be primed."""
        try:
            with reading("cannot be read"):
                self._restore(msgspec.msgpack.decode(state))
        except Rejected:
            self._reset()
            raise

    def _restore(self, saved: Any) -> None:
        if saved["version"] != VERSION:
            raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
        self._table = SeriesTable(saved["cells"])
        self._position = msgspec.convert(saved["position"], Position | None)
        self._seen = FoldedBatches.restore(saved["seen"])
        self._forgot_ns, self._began_ns = msgspec.convert([saved["forgot_ns"], saved["began_ns"]], tuple[int, int])
        for name, upto_ns in msgspec.convert(saved["forgotten"], dict[str, int]).items():
            self.forget(name, upto_ns)
        watches = {rule.name: RuleEvaluator(rule, self._table) for rule in self._rules}
        for name, watch in watches.items():
            held = saved["watches"].get(name)
            if held is not None and held["fingerprint"] == watch.rule.fingerprint:
                watch.restore(held)
            else:
                watch.backfilling, watch.began_at = True, self._position
        self._watch_all(watches)
        self._effects = [effect for effect in msgspec.convert(saved["effects"], list[Publish]) if self._owed(effect)]

    def _owed(self, effect: Publish) -> bool:
        """An event that was decided and had not been published when the snapshot was taken; it still holds."""
        event = decode_event(effect.payload)
        watch = self.watches.get(event.alert)
        if watch is None or parse_instant(event.fired_at) <= watch.states.get(instance_of(event), State()).event_ns:
            return False
        watch.take(event)
        return True


def event_id(event: AlertEvent) -> str:
    """Makes a repetition harmless: what, when, and which instance."""
    # The broker knows ids of the whole stream, and eight digits of two names may be the same.
    own = f"{event.rule_id}@{event.fired_at}@{event.status}@{hashlib.sha256(event.alert.encode()).hexdigest()[:24]}"
    name = instance_of(event)
    return f"{own}@{hashlib.sha256(name.encode()).hexdigest()[:16]}" if name else own
