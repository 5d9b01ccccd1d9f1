"""
The alerter's state: a ring of buckets for each rule, and what each rule's events say.

Its clock is the broker's. Before a message of stream time t is folded, every aligned instant up to t that is due is
evaluated: what a window holds is decided by event time, what was there to be seen by stream time. Live, after a restart
and in a backtest the same stream gives the same firings.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from tokentrace.bus import subjects
from tokentrace.cell import OTHER, Table, rows_of
from tokentrace.errors import Rejected
from tokentrace.machine import Effect, Message, Publish, Saved
from tokentrace.quantile import Ints
from tokentrace.records import AlertEvent, Batch, Span, decode_batches
from tokentrace.records.position import Position
from tokentrace.seen import Seen
from tokentrace.units import HOUR, parse_instant
from tokentrace_alerter.index import Index
from tokentrace_alerter.measure import WHOLE, choose, make_measure
from tokentrace_alerter.render import render_watch
from tokentrace_alerter.rule import Rule, State, breaches, decide
from tokentrace_alerter.rule import Seen as Found

VERSION = 4
#: What is read is complete up to this long ago, once everything has been read.
SETTLED_NS = 200_000_000
_encode = msgspec.json.Encoder()


class Watch:
    """
    One rule, its ring and the state of each of its instances.

    Attributes:
        primed_ns: From this stream time on it knows everything; 0 = there has been nothing to know.
        next_ns: The next instant to look at; 0 = none yet.
        priming: Older messages are still being read for it.
        silenced_until_ns: Until then nothing is published.
        spans: How many it has taken in.
    """

    def __init__(self, rule: Rule, table: Table) -> None:
        self.rule = rule
        self.states: dict[str, State] = {}
        self.primed_ns = 0
        self.next_ns = 0
        self.priming = False
        #: What lies up to here it has to be primed with.
        self.began_at: Position | None = None
        #: Instances that are counted with the rest now.
        self._folded: set[str] = set()
        self.silenced_until_ns = 0
        self.spans = 0
        self._measure = make_measure(rule, table)

    @property
    def state(self) -> State:
        """That of a rule that is not grouped."""
        return self.states.setdefault(WHOLE, State())

    @property
    def late(self) -> int:
        """Spans that came when no window could hold them any more."""
        return self._measure.late

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Take in spans that pass its filter, of a message of stream time *time_ns*; *rows* are theirs."""
        self.spans += len(spans)
        self._measure.fold(spans, rows, time_ns)

    @property
    def due_ns(self) -> int:
        """The broker's clock when the next instant is to be evaluated; 0 = there is none."""
        return self.next_ns + self.rule.lag_ns if self.next_ns else 0

    def evaluate(self) -> list[AlertEvent]:
        """Look at the next instant; returns what is to be published."""
        rule, instant = self.rule, self.next_ns
        self.next_ns += rule.eval_interval_ns
        found = self._measure.read(instant)
        busy = self._busy()
        # Of instances that are gone only those matter that say something, unless no data does.
        self._folded -= found.keys()
        known = self.states.keys() - self._folded if rule.no_data == "fire" else busy
        names = sorted({*found, *known}) if rule.group_by else [WHOLE]
        events = []
        for name in names:
            seen = found.get(name, Found(None, 0))
            event = self._look(name, instant, seen.value, seen.span_count)
            if event is not None:
                events.append(event)
        if rule.group_by:
            self._forget(instant, found)
            stay = self._measure.bound(found, self._busy())
            if stay is not None:
                self._folded |= {name for name in self.states if name not in stay and name != OTHER}
                cooling = {name for name in self._folded if self._is_cooling(name, instant)}
                self._folded &= cooling
                kept = stay | cooling | {OTHER}
                self.states = {name: state for name, state in self.states.items() if name in kept}
        return events

    def _is_cooling(self, name: str, instant: int) -> bool:
        state = self.states.get(name)
        return state is not None and state.fired_ns > 0 and instant <= state.fired_ns + self.rule.cooldown_ns

    def _busy(self) -> set[str]:
        """The instances that say something, or are about to."""
        return {name for name, state in self.states.items() if state.firing or state.pending_ns}

    def _look(self, name: str, instant: int, value: float | None, span_count: int) -> AlertEvent | None:
        rule, state = self.rule, self.states.setdefault(name, State())
        decision = decide(
            rule,
            state,
            instant,
            value,
            span_count,
            silenced=instant < self.silenced_until_ns,
            warming=self.warming(instant),
            group=name,
        )
        state.breached = breaches(rule, value, span_count, firing=state.firing)
        state.evaluated_ns, state.value, state.span_count = instant, value, span_count
        state.why, state.pending_ns = decision.why, decision.pending_ns
        if decision.event is not None:
            self.take(decision.event)
        return decision.event

    def _forget(self, instant: int, found: Mapping[str, Found]) -> None:
        """Instances without data, whose past no longer matters."""
        for name, state in list(self.states.items()):
            fires = self.rule.no_data == "fire" and name not in self._folded
            if state.firing or state.pending_ns or name in found or fires:
                continue
            if state.fired_ns + self.rule.cooldown_ns < instant:
                del self.states[name]
                self._folded.discard(name)
            else:
                state.value, state.span_count, state.breached, state.why = None, 0, False, "no_data"

    def warming(self, instant_ns: int) -> bool:
        """What it looks at reaches back further than what it knows."""
        return not self.primed_ns or instant_ns < self.primed_ns + self.rule.covers_ns

    def start_at(self, now_ns: int) -> None:
        """Evaluate from the first aligned instant after *now_ns*."""
        interval = self.rule.eval_interval_ns
        self.next_ns = (now_ns // interval + 1) * interval

    def take(self, event: AlertEvent) -> None:
        """The state that *event* says."""
        if list(event.group) != ([self.rule.group_by] if self.rule.group_by else []):
            return  # of when the rule was grouped by something else
        state = self.states.setdefault(instance_of(event), State())
        instant = parse_instant(event.fired_at)
        if state.pending_ns <= instant:
            state.pending_ns = 0
        if event.status == "firing":
            state.fired_ns = max(state.fired_ns, instant)
        if instant < state.event_ns:
            return
        state.event_ns = instant
        state.firing = event.status == "firing"
        if state.firing:
            state.starts_ns = parse_instant(event.starts_at) if event.starts_at else instant

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Captured now, made into plain data for ``restore`` later and in any thread."""
        measure = self._measure.snapshot()
        state = {
            "fingerprint": self.rule.fingerprint,
            "seen": {
                name: [one.evaluated_ns, one.value, one.span_count, one.pending_ns] for name, one in self.states.items()
            },
            "interval_ns": self.rule.eval_interval_ns,
            "primed_ns": self.primed_ns,
            "next_ns": self.next_ns,
            "spans": self.spans,
            "folded": sorted(self._folded),
        }
        return lambda: {**state, "measure": measure()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where ``snapshot`` was, which watched the same; what fired is for the events to say."""
        self._measure.restore(saved["measure"])
        self.states = {
            name: State(evaluated_ns=evaluated_ns, value=value, span_count=span_count, pending_ns=pending_ns)
            for name, (evaluated_ns, value, span_count, pending_ns) in saved["seen"].items()
        }
        self.primed_ns, self.next_ns, self.spans = saved["primed_ns"], saved["next_ns"], saved["spans"]
        self._folded = set(saved["folded"])
        if self.next_ns and saved["interval_ns"] != self.rule.eval_interval_ns:
            self.start_at(self.next_ns - saved["interval_ns"])


def instance_of(event: AlertEvent) -> str:
    """Which instance of its rule *event* is about."""
    return next(iter(event.group.values()), WHOLE)


class Alerter:
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
        self._table = Table()
        self._seen = Seen()
        self._forgot_ns = 0
        self._effects: list[Effect] = []
        self._began_ns = 0
        #: Stream time of the last message taken in.
        self.time_ns = 0
        self.caught_up = False
        self.spans = 0
        self._watch_all({rule.name: Watch(rule, self._table) for rule in self._rules})

    def _watch_all(self, watches: dict[str, Watch]) -> None:
        self.watches = watches
        self._due: list[tuple[int, int, str]] = []
        self._order = count()
        self._index = Index({name: watch.rule.filter for name, watch in watches.items()})
        for name, watch in watches.items():
            watch.silenced_until_ns = self._silences.get(name, 0)
            for held in self._events.get(name, {}).values():
                for event in held.values():
                    watch.take(event)
            self._schedule(watch)

    def _schedule(self, watch: Watch) -> None:
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
        self._watch_all({rule.name: Watch(rule, self._table) for rule in self._rules})

    def add(self, rule: Rule) -> None:
        """Watch *rule* from the next message on; it is looked at once it is ``primed``."""
        watch = Watch(rule, self._table)
        watch.priming, watch.began_at = True, self._position
        self._rules = [one for one in self._rules if one.name != rule.name] + [rule]
        self._watch_all({**self.watches, rule.name: watch})

    def remove(self, name: str) -> None:
        """Watch it no more; what it fired is forgotten."""
        self._rules = [rule for rule in self._rules if rule.name != name]
        said = [event for held in self._events.pop(name, {}).values() for event in held.values()]
        self._forgotten[name] = max([self._forgotten.get(name, 0), *(parse_instant(event.fired_at) for event in said)])
        subject = subjects.alerts(self._project, name)
        self._effects = [effect for effect in self._effects if effect.subject != subject]
        self._watch_all({other: watch for other, watch in self.watches.items() if other != name})

    def silence(self, name: str, until_ns: int) -> None:
        """Publish nothing of it until *until_ns*; 0 ends a silence."""
        self._silences[name] = until_ns
        if name in self.watches:
            self.watches[name].silenced_until_ns = until_ns

    def prime(self, name: str, message: Message, seen: Seen) -> None:
        """
        Take in a message that lies behind, for one rule alone.

        Args:
            seen: What has been taken in for it so.

        Raises:
            Rejected: It cannot be read.
        """
        watch = self.watches.get(name)
        if watch is None:
            return
        for batch in decode_batches(message.payload):
            if batch.spans and seen.add(batch, message.time_ns):
                self._fold_into(Index({name: watch.rule.filter}), batch, message.time_ns)

    def primed(self, name: str, since_ns: int, now_ns: int) -> None:
        """It knows everything from stream time *since_ns* on, and is looked at from now on."""
        watch = self.watches.get(name)
        if watch is not None:
            watch.priming, watch.primed_ns = False, since_ns
            watch.start_at(now_ns)
            self._schedule(watch)

    # -- the machine

    def fold(self, message: Message, created_ns: int) -> None:
        """As ``Machine.fold``: first what was due before it, then the message."""
        if not self._began_ns:
            self._began_ns = message.time_ns
            for watch in self.watches.values():
                watch.primed_ns = watch.primed_ns or message.time_ns
        self._evaluate(message.time_ns)
        self.time_ns = message.time_ns
        self._position = Position(created_ns, message.sequence)
        for batch in decode_batches(message.payload):
            if self._seen.add(batch, message.time_ns) and batch.spans and self.watches:
                self.spans += len(batch.spans)
                self._fold_into(self._index, batch, message.time_ns)
        if message.time_ns - self._forgot_ns > HOUR:
            self._forgot_ns = message.time_ns
            self._seen.forget(message.time_ns)

    def _fold_into(self, index: Index, batch: Batch, time_ns: int) -> None:
        rows = rows_of(batch.spans, self._table, time_ns)
        for name, indices in index.match(batch.spans):
            self.watches[name].fold(*choose(batch.spans, rows, indices), time_ns)

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
            if watch.next_ns == 0 and not watch.priming:
                watch.primed_ns = self._began_ns or now_ns
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
            watch.take(event)

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

    def _forget(self, forgotten: Mapping[str, int]) -> None:
        """What was said by rules that were removed up to these instants is not known any more."""
        for name, instant_ns in forgotten.items():
            self._forgotten[name] = max(instant_ns, self._forgotten.get(name, 0))
        learnt = [event for one in self._events.values() for held in one.values() for event in held.values()]
        self._events = {}
        for event in sorted(learnt, key=lambda event: event.fired_at):
            self.learn(event)

    def heard(self, event: AlertEvent) -> AlertEvent | None:
        """The last that was published about the same instance."""
        return self._events.get(event.alert, {}).get(instance_of(event), {}).get("last")

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``, in one piece."""
        watches = {name: watch.snapshot() for name, watch in self.watches.items() if not watch.priming}
        state = {
            "version": VERSION,
            "position": self._position,
            "cells": list(self._table.cells),
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
            saved = msgspec.msgpack.decode(state)
            if saved["version"] != VERSION:
                raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
            self._table = Table(saved["cells"])
            self._position = msgspec.convert(saved["position"], Position | None)
            self._seen = Seen.restore(saved["seen"])
            self._forgot_ns, self._began_ns = saved["forgot_ns"], saved["began_ns"]
            self._forget(msgspec.convert(saved["forgotten"], dict[str, int]))
            watches = {rule.name: Watch(rule, self._table) for rule in self._rules}
            for name, watch in watches.items():
                held = saved["watches"].get(name)
                if held is not None and held["fingerprint"] == watch.rule.fingerprint:
                    watch.restore(held)
                else:
                    watch.priming, watch.began_at = True, self._position
            self._watch_all(watches)
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
