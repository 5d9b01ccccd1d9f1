"""How long the log reaches back: now, and once it is full at the rate at which it grows."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tokentrace.bus import StreamState
from tokentrace.units import MINUTE, SECOND

#: The rate is that of the last so many nanoseconds, and is not known before a tenth of them has passed.
_OVER_NS = 10 * MINUTE
_LEAST_NS = _OVER_NS // 10


class _Sample(NamedTuple):
    at_ns: int
    created_ns: int
    last_sequence: int


class LogCoverage:
    """
    Follows how fast the log grows.

    Args:
        keeps_ns: How long the log keeps a message at most, nanoseconds.
    """

    def __init__(self, keeps_ns: int) -> None:
        self.keeps_ns = keeps_ns
        self._samples: deque[_Sample] = deque()

    def note(self, state: StreamState, now_ns: int) -> None:
        """Take note of the *state* of the log at *now_ns*, Unix nanoseconds."""
        samples = self._samples
        if samples and (samples[-1].created_ns, samples[-1].last_sequence) > (state.created_ns, state.last_sequence):
            # The stream was made anew, or has lost its end.
            samples.clear()
        samples.append(_Sample(now_ns, state.created_ns, state.last_sequence))
        while samples[0].created_ns != state.created_ns or samples[0].at_ns < now_ns - _OVER_NS:
            samples.popleft()

    def bytes_per_s(self, state: StreamState) -> float | None:
        """
        Return how many bytes a second the log takes, of messages as large as those that it holds.

        Returns:
            None = the log was not followed for a minute yet.
        """
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        if last.at_ns - first.at_ns < _LEAST_NS:
            return None
        size = state.bytes / state.messages if state.messages else 0.0
        return (last.last_sequence - first.last_sequence) * size * SECOND / (last.at_ns - first.at_ns)

    def will_cover_s(self, state: StreamState) -> int | None:
        """
        Return how many seconds a full log would reach back at this rate; at most ``keeps_ns``.

        Returns:
            None = the rate is not known yet.
        """
        rate = self.bytes_per_s(state)
        if rate is None:
            return None
        keeps_s = self.keeps_ns // SECOND
        return min(keeps_s, int(state.max_bytes / rate)) if rate > 0 and state.max_bytes > 0 else keeps_s
