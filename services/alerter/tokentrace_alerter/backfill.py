"""
Backfill: reading the log for rules that have no data yet, as far back as they look.

A rule has no data if it was added at run time or does not fit the snapshot. Rules that wait at the same time share one
pass over the log, so creating many rules at once reads the log only once or twice.
"""

from __future__ import annotations

import asyncio
import logging
import time

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Message, subjects
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace.service.runner import TURN_S
from tokentrace.units import MINUTE
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule, RuleEvaluator

log = logging.getLogger("tokentrace.alerter")

#: Limit of concurrent passes over the log. A rule that is added while that many run waits until one has ended.
MAX_PASSES = 2
#: A backfill learns the calls of this time before its look-back, nanoseconds, without folding them.
LEARN_NS = 10 * MINUTE


class Backfiller:
    """Backfills the rules passed to ``ask``; those that wait at the same time share a pass over the log."""

    def __init__(self, bus: Bus, machine: AlerterMachine) -> None:
        self._bus, self._machine = bus, machine
        self._waiting: dict[str, Rule] = {}
        self._asked = asyncio.Event()

    def ask(self, rule: Rule) -> None:
        """Request the backfill of *rule*, which has been added to the machine."""
        self._waiting[rule.name] = rule
        self._asked.set()

    async def run(self) -> None:
        """Backfill until cancelled."""
        turns = asyncio.Semaphore(MAX_PASSES)
        async with asyncio.TaskGroup() as passes:
            while True:
                await turns.acquire()
                await self._asked.wait()
                self._asked.clear()
                rules, self._waiting = list(self._waiting.values()), {}
                task = passes.create_task(backfill(self._bus, self._machine, *rules))
                task.add_done_callback(lambda _: turns.release())


class _Recipients:
    """
    The rules for which a backfill folds a message.

    For each rule these are the messages from its look-back on, up to the position at which the rule was added. The
    machine itself folds the messages after that position.
    """

    def __init__(self, evaluators: dict[str, RuleEvaluator], since_ns: dict[str, int]) -> None:
        self._until = {
            name: evaluator.added_at.sequence
            for name, evaluator in evaluators.items()
            if evaluator.added_at is not None
        }
        self._all, self._since_ns = evaluators, since_ns
        self._same_before_ns = self._same_upto = -1
        self.evaluators: dict[str, RuleEvaluator] = {}
        self.index = FilterIndex({})

    @property
    def first_ns(self) -> int:
        """The earliest stream time to which one of the rules looks back, Unix nanoseconds."""
        return min(self._since_ns[name] for name in self._until)

    @property
    def last(self) -> int:
        """Sequence of the last message that is folded for a rule; 0 = none is."""
        return max(self._until.values(), default=0)

    def select_for(self, message: Message) -> None:
        """Set ``evaluators`` and ``index`` to the rules for which *message* is folded; call this in stream order."""
        if message.time_ns < self._same_before_ns and message.sequence <= self._same_upto:
            return
        self.evaluators = {
            name: self._all[name]
            for name, until in self._until.items()
            if message.sequence <= until and message.time_ns >= self._since_ns[name]
        }
        self.index = FilterIndex({name: evaluator.rule.filter for name, evaluator in self.evaluators.items()})
        later = [self._since_ns[name] for name in self._until if self._since_ns[name] > message.time_ns]
        self._same_before_ns = min(later, default=1 << 63)
        self._same_upto = min((self._until[name] for name in self.evaluators), default=1 << 63)


async def backfill(bus: Bus, machine: AlerterMachine, *rules: Rule) -> None:
    """Fold for *rules* what the log holds up to the position at which each was added, then start their evaluation."""
    now_ns = bus.clock.now_ns()
    evaluators = {rule.name: machine.evaluators[rule.name] for rule in rules if rule.name in machine.evaluators}
    since_ns = {name: now_ns - evaluator.rule.reaches_ns for name, evaluator in evaluators.items()}
    recipients = _Recipients(evaluators, since_ns)
    if recipients.last:
        await _read(bus, machine, recipients)
        # If a rule looks back further than the log reaches, it has data from the first message of the log on.
        state = await until_available(lambda: bus.state(subjects.SPANS))
        since_ns = {name: max(since, state.first_time_ns) for name, since in since_ns.items()}
    for name, evaluator in evaluators.items():
        # The rule may have been removed or replaced while the log was read.
        if machine.evaluators.get(name) is evaluator:
            known_ns = since_ns[name] if evaluator.added_at is not None else bus.clock.now_ns()
            machine.finish_backfill(name, known_ns, bus.clock.now_ns())


async def _read(bus: Bus, machine: AlerterMachine, recipients: _Recipients) -> None:
    # Earlier calls are not folded, but a repetition of one of them within the look-back must be recognised.
    start = await until_available(lambda: bus.position_at(subjects.SPANS, recipients.first_ns - LEARN_NS))
    if start.sequence >= recipients.last:
        return
    dedup = machine.new_memory()
    turn = time.perf_counter() + TURN_S
    async with Follower(
        bus, subjects.SPANS, [subjects.ALL_SPANS], start, reader="alerter.backfill", until_caught_up=True
    ) as chunks:
        async for chunk in chunks:
            for message in chunk.messages:
                if message.sequence > recipients.last:
                    return
                recipients.select_for(message)
                try:
                    machine.backfill(recipients.evaluators, recipients.index, message, dedup)
                except BAD_DATA as exc:
                    bus.set_aside.note(subjects.SPANS, f"message {message.sequence}", exc)
                if time.perf_counter() > turn:
                    await asyncio.sleep(0)
                    turn = time.perf_counter() + TURN_S
            if chunk.messages and chunk.messages[-1].sequence >= recipients.last:
                return
