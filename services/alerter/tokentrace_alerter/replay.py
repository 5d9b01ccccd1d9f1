"""
Replays of one rule over the log of spans: the events that it would have published, and its value over time.

A replay is a backtest with a limit of time that leaves the alerter its turns: it works for 5 ms and then waits as long.
It evaluates every instant by itself, so that a long time without messages does not keep the alerter busy either.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Message, subjects
from tokentrace.errors import Unavailable
from tokentrace.records import AlertEvent
from tokentrace.service.follow import Follower
from tokentrace.service.runner import TURN_S
from tokentrace.units import render_instant
from tokentrace_alerter.backfill import LEARN_NS
from tokentrace_alerter.backtest import publish_nowhere
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule, RuleEvaluator, rank

#: A replay ends after this time, complete or not; seconds.
LIMIT_S = 15.0
#: How long a replay waits for the one before it, seconds.
_WAIT_S = 5.0
#: Number of points of a series, and of events that are listed.
MAX_POINTS, MAX_EVENTS = 500, 1000
_PROJECT = "replay"


class Point(msgspec.Struct, kw_only=True):
    """
    What a rule found at an instant; of a grouped rule, of its instance that is furthest on the side of the threshold.

    Attributes:
        at_ns: The instant, Unix nanoseconds.
        breached: Number of instances for which the condition held.
    """

    at_ns: int
    value: float | None
    span_count: int
    breached: int
    instances: int


class Found(msgspec.Struct):
    """
    What a replay has found.

    Attributes:
        step_ns: A point stands for the instants of this time, nanoseconds: it is the furthest one of them.
        until_ns: The replay came up to this instant, Unix nanoseconds.
    """

    step_ns: int
    until_ns: int = 0
    firings: int = 0
    resolutions: int = 0
    events: list[AlertEvent] = []
    points: list[Point] = []

    def add_event(self, event: AlertEvent) -> None:
        """Count *event*, and list it if there is room."""
        if event.status == "firing":
            self.firings += 1
        else:
            self.resolutions += 1
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)

    def add_point(self, rule: Rule, point: Point) -> None:
        """Add *point*; of those that share a step the furthest one stays."""
        last = self.points[-1] if self.points else None
        if last is None or last.at_ns // self.step_ns != point.at_ns // self.step_ns:
            self.points.append(point)
        elif rank(rule, point.value) > rank(rule, last.value):
            self.points[-1] = point


class Replays:
    """Replays of rules, one at a time."""

    def __init__(self, bus: Bus, *, shards: int = 1, limit_s: float = LIMIT_S) -> None:
        self._bus, self._shards, self._limit_s = bus, shards, limit_s
        self._turn = asyncio.Lock()

    async def replay(self, rule: Rule, window_ns: int, now_ns: int, to_ns: int = 0) -> dict[str, Any]:
        """
        Return what *rule* would have found in the *window_ns* nanoseconds before *to_ns*, as the API shows it.

        A silence and the key ``silenced`` are left out.

        Args:
            to_ns: Unix nanoseconds; 0 or later than *now_ns* = *now_ns*.

        Raises:
            Unavailable: The broker cannot be reached, or another replay takes too long.
        """
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._turn.acquire()
        except TimeoutError as exc:
            raise Unavailable("another rule is being replayed; try again") from exc
        try:
            return await self._replay(replace(rule, silenced=False), window_ns, min(to_ns or now_ns, now_ns))
        finally:
            self._turn.release()

    async def _replay(self, rule: Rule, window_ns: int, now_ns: int) -> dict[str, Any]:
        deadline = time.monotonic() + self._limit_s
        state = await self._bus.state(subjects.SPANS)
        from_ns = max(now_ns - window_ns, state.first_time_ns) if state.messages else now_ns - window_ns
        instants = -(-window_ns // rule.eval_interval_ns)
        found = Found(-(-instants // MAX_POINTS) * rule.eval_interval_ns)
        found.until_ns = from_ns
        machine = AlerterMachine([rule], _PROJECT, shards=self._shards)
        evaluator, started = machine.evaluators[rule.name], False
        turn = time.perf_counter() + TURN_S
        async with contextlib.aclosing(self._messages(rule, from_ns, empty=not state.messages)) as messages:
            async for message, created_ns in messages:
                if message.time_ns > now_ns:
                    break
                if not started and message.time_ns >= from_ns:
                    started = True
                    machine.start_evaluation(from_ns)
                turn, in_time = await _advance(machine, evaluator, message.time_ns, found, turn, deadline)
                if not in_time:
                    return _render(rule, found, from_ns, now_ns)
                with contextlib.suppress(*BAD_DATA):
                    machine.fold(message, created_ns)
                _take(machine, found)
                if started:
                    found.until_ns = message.time_ns
        if not started:
            machine.start_evaluation(from_ns)
        _, in_time = await _advance(machine, evaluator, now_ns, found, turn, deadline)
        if in_time:
            found.until_ns = now_ns
        return _render(rule, found, from_ns, now_ns)

    async def _messages(self, rule: Rule, from_ns: int, *, empty: bool) -> AsyncGenerator[tuple[Message, int], None]:
        """Yield what the value of *rule* at *from_ns* depends on, and all later messages; *empty* = there are none."""
        if empty:
            return
        start = await self._bus.position_at(subjects.SPANS, from_ns - LEARN_NS - rule.reaches_ns)
        async with Follower(
            self._bus, subjects.SPANS, [subjects.ALL_SPANS], start, reader="alerter.replay", until_caught_up=True
        ) as chunks:
            async for chunk in chunks:
                for message in chunk.messages:
                    yield message, chunk.created_ns


async def _advance(
    machine: AlerterMachine, evaluator: RuleEvaluator, upto_ns: int, found: Found, turn: float, deadline: float
) -> tuple[float, bool]:
    """Evaluate the instants that are due by *upto_ns*; return the end of the turn, and False after the deadline."""
    while True:
        if time.perf_counter() > turn:
            await asyncio.sleep(TURN_S)
            turn = time.perf_counter() + TURN_S
            if time.monotonic() > deadline:
                return turn, False
        if not 0 < evaluator.due_ns <= upto_ns:
            return turn, True
        instant_ns = evaluator.next_ns
        machine.evaluate_until(evaluator.due_ns)
        found.add_point(evaluator.rule, _point(evaluator, instant_ns))
        found.until_ns = instant_ns
        _take(machine, found)


def _take(machine: AlerterMachine, found: Found) -> None:
    for event in publish_nowhere(machine):
        found.add_event(event)


def _point(evaluator: RuleEvaluator, instant_ns: int) -> Point:
    """Return what was found at *instant_ns*, which has just been evaluated."""
    rule = evaluator.rule
    states = [state for state in evaluator.states.values() if state.evaluated_ns == instant_ns]
    furthest = max(states, key=lambda state: rank(rule, state.value), default=None)
    return Point(
        at_ns=instant_ns,
        value=furthest.value if furthest else None,
        span_count=furthest.span_count if furthest else 0,
        breached=sum(state.breached for state in states),
        instances=len(states),
    )


def _render(rule: Rule, found: Found, from_ns: int, to_ns: int) -> dict[str, Any]:
    return {
        "name": rule.name,
        "metric": rule.metric,
        "op": rule.op,
        "threshold": rule.threshold,
        "recovery_threshold": rule.recovery_threshold,
        "from": render_instant(from_ns),
        "to": render_instant(to_ns),
        "until": render_instant(found.until_ns),
        "complete": found.until_ns >= to_ns,
        "step_s": found.step_ns / 1e9,
        "points": [
            {
                "at": render_instant(point.at_ns),
                "value": point.value,
                "span_count": point.span_count,
                "breached": point.breached,
                "instances": point.instances,
            }
            for point in found.points
        ],
        "firings": found.firings,
        "resolutions": found.resolutions,
        "events": [msgspec.to_builtins(event) for event in found.events],
    }
