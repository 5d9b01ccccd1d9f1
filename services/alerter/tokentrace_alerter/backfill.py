"""Reading the log again for rules that were made at run time: as far back as they look, and for them alone."""

from __future__ import annotations

import asyncio
import logging
import time

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Message, subjects
from tokentrace.dedup import FoldedBatches
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace.service.runner import TURN_S
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, RuleEvaluator

log = logging.getLogger("tokentrace.alerter")

#: So many readings go on at once; a rule that is made meanwhile shares the next one with all that wait.
READINGS = 2


class Backfiller:
    """Has rules primed: those that wait at the same time share a reading."""

    def __init__(self, bus: Bus, machine: AlerterMachine) -> None:
        self._bus, self._machine = bus, machine
        self._waiting: dict[str, Rule] = {}
        self._asked = asyncio.Event()

    def ask(self, rule: Rule) -> None:
        """*rule*, which the machine watches from now on, is to know what lies before."""
        self._waiting[rule.name] = rule
        self._asked.set()

    async def run(self) -> None:
        """Read for whoever asks, until cancelled."""
        turns = asyncio.Semaphore(READINGS)
        async with asyncio.TaskGroup() as readings:
            while True:
                await turns.acquire()
                await self._asked.wait()
                self._asked.clear()
                rules, self._waiting = list(self._waiting.values()), {}
                reading = readings.create_task(backfill(self._bus, self._machine, *rules))
                reading.add_done_callback(lambda _: turns.release())


class _Takers:
    """Which of some rules take a message in: those that look back as far, up to where they began to watch."""

    def __init__(self, watches: dict[str, RuleEvaluator], since_ns: dict[str, int]) -> None:
        self._until = {name: watch.began_at.sequence for name, watch in watches.items() if watch.began_at is not None}
        self._watches, self._since_ns = watches, since_ns
        self._same_before_ns = self._same_upto = -1
        self.watches: dict[str, RuleEvaluator] = {}
        self.index = FilterIndex({})

    @property
    def first_ns(self) -> int:
        """How far back the first of them looks."""
        return min(self._since_ns[name] for name in self._until)

    @property
    def last(self) -> int:
        """Sequence of the last message that any of them takes; 0 = none takes any."""
        return max(self._until.values(), default=0)

    def look_at(self, message: Message) -> None:
        """``watches`` are those that take *message* from now on."""
        if message.time_ns < self._same_before_ns and message.sequence <= self._same_upto:
            return
        self.watches = {
            name: self._watches[name]
            for name, until in self._until.items()
            if message.sequence <= until and message.time_ns >= self._since_ns[name]
        }
        self.index = FilterIndex({name: watch.rule.filter for name, watch in self.watches.items()})
        later = [self._since_ns[name] for name in self._until if self._since_ns[name] > message.time_ns]
        self._same_before_ns = min(later, default=1 << 63)
        self._same_upto = min((self._until[name] for name in self.watches), default=1 << 63)


async def backfill(bus: Bus, machine: AlerterMachine, *rules: Rule) -> None:
    """Fill the rings of *rules*, which *machine* watches from its position on, with what lies before that."""
    now_ns = time.time_ns()
    watches = {rule.name: machine.watches[rule.name] for rule in rules if rule.name in machine.watches}
    since_ns = {name: now_ns - watch.rule.reaches_ns for name, watch in watches.items()}
    takers = _Takers(watches, since_ns)
    if takers.last:
        await _read(bus, machine, takers)
        # Whether the log reaches back that far or began later: of what was before nobody knows.
        state = await until_available(lambda: bus.state(subjects.SPANS))
        since_ns = {name: max(since, state.first_time_ns) for name, since in since_ns.items()}
    for name, watch in watches.items():
        # It may have been removed, or made anew, meanwhile.
        if machine.watches.get(name) is watch:
            known_ns = since_ns[name] if watch.began_at is not None else time.time_ns()
            machine.backfilled(name, known_ns, time.time_ns())


async def _read(bus: Bus, machine: AlerterMachine, takers: _Takers) -> None:
    start = await until_available(lambda: bus.position_at(subjects.SPANS, takers.first_ns))
    if start.sequence >= takers.last:
        return
    seen = FoldedBatches()
    turn = time.perf_counter() + TURN_S
    async with Follower(
        bus, subjects.SPANS, [subjects.ALL_SPANS], start, reader="alerter.backfill", until_caught_up=True
    ) as chunks:
        async for chunk in chunks:
            for message in chunk.messages:
                if message.sequence > takers.last:
                    return
                takers.look_at(message)
                try:
                    machine.backfill(takers.watches, takers.index, message, seen)
                except BAD_DATA as exc:
                    bus.set_aside.note(subjects.SPANS, f"message {message.sequence}", exc)
                if time.perf_counter() > turn:
                    await asyncio.sleep(0)
                    turn = time.perf_counter() + TURN_S
            if chunk.messages and chunk.messages[-1].sequence >= takers.last:
                return
