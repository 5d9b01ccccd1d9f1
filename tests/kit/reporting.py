"""Helpers of the reporter's tests: a time limit, a function that waits, and the sum of a reporter's counters."""

from __future__ import annotations

import time
from collections.abc import Callable

from tokentrace import Stats

#: How long tests wait for a condition, seconds; the reporter does not promise this time.
WAIT_S = 40.0
NOTHING = Stats(sent=0, acked=0, dropped=0, failed=0, queue_depth=0)


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Wait until *condition* holds; fail after *seconds*. *what* names the condition in the error text."""
    deadline = time.monotonic() + seconds
    pause_s = 0.0005
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.02)


def accounted(stats: Stats) -> int:
    """Return how many spans the counters account for; it must equal the number of calls of ``report``."""
    return stats.acked + stats.dropped + stats.failed + stats.rejected + stats.queue_depth + stats.spooled
