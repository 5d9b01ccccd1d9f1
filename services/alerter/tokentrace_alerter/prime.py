"""Reading the log again for a rule that was made at run time: as far back as it looks, and for it alone."""

from __future__ import annotations

import contextlib
import logging
import time

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected
from tokentrace.pump import until_available
from tokentrace.seen import Seen
from tokentrace_alerter.machine import Alerter
from tokentrace_alerter.rule import Rule

log = logging.getLogger("tokentrace.alerter")


async def prime(bus: Bus, machine: Alerter, rule: Rule) -> None:
    """Fill the ring of *rule*, which *machine* watches from its position on, with what lies before that."""
    watch = machine.watches.get(rule.name)
    target = watch.began_at if watch is not None else None
    if target is not None:
        since_ns = time.time_ns() - rule.reaches_ns
        start = await until_available(lambda: bus.before(subjects.SPANS, since_ns))
        seen = Seen()
        if start.sequence < target.sequence:
            async with contextlib.aclosing(bus.follow(subjects.SPANS, [subjects.ALL_SPANS], start)) as feed:
                async for chunk in feed:
                    for message in chunk.messages:
                        if message.sequence <= target.sequence:
                            try:
                                machine.prime(rule.name, message, seen)
                            except Rejected as exc:
                                log.debug("message %d: %s", message.sequence, exc)
                    if chunk.pending == 0 or (chunk.messages and chunk.messages[-1].sequence >= target.sequence):
                        break
        # Whether the log reaches back that far or began later: of what was before nobody knows.
        state = await until_available(lambda: bus.state(subjects.SPANS))
        since_ns = max(since_ns, state.first_time_ns)
    else:
        since_ns = time.time_ns()
    machine.primed(rule.name, since_ns, time.time_ns())
