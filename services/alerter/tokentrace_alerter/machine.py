"""
The state of the alerter, over all shards and all rules; without I/O and without a clock.

Theory of operation
-------------------

*Two clocks.* Event time decides which window a span belongs to. Stream time, the time at which the broker stored a
message, decides when a window is read. The time of day plays no part, except that a caught-up alerter evaluates
instants up to 200 ms ago although no newer message has arrived. So the same stream gives the same events live, after a
restart, and in a backtest.

*Instants.* A rule is evaluated at multiples of its interval since 1970, so all alerters use the same instants. ``fold``
first evaluates every instant that is due before the message, then folds the message. A rule that fires on low values is
due 5 s after its instant, because spans that arrive late would raise the value. Due rules wait in a heap.

*Rules.* Each rule has a ``RuleEvaluator`` with its own buckets and the state of its instances. ``FilterIndex`` finds
the rules whose filter a span passes, so that a thousand filters do not cost a thousand comparisons for each span.

*Warming.* A window that begins before the data that was read is incomplete. Over such a window a rule does not fire if
missing data alone may be the reason: "cost > 5" may fire early, "cost < 5" may not.

*The event log is the state.* The last firing and the last event of an instance say whether it is firing, since when,
and when it fired last. Events are kept in a stream that all alerters read before they evaluate anything. A snapshot
does not hold this part of the state; ``apply_event`` sets it. This is why alerters need no leader and no lock.

*Optimistic publishing.* An evaluator applies its own event at once, and the machine returns a ``Publish`` for it. The
service publishes the event on the condition that no other event has been published for the rule since. If another
alerter was first, its event arrives through the stream and is applied here. The id of an event is made of rule,
instance, instant and status, so the broker also drops an event that is published twice.

*Backfill.* A rule that is added at run time, or whose snapshot does not fit, has no data. The machine folds messages
for it from the next one on, but does not evaluate it. Meanwhile ``backfill.py`` reads the log up to the position at
which the rule was added and folds the older messages for this rule alone. ``finish_backfill`` then starts the
evaluation.

*Names.* A rule may be deleted and another one created under its name. ``EventMemory`` keeps the time of the change, so
the new rule does not inherit the state of the old one.

*Every episode has an end.* ``EventMemory`` finds the open episodes that no rule owns any more: those of rules that were
deleted, replaced, or removed from the configuration. ``tick`` ends them with an event that says why, on the condition
that no later event exists, like every other event.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Message, subjects
from tokentrace.dedup import Deduplicator, Digest, FoldedBatches, capacity_for
from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent, Batch, Position, decode_event
from tokentrace.rollup import SeriesTable, changes_in, rows_of
from tokentrace.service.machine import Effect, Publish
from tokentrace.state import Part, Saved
from tokentrace.units import MS, parse_instant
from tokentrace_alerter.event_memory import EventMemory, event_id
from tokentrace_alerter.log_messages import counted_in, deleted_users
from tokentrace_alerter.rules import (
    FilterIndex,
    Rule,
    RuleEvaluator,
    State,
    end,
    instance_of,
    owns,
    render_status,
    select,
)

#: Version of the snapshot's format.
VERSION = 7
#: The last version whose snapshots had no memory of calls; they are converted.
_WITHOUT_CALLS = 6
#: Once caught up, data older than this is considered complete, nanoseconds.
SETTLED_NS = 200_000_000
_encode = msgspec.json.Encoder()


class AlerterMachine:
    """
    The ``Machine`` of all rules, over all shards.

    Args:
        rules: The rules that are evaluated from the first message on.
        project: The project in the alert subjects.
        shards: Shard count.
        capacity: Number of calls that are remembered for each shard; None = the number for *shards*.

    Attributes:
        evaluators: Rule name -> its evaluator.
        time_ns: Stream time of the last message folded since the start, Unix nanoseconds; 0 = none since then.
        caught_up: True = all messages that the log held at the start are folded. The service sets it.
        spans: Number of spans folded since the start, while there were rules.
    """

    def __init__(self, rules: Sequence[Rule], project: str, *, shards: int = 1, capacity: int | None = None) -> None:
        self._project = project
        self._shards, self._capacity = shards, capacity or capacity_for(shards)
        self._rules = list(rules)
        self.events = EventMemory(self._rule_of)
        #: Abandoned episode -> id of the effect that ends it.
        self._ending: dict[tuple[object, ...], str] = {}
        self._silences: dict[str, tuple[int, int]] = {}
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = SeriesTable()
        self.dedup = self.new_memory()
        self._effects: list[Effect] = []
        self._began_ns = 0
        self.time_ns = 0
        self.caught_up = False
        self.spans = 0
        self.evaluators: dict[str, RuleEvaluator] = {}
        self._ending.clear()
        self._set_evaluators({rule.name: RuleEvaluator(rule, self._table) for rule in self._rules})

    def _rule_of(self, name: str) -> Rule | None:
        evaluator = self.evaluators.get(name)
        return None if evaluator is None else evaluator.rule

    def remember(self, capacity: int) -> None:
        """Remember *capacity* calls of each shard; only before a message is folded or a snapshot is restored."""
        self._capacity = capacity
        self.dedup = self.new_memory()

    def new_memory(self) -> dict[int, Deduplicator]:
        """Return an empty memory of what was folded, by shard."""
        return {shard: Deduplicator(self._shards, self._capacity) for shard in range(self._shards)}

    def _set_evaluators(self, evaluators: dict[str, RuleEvaluator]) -> None:
        before, self.evaluators = self.evaluators, evaluators
        self._due: list[tuple[int, int, str]] = []
        self._order = count()
        self._index = FilterIndex({name: evaluator.rule.filter for name, evaluator in evaluators.items()})
        for name, evaluator in evaluators.items():
            if evaluator is not before.get(name):
                evaluator.silence(*self._silences.get(name, (0, 0)))
                for _, events in self.events.states(name):
                    evaluator.apply_events(events)
                self.events.review(name)
            self._schedule(evaluator)
        for name in before.keys() - evaluators.keys():
            self.events.review(name)

    def _schedule(self, evaluator: RuleEvaluator) -> None:
        if evaluator.due_ns:
            heapq.heappush(self._due, (evaluator.due_ns, next(self._order), evaluator.rule.name))

    @property
    def position(self) -> Position | None:
        """As ``Machine.position``."""
        return self._position

    @property
    def digests(self) -> Mapping[int, Sequence[Digest]]:
        """As ``Machine.digests``."""
        return {shard: dedup.digests for shard, dedup in self.dedup.items()}

    # -- adding and removing rules

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Evaluate *rules* and no others; only before the first message is folded."""
        self._rules = list(rules)
        self._set_evaluators({rule.name: RuleEvaluator(rule, self._table) for rule in self._rules})

    def add_rule(self, rule: Rule) -> None:
        """Fold messages for *rule* from the next one on. It is evaluated after ``finish_backfill``."""
        evaluator = RuleEvaluator(rule, self._table)
        evaluator.backfilling, evaluator.added_at = True, self._position
        self._add(evaluator)

    def _add(self, evaluator: RuleEvaluator) -> None:
        rule = evaluator.rule
        self._rules = [other for other in self._rules if other.name != rule.name] + [rule]
        self._set_evaluators({**self.evaluators, rule.name: evaluator})

    def change_rule(self, rule: Rule) -> None:
        """
        Replace the rule of that name by *rule*, and keep its data and the state that its events say.

        If the data do not fit *rule*, this is ``add_rule``: the evaluator is ``backfilling``.
        """
        before = self.evaluators.get(rule.name)
        if before is None or before.backfilling or before.rule.fingerprint != rule.fingerprint:
            self.add_rule(rule)
            return
        evaluator = RuleEvaluator(rule, self._table)
        evaluator.restore(before.snapshot()())
        self._add(evaluator)

    def remove_rule(self, name: str, upto_ns: int | None = None) -> None:
        """Drop the rule *name*, if it exists, and its events up to *upto_ns*, Unix nanoseconds; None = all events."""
        self.ignore_events(name, self.events.newest_ns(name) if upto_ns is None else upto_ns)
        subject = subjects.alerts(self._project, name)
        self._effects = [effect for effect in self._effects if effect.subject != subject]
        if name not in self.evaluators:
            return
        self._rules = [rule for rule in self._rules if rule.name != name]
        self._set_evaluators({other: evaluator for other, evaluator in self.evaluators.items() if other != name})

    def ignore_events(self, name: str, upto_ns: int) -> None:
        """Ignore events of *name* up to *upto_ns*, Unix nanoseconds: they belong to an earlier rule of that name."""
        self.events.ignore(name, upto_ns)

    def silence(self, name: str, until_ns: int, at_ns: int = 0) -> None:
        """
        Publish no event of the rule *name* for instants before *until_ns*, Unix nanoseconds; 0 ends a silence.

        Args:
            at_ns: When the silence was made, Unix nanoseconds, which tells it from the one before; 0 = unknown.
        """
        self._silences[name] = until_ns, at_ns
        if name in self.evaluators:
            self.evaluators[name].silence(until_ns, at_ns)

    def backfill(
        self,
        evaluators: Mapping[str, RuleEvaluator],
        index: FilterIndex,
        message: Message,
        dedup: Mapping[int, Deduplicator],
    ) -> None:
        """
        Fold an older message for some rules alone.

        Args:
            evaluators: The evaluators of these rules, by name; without any, the message is only remembered.
            index: The filters of these rules, by name.
            dedup: What this backfill has already folded, by shard.

        Raises:
            Rejected: The message cannot be decoded.
        """
        for batch, spans in counted_in(message, dedup):
            if evaluators:
                self._fold_into(evaluators, index, batch, spans, message.time_ns)
        for user in deleted_users(message):
            self._forget_user(evaluators, user, message.time_ns)

    def finish_backfill(self, name: str, since_ns: int, now_ns: int) -> None:
        """Evaluate the rule *name* from *now_ns* on; it has all data from stream time *since_ns* on."""
        evaluator = self.evaluators.get(name)
        if evaluator is not None:
            evaluator.backfilling, evaluator.backfilled_ns = False, since_ns
            # Events up to the creation of the rule belong to an earlier one of its name.
            evaluator.start_at(max(now_ns, self.events.ignored_upto.get(name, 0)))
            self._schedule(evaluator)

    def start_anew_if_ahead(self, now_ns: int) -> None:
        """
        Give up the state of each rule whose next instant is later than it can be at *now_ns*; backfill must follow.

        A snapshot may have been written by an alerter that followed a wrong clock. Its rules would not be evaluated
        before that instant, and their windows have lost what they hold now.

        Args:
            now_ns: The broker's time, Unix nanoseconds.
        """
        for name, evaluator in list(self.evaluators.items()):
            if evaluator.next_ns > now_ns + evaluator.rule.eval_interval_ns:
                subject = subjects.alerts(self._project, name)
                self._effects = [effect for effect in self._effects if effect.subject != subject]
                self.add_rule(evaluator.rule)

    # -- the machine

    def fold(self, message: Message, created_ns: int) -> None:
        """As ``Machine.fold``: evaluate the instants that are due before *message*, then fold it."""
        if not self._began_ns:
            self._began_ns = message.time_ns
            for evaluator in self.evaluators.values():
                evaluator.backfilled_ns = evaluator.backfilled_ns or message.time_ns
        self.evaluate_until(message.time_ns)
        self.time_ns = message.time_ns
        self._position = Position(created_ns, message.sequence)
        for batch, spans in counted_in(message, self.dedup):
            if self.evaluators:
                self.spans += len(batch.spans)
                self._fold_into(self.evaluators, self._index, batch, spans, message.time_ns)
        for user in deleted_users(message):
            self._forget_user(self.evaluators, user, message.time_ns)

    def _forget_user(self, evaluators: Mapping[str, RuleEvaluator], user: str, time_ns: int) -> None:
        """Drop the instances of a deleted user; one that is firing is resolved, so that receivers close the episode."""
        # Events have milliseconds.
        instant_ns = time_ns // MS * MS
        self.events.forget_user(user, instant_ns)
        for name, evaluator in evaluators.items():
            if not evaluator.rule.is_by_user:
                continue
            self.events.forget(name, user)
            self._effects = [effect for effect in self._effects if not _is_about(effect, name, user)]
            event = evaluator.forget(user, instant_ns)
            if event is not None:
                self._effects.append(self._publish(name, event))

    def _fold_into(
        self, evaluators: Mapping[str, RuleEvaluator], index: FilterIndex, batch: Batch, spans: int, time_ns: int
    ) -> None:
        if spans or batch.reporter is not None:
            for name in index.unfiltered:
                evaluators[name].report(batch, spans, time_ns)
        if batch.spans:
            rows = rows_of(batch.spans, self._table, time_ns)
            for name, indices in index.match(batch.spans):
                evaluators[name].fold(*select(batch.spans, rows, indices), time_ns)
        changes = changes_in(batch.scores)
        # A score can move a span from one rule or instance to another, so the filters see both sides of a change.
        for name, indices in index.match([span for _, span in changes]) if changes else ():
            evaluators[name].change(changes if indices is None else [changes[at] for at in indices], time_ns)

    def evaluate_until(self, upto_ns: int) -> None:
        """Evaluate every instant that is due by stream time *upto_ns*; all messages before it must have been folded."""
        while self._due and self._due[0][0] <= upto_ns:
            due_ns, _, name = heapq.heappop(self._due)
            evaluator = self.evaluators.get(name)
            if evaluator is None or evaluator.due_ns != due_ns:
                continue
            self._effects += [self._publish(name, event) for event in evaluator.evaluate()]
            self._schedule(evaluator)

    def _publish(self, name: str, event: AlertEvent) -> Publish:
        subject = subjects.alerts(self._project, name)
        return Publish(subject, _encode.encode(event), id=event_id(event))

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """As ``Machine.lost``."""
        self._position = Position(created_ns, last)

    def rewound(self, created_ns: int) -> None:
        """As ``Machine.rewound``."""
        self._position = Position(created_ns, 0)
        for dedup in self.dedup.values():
            dedup.rewound()

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """As ``Machine.tick``; once caught up, evaluate the instants that are due 200 ms before *now_ns*."""
        if self.caught_up:
            self.start_evaluation(now_ns)
            self.evaluate_until(now_ns - SETTLED_NS)
            self._end_abandoned(now_ns)
        return self.waiting_effects()

    def _end_abandoned(self, now_ns: int) -> None:
        waiting = {effect.id for effect in self._effects}
        ending: dict[tuple[object, ...], str] = {}
        for abandoned, instant_ns in self.events.abandoned(now_ns):
            if self._ending.get(abandoned.key) in waiting:
                ending[abandoned.key] = self._ending[abandoned.key]
                continue
            name = abandoned.last.alert
            gone = name not in self.evaluators
            if abandoned.earlier:
                event = end(abandoned.last, instant_ns, "deleted" if gone else "replaced")
            else:
                event = end(abandoned.last, instant_ns, "removed" if gone else "changed")
            effect = self._publish(name, event)
            self._effects.append(effect)
            ending[abandoned.key] = effect.id
        self._ending = ending

    def start_evaluation(self, now_ns: int) -> None:
        """Start to evaluate, from *now_ns* on, the rules that neither are evaluated yet nor are being backfilled."""
        for evaluator in self.evaluators.values():
            if evaluator.next_ns == 0 and not evaluator.backfilling:
                evaluator.backfilled_ns = self._began_ns or now_ns
                evaluator.start_at(now_ns)
                self._schedule(evaluator)

    def waiting_effects(self) -> list[Effect]:
        """Return the effects that have not been performed yet, in order."""
        return list(self._effects)

    def performed(self, effect: Effect) -> None:
        """As ``Machine.performed``."""
        if effect in self._effects:
            self._effects.remove(effect)

    def apply_event(self, event: AlertEvent) -> None:
        """Update the state of a rule from an event of the alert stream, which any alerter may have published."""
        events = self.events.apply(event)
        evaluator = self.evaluators.get(event.alert)
        if events is not None and evaluator is not None:
            evaluator.apply_events(events)

    def open_episodes(self) -> list[AlertEvent]:
        """Return the last event of every instance that is firing now."""
        open_events = []
        for name, evaluator in self.evaluators.items():
            for (_, group), events in self.events.states(name):
                state = evaluator.states.get(group)
                is_open = events["last"].status == "firing" and owns(evaluator.rule, events["last"])
                if is_open and state is not None and state.firing:
                    open_events.append(events["last"])
        return open_events

    def render(self, now_ns: int) -> list[dict[str, Any]]:
        """Return the body of ``GET /alerts`` at *now_ns* (Unix nanoseconds)."""
        return [render_status(evaluator, now_ns) for evaluator in self.evaluators.values()]

    def last_event(self, event: AlertEvent) -> AlertEvent | None:
        """Return the last known event about the same instance as *event*; None = there is none."""
        return self.events.last(event)

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``; the parts are the memory of calls. Rules that are being backfilled are left out."""
        evaluators = {
            name: evaluator.snapshot() for name, evaluator in self.evaluators.items() if not evaluator.backfilling
        }
        memories, parts = {}, dict[str, Part]()
        for shard, dedup in self.dedup.items():
            memories[shard], own = dedup.snapshot(f"{shard}.", saved)
            parts |= own
        state = {
            "version": VERSION,
            "position": self._position,
            "cells": list(self._table.series),
            "dedup": memories,
            "began_ns": self._began_ns,
            "effects": list(self._effects),
            "forgotten": dict(self.events.ignored_upto),
            "forgotten_users": dict(self.events.forgotten_users),
        }
        return Saved(
            lambda: msgspec.msgpack.encode(
                {**state, "watches": {name: encode() for name, encode in evaluators.items()}}
            ),
            parts,
        )

    def decode_part(self, name: str, data: bytes) -> bytes:
        """As ``Machine.decode_part``: ``restore`` takes over the bytes."""
        return data

    def restore(self, state: bytes, parts: Mapping[str, bytes]) -> None:
        """As ``Machine.restore``; a rule that is not in the snapshot with its fingerprint must be backfilled."""
        try:
            with reading("snapshot"):
                self._restore(msgspec.msgpack.decode(state), parts)
        except Rejected:
            self._reset()
            raise

    def _restore(self, saved: Any, parts: Mapping[str, bytes]) -> None:
        if saved["version"] not in (_WITHOUT_CALLS, VERSION):
            raise Rejected(f"snapshot: written by version {saved['version']}, but this is version {VERSION}")
        self._table = SeriesTable(saved["cells"])
        self._position = msgspec.convert(saved["position"], Position | None)
        for shard, dedup in self.dedup.items():
            if saved["version"] == _WITHOUT_CALLS:
                # The batches of all shards were kept together, without dividing their numbers.
                dedup.batches = FoldedBatches.restore(saved["seen"])
            else:
                dedup.restore(saved["dedup"][shard], parts, f"{shard}.")
        self._began_ns = msgspec.convert(saved["began_ns"], int)
        for name, upto_ns in msgspec.convert(saved["forgotten"], dict[str, int]).items():
            self.ignore_events(name, upto_ns)
        if saved["version"] != _WITHOUT_CALLS:
            self.events.restore_forgotten_users(msgspec.convert(saved["forgotten_users"], dict[bytes, int]))
        evaluators = {rule.name: RuleEvaluator(rule, self._table) for rule in self._rules}
        for name, evaluator in evaluators.items():
            saved_rule = saved["watches"].get(name)
            if saved_rule is not None and saved_rule["fingerprint"] == evaluator.rule.fingerprint:
                evaluator.restore(saved_rule)
            else:
                evaluator.backfilling, evaluator.added_at = True, self._position
        self._set_evaluators(evaluators)
        effects = msgspec.convert(saved["effects"], list[Publish])
        self._effects = [effect for effect in effects if self._is_still_due(effect)]

    def _is_still_due(self, effect: Publish) -> bool:
        """Apply an unpublished event of a snapshot; return False if its rule is gone or the event is outdated."""
        event = decode_event(effect.payload)
        evaluator = self.evaluators.get(event.alert)
        # What ends an abandoned episode is made again.
        if evaluator is None or not owns(evaluator.rule, event) or self.events.is_earlier(event):
            return False
        if parse_instant(event.fired_at) <= evaluator.states.get(instance_of(event), State()).event_ns:
            return False
        evaluator.apply_event(event)
        return True


def _is_about(effect: Effect, rule: str, instance: str) -> bool:
    event = decode_event(effect.payload)
    return event.alert == rule and instance_of(event) == instance
