"""One rule over time: its ring, and the state of each of its instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokentrace.records import AlertEvent, Position, Span
from tokentrace.rollup import OTHER, Ints, ScoreDelta, SeriesTable
from tokentrace.units import parse_instant
from tokentrace_alerter.rules.rule import Reading as Found
from tokentrace_alerter.rules.rule import Rule, State, breaches, decide, leave
from tokentrace_alerter.rules.window import WHOLE, make_window


class RuleEvaluator:
    """
    One rule, its ring and the state of each of its instances.

    Attributes:
        primed_ns: From this stream time on it knows everything; 0 = there has been nothing to know.
        next_ns: The next instant to look at; 0 = none yet.
        priming: Older messages are still being read for it.
        silenced_until_ns: Until then nothing is published.
        spans: How many it has taken in.
    """

    def __init__(self, rule: Rule, table: SeriesTable) -> None:
        self.rule = rule
        self.states: dict[str, State] = {}
        self.backfilled_ns = 0
        self.next_ns = 0
        self.backfilling = False
        #: What lies up to here it has to be primed with.
        self.began_at: Position | None = None
        #: Instances that are counted with the rest now.
        self._folded: set[str] = set()
        self.silenced_until_ns = 0
        self.spans = 0
        self._measure = make_window(rule, table)

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

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        """Take in those sides of scores given after the fact that pass its filter."""
        self._measure.change(changes, time_ns)

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
        leaving = self._folded & busy
        known = self.states.keys() - self._folded if rule.no_data == "fire" else busy - leaving
        names = sorted({*found, *known}) if rule.group_by else [WHOLE]
        events = [event for name in sorted(leaving) if (event := self._leave(name, instant)) is not None]
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
                # Whoever goes is not looked at any more: what fires has to be ended first, at the next instant.
                held = {name for name in self._folded if self.states[name].firing or self._is_cooling(name, instant)}
                self._folded &= held
                kept = stay | held | {OTHER}
                self.states = {name: state for name, state in self.states.items() if name in kept}
        return events

    def _is_cooling(self, name: str, instant: int) -> bool:
        state = self.states[name]
        return state.fired_ns > 0 and instant <= state.fired_ns + self.rule.cooldown_ns

    def _leave(self, name: str, instant: int) -> AlertEvent | None:
        """What ends the episode of an instance that is counted with the rest from now on."""
        state = self.states[name]
        if not state.firing or instant <= state.event_ns or self.rule.silenced or instant < self.silenced_until_ns:
            return None
        event = leave(self.rule, state, instant, name)
        self.take(event)
        return event

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
        return not self.backfilled_ns or instant_ns < self.backfilled_ns + self.rule.covers_ns

    def recall(self, held: Mapping[str, AlertEvent]) -> None:
        """
        The state that the last ``firing`` and the ``last`` event of an instance say.

        An instance that is looked at no more, because it is over and nothing was found of it, stays forgotten: what was
        said of it is older than the last instant that was looked at.
        """
        last = held["last"]
        evaluated_ns = self.next_ns - self.rule.eval_interval_ns if self.next_ns else 0
        if self.rule.group_by and last.status != "firing" and instance_of(last) not in self.states:
            fired_ns = parse_instant(held["firing"].fired_at) if "firing" in held else 0
            if parse_instant(last.fired_at) <= evaluated_ns and fired_ns + self.rule.cooldown_ns < evaluated_ns:
                return
        for event in held.values():
            self.take(event)

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
            "primed_ns": self.backfilled_ns,
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
        self.backfilled_ns, self.next_ns, self.spans = saved["primed_ns"], saved["next_ns"], saved["spans"]
        self._folded = set(saved["folded"])
        if self.next_ns and saved["interval_ns"] != self.rule.eval_interval_ns:
            self.start_at(self.next_ns - saved["interval_ns"])


def instance_of(event: AlertEvent) -> str:
    """Which instance of its rule *event* is about."""
    return next(iter(event.group.values()), WHOLE)
