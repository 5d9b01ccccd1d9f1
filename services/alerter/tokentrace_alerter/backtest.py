"""
Backtest: which events rules would have published, according to the stored log.

The machine of the alerter reads the log, with stream time as its clock. Nothing is published or saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent
from tokentrace.service.follow import Follower
from tokentrace.units import parse_instant
from tokentrace_alerter.backfill import LEARN_NS
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule


async def backtest(
    bus: Bus, rules: Sequence[Rule], project: str, from_ns: int | None, to_ns: int, *, shards: int
) -> AsyncIterator[AlertEvent]:
    """
    Yield the events of *rules* for the instants after *from_ns* that are due by *to_ns*, in order.

    Messages that cannot be read are skipped, as the alerter skips them.

    Args:
        from_ns: Unix nanoseconds; None or before the first message of the log = the time of that message.
        to_ns: Unix nanoseconds.
        shards: Shard count.

    Raises:
        Unavailable: The broker cannot be reached.
    """
    machine = AlerterMachine(rules, project, shards=shards)
    state = await bus.state(subjects.SPANS)
    if not state.messages:
        return
    began_ns = state.first_time_ns if from_ns is None else max(from_ns, state.first_time_ns)
    start = await bus.position_at(subjects.SPANS, began_ns - LEARN_NS - max(rule.reaches_ns for rule in rules))
    started = False
    async with Follower(
        bus, subjects.SPANS, [subjects.ALL_SPANS], start, reader="backtest", until_caught_up=True
    ) as chunks:
        async for chunk in chunks:
            for message in chunk.messages:
                if message.time_ns > to_ns:
                    break
                if not started and message.time_ns >= began_ns:
                    started = True
                    machine.start_evaluation(began_ns)
                with contextlib.suppress(Rejected):
                    machine.fold(message, chunk.created_ns)
                for event in publish_nowhere(machine):
                    yield event
            if chunk.messages and chunk.messages[-1].time_ns > to_ns:
                break
    if not started:
        machine.start_evaluation(began_ns)
    machine.evaluate_until(to_ns)
    for event in publish_nowhere(machine):
        if parse_instant(event.fired_at) <= to_ns:
            yield event


def publish_nowhere(machine: AlerterMachine) -> list[AlertEvent]:
    """Return the events that wait to be published, and tell the machine that they were published."""
    effects = machine.waiting_effects()
    for effect in effects:
        machine.performed(effect)
    events = [msgspec.json.decode(effect.payload, type=AlertEvent) for effect in effects]
    for event in events:
        machine.apply_event(event)
    return events
