"""What the tests of the reporter share: a time limit, a way to wait, and the sum of a reporter's counters."""

from __future__ import annotations

import time
from collections.abc import Callable

from tokentrace import Stats

#: How long a test waits for what must happen, seconds. It is not a promise of the reporter.
WAIT_S = 40.0
NOTHING = Stats(sent=0, acked=0, dropped=0, failed=0, queue_depth=0)


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Wait until *condition* holds; fail after *seconds* with *what* did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(0.02)


def accounted(stats: Stats) -> int:
    """The number of spans that the counters account for; it equals the number of calls of ``report``."""
    return stats.acked + stats.dropped + stats.failed + stats.queue_depth
