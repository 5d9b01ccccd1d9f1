"""The evaluation of one rule: its window, and the state of each of its instances."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokentrace.records import AlertEvent, Batch, Position, Span
from tokentrace.rollup import Ints, ScoreDelta, SeriesTable
from tokentrace.units import parse_instant
from tokentrace_alerter.rules.decide import NO_READING, Reading, State, breaches, decide, holds_back, leave, owns, rank
from tokentrace_alerter.rules.readings import WHOLE, Readings
from tokentrace_alerter.rules.schema import Rule
from tokentrace_alerter.rules.transport_window import TransportWindow
from tokentrace_alerter.rules.window import make_window

#: Number of values that are kept to be shown.
_RECENT = 30


class RuleEvaluator:
    """
    One rule, its window and the state of each of its instances.

    Attributes:
        states: Instance -> state; an ungrouped rule has the instance "".
        backfilled_ns: The window holds all spans from this stream time on, Unix nanoseconds; 0 = no data was read yet.
        next_ns: The next instant to evaluate, Unix nanoseconds; 0 = evaluation has not started.
        backfilling: True = older messages are still being read for the rule; it is not evaluated meanwhile.
        added_at: The position of the machine when the rule was added, up to which backfill reads; None = there are no
            older messages.
        silenced_until_ns: No event is published for instants before this one, Unix nanoseconds.
        spans: Number of spans folded.
        held_back: Number of firings that the present or last silence, or the key ``silenced``, has held back.
        recent: The value at each of the last 30 instants, oldest first; of a grouped rule, that of the instance that is
            furthest on the side of the threshold; None = there was no data.
    """

    def __init__(self, rule: Rule, table: SeriesTable) -> None:
        self.rule = rule
        self.states: dict[str, State] = {}
        self.backfilled_ns = 0
        self.next_ns = 0
        self.backfilling = False
        self.added_at: Position | None = None
        #: Instances over the limit, whose episode or cooldown has not ended yet.
        self._leaving: set[str] = set()
        self.silenced_until_ns = self._silenced_at_ns = 0
        self.held_back = 0
        self.spans = 0
        self.recent: deque[float | None] = deque(maxlen=_RECENT)
        self._window = make_window(rule, table)

    @property
    def state(self) -> State:
        """The state of the only instance of an ungrouped rule."""
        return self.states.setdefault(WHOLE, State())

    @property
    def late(self) -> int:
        """Number of spans that arrived when the bucket for their time was no longer kept."""
        return self._window.late

    @property
    def overflow(self) -> Reading:
        """
        The spans of all instances over the limit, in the window that was evaluated last.

        They are never compared with the threshold, which is that of one instance.
        """
        return self._window.overflow

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Fold spans that pass the filter, with their *rows*; *time_ns* is the stream time of the message."""
        if self.rule.about_reporters:
            return
        self.spans += len(spans)
        self._window.fold(spans, rows, time_ns)

    def report(self, batch: Batch, spans: int, time_ns: int) -> None:
        """Fold the figures of the reporter of *batch*, which had *spans* spans, if the rule is about reporters."""
        if isinstance(self._window, TransportWindow):
            self.spans += spans
            self._window.report(batch, spans, time_ns)

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        """Fold changes to the scores of spans that pass the filter."""
        self._window.change(changes, time_ns)

    @property
    def due_ns(self) -> int:
        """When the next instant is evaluated, Unix nanoseconds of stream time; 0 = evaluation has not started."""
        return self.next_ns + self.rule.lag_ns if self.next_ns else 0

    def evaluate(self) -> list[AlertEvent]:
        """Evaluate the next instant and return the events to publish."""
        rule, instant = self.rule, self.next_ns
        self.next_ns += rule.eval_interval_ns
        readings = self._window.read(instant)
        busy = self._busy()
        self._leaving -= readings.keys()
        leaving = self._leaving & busy
        # Evaluate instances without data only if they are firing or pending, or if no_data is "fire".
        vanished = self.states.keys() - self._leaving if rule.no_data == "fire" else busy - leaving
        names = sorted({*readings, *vanished}) if rule.group_by else [WHOLE]
        events = [event for name in sorted(leaving) if (event := self._leave(name, instant)) is not None]
        for name in names:
            event = self._evaluate_instance(name, instant, readings.get(name, NO_READING))
            if event is not None:
                events.append(event)
        if rule.group_by:
            self._drop_idle(instant, readings)
            self._limit_groups(instant, readings)
        values = (state.value for state in self.states.values() if state.evaluated_ns == instant)
        self.recent.append(max(values, key=lambda value: rank(rule, value), default=None))
        return events

    def _limit_groups(self, instant: int, readings: Readings) -> None:
        kept = self._window.limit_groups(readings, self._busy())
        if kept is None:
            return
        self._leaving |= {name for name in self.states if name not in kept}
        # An instance over the limit is not evaluated any more. If it is firing, keep its state until
        # the next instant, which resolves it. If it is cooling down, keep it so that it does not fire again too early.
        held = {name for name in self._leaving if self.states[name].firing or self._is_cooling(name, instant)}
        self._leaving &= held
        self.states = {name: state for name, state in self.states.items() if name in kept | held}

    def _is_cooling(self, name: str, instant: int) -> bool:
        state = self.states[name]
        return state.fired_ns > 0 and instant <= state.fired_ns + self.rule.cooldown_ns

    def _leave(self, name: str, instant: int) -> AlertEvent | None:
        """Return the resolution of an instance that is over the limit now; None if none may be published."""
        state = self.states[name]
        if not state.firing or instant <= state.event_ns or self.rule.silenced or instant < self.silenced_until_ns:
            return None
        reason = "is counted with 'other' from now on, which is not evaluated"
        event = leave(self.rule, state, instant, name, "overflow", reason)
        self.apply_event(event)
        return event

    def forget(self, name: str, instant_ns: int) -> AlertEvent | None:
        """
        Drop the instance *name*, whose user was deleted; its spans are counted in the overflow.

        Returns:
            The resolution at *instant_ns*, Unix nanoseconds, if the instance was firing. A silence does not hold it
            back, because there is no later instant at which it could be published.
        """
        state = self.states.pop(name, None)
        self._leaving.discard(name)
        self._window.forget(name)
        if state is None or not state.firing:
            return None
        return leave(self.rule, state, instant_ns, name, "user_deleted", "was deleted")

    def _busy(self) -> set[str]:
        """Return the instances that are firing or pending."""
        return {name for name, state in self.states.items() if state.firing or state.pending_ns}

    def _evaluate_instance(self, name: str, instant: int, reading: Reading) -> AlertEvent | None:
        rule, state = self.rule, self.states.setdefault(name, State())
        value, span_count, unpriced = reading
        decision = decide(
            rule,
            state,
            instant,
            value,
            span_count,
            unpriced=unpriced,
            silenced=instant < self.silenced_until_ns,
            warming=self.warming(instant),
            group=name,
        )
        state.breached = breaches(rule, value, span_count, firing=state.firing, unpriced=unpriced)
        state.evaluated_ns, state.value, state.span_count, state.unpriced = instant, value, span_count, unpriced
        state.reason, state.pending_ns = decision.reason, decision.pending_ns
        if holds_back(rule, state, instant):
            self.held_back += 1
            state.held_ns = instant
        if decision.event is not None:
            self.apply_event(decision.event)
        return decision.event

    def _drop_idle(self, instant: int, readings: Readings) -> None:
        """
        Drop instances without data that are neither firing nor pending nor cooling down.

        Those that are cooling down lose their value and span count. With no_data "fire", only instances over the limit
        are dropped.
        """
        for name, state in list(self.states.items()):
            no_data_fires = self.rule.no_data == "fire" and name not in self._leaving
            if state.firing or state.pending_ns or name in readings or no_data_fires:
                continue
            if max(state.fired_ns, state.held_ns) + self.rule.cooldown_ns < instant:
                del self.states[name]
                self._leaving.discard(name)
            else:
                state.value, state.span_count, state.unpriced = None, 0, 0
                state.breached, state.reason = False, "no_data"

    def warming(self, instant_ns: int) -> bool:
        """Return whether the rule looks back from *instant_ns* further than the data that was read."""
        return not self.backfilled_ns or instant_ns < self.backfilled_ns + self.rule.covers_ns

    def apply_events(self, events: Mapping[str, AlertEvent]) -> None:
        """
        Set the state of an instance from its last event (``last``) and its last firing (``firing``, if there is one).

        An instance that was dropped as idle stays dropped if its events are older than the last evaluation.
        """
        last = events["last"]
        if not owns(self.rule, last):
            return
        evaluated_ns = self.next_ns - self.rule.eval_interval_ns if self.next_ns else 0
        if self.rule.group_by and last.status != "firing" and instance_of(last) not in self.states:
            fired_ns = parse_instant(events["firing"].fired_at) if "firing" in events else 0
            if parse_instant(last.fired_at) <= evaluated_ns and fired_ns + self.rule.cooldown_ns < evaluated_ns:
                return
        for event in events.values():
            self.apply_event(event)

    def silence(self, until_ns: int, at_ns: int) -> None:
        """Publish nothing for instants before *until_ns*; what is held back is counted anew for another *at_ns*."""
        self.silenced_until_ns = until_ns
        if at_ns != self._silenced_at_ns:
            self._silenced_at_ns, self.held_back = at_ns, 0
            for state in self.states.values():
                state.held_ns = 0

    def start_at(self, now_ns: int) -> None:
        """Set the next instant to the first multiple of the interval after *now_ns*, Unix nanoseconds."""
        interval = self.rule.eval_interval_ns
        self.next_ns = (now_ns // interval + 1) * interval
        self.recent.clear()

    def apply_event(self, event: AlertEvent) -> None:
        """
        Update the state of an instance from one of its events; events may arrive twice and out of order.

        An event with other labels is ignored: the rule was another one when it was published.
        """
        if not owns(self.rule, event):
            return
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
        """Capture the state; return a function that encodes it for ``restore`` later, in any thread."""
        window = self._window.snapshot()
        saved = {
            "fingerprint": self.rule.fingerprint,
            "seen": {
                name: [
                    state.evaluated_ns,
                    state.value,
                    state.span_count,
                    state.pending_ns,
                    state.unpriced,
                    state.held_ns,
                ]
                for name, state in self.states.items()
            },
            "interval_ns": self.rule.eval_interval_ns,
            "primed_ns": self.backfilled_ns,
            "next_ns": self.next_ns,
            "spans": self.spans,
            "folded": sorted(self._leaving),
            "held_back": [self._silenced_at_ns, self.held_back],
            "recent": list(self.recent),
        }
        return lambda: {**saved, "measure": window()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """
        Continue from a snapshot of a rule with the same fingerprint.

        A snapshot does not say whether an instance is firing: ``apply_events`` sets that from the alert stream.
        """
        self._window.restore(saved["measure"])
        self.states = {
            name: State(
                evaluated_ns=evaluated_ns,
                value=value,
                span_count=span_count,
                pending_ns=pending_ns,
                # Older snapshots have no number of unpriced spans, and do not say what a silence held back.
                unpriced=later[0] if later else 0,
                held_ns=later[1] if len(later) > 1 else 0,
            )
            for name, (evaluated_ns, value, span_count, pending_ns, *later) in saved["seen"].items()
        }
        self.backfilled_ns, self.next_ns, self.spans = saved["primed_ns"], saved["next_ns"], saved["spans"]
        self._leaving = set(saved["folded"])
        self._silenced_at_ns, self.held_back = saved.get("held_back", (0, 0))
        self.recent.extend(saved.get("recent", ()))
        if self.next_ns and saved["interval_ns"] != self.rule.eval_interval_ns:
            self.start_at(self.next_ns - saved["interval_ns"])


def instance_of(event: AlertEvent) -> str:
    """Return the instance that *event* is about; "" for an ungrouped rule."""
    return next(iter(event.group.values()), WHOLE)
