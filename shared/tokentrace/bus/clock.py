"""The broker's time, as a process knows it without trusting the clock of its own host."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How far the clocks of two machines may drift apart, as a fraction of the time that passes: 100 ppm.
_DRIFT = 10_000


class BrokerClock:
    """
    The broker's time, measured from answers of the broker that name it.

    An answer was made between the sending of the request and the arrival of the answer, so each one gives the least and
    the most by which the broker's time exceeds the time that has elapsed on this machine. Both bounds are kept, and
    each answer narrows them. If an answer contradicts them, one of the clocks was set, and it replaces them.

    Between two answers the clock goes on with the monotonic clock of the host. The host's time of day is used only
    until the first answer, and for ``skew_ns``.

    Args:
        host_ns: Returns the host's time of day, Unix nanoseconds.
        elapsed_ns: Returns the time elapsed since some instant, nanoseconds; is never set back.
    """

    def __init__(
        self, host_ns: Callable[[], int] = time.time_ns, elapsed_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._host_ns, self.elapsed_ns = host_ns, elapsed_ns
        #: The bounds of the broker's time minus the elapsed time, and the elapsed time at which they were measured.
        self._measured: tuple[int, int, int] | None = None

    def note(self, broker_ns: int, sent_ns: int) -> None:
        """
        Note an answer that has just arrived.

        Args:
            broker_ns: The broker's time in the answer, Unix nanoseconds.
            sent_ns: ``elapsed_ns()`` before the request was sent.
        """
        arrived_ns = self.elapsed_ns()
        least, most = broker_ns - arrived_ns, broker_ns - sent_ns
        if self._measured is not None:
            least_before, most_before, before_ns = self._measured
            drift = (arrived_ns - before_ns) // _DRIFT
            both = max(least, least_before - drift), min(most, most_before + drift)
            least, most = both if both[0] <= both[1] else (least, most)
        self._measured = least, most, arrived_ns

    @property
    def is_known(self) -> bool:
        """True once the broker has named its time."""
        return self._measured is not None

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds; the host's time of day until the broker has named its own."""
        if self._measured is None:
            return self._host_ns()
        least, most, _ = self._measured
        return self.elapsed_ns() + (least + most) // 2

    def passed_ns(self) -> int:
        """Return a time that the broker's clock has passed, as late as possible; 0 = it has not named its time yet."""
        return 0 if self._measured is None else self.elapsed_ns() + self._measured[0]

    def skew_ns(self) -> int | None:
        """Return by how much the host's time of day is ahead of the broker's time, nanoseconds; None = unknown."""
        return None if self._measured is None else self._host_ns() - self.now_ns()
