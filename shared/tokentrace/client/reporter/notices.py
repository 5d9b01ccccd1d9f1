"""
What a reporter logs: nothing while it works, one line when it begins to lose spans, one when it works again.

A reporter must not fill the log of an application, and must not be silent when spans are lost. So each kind of line is
written once until the state changes, and a reason is repeated at most every 10 s, with a count.
"""

from __future__ import annotations

import logging
import re
import time

log = logging.getLogger("tokentrace.reporter")

#: Seconds without an accepted span, while spans wait, after which the reporter says so.
SILENT_S = 5.0
#: A line with the same reason is repeated after this many seconds at the earliest.
REPEAT_S = 10.0
#: Limit for the reasons that are told apart.
_MAX_REASONS = 100
#: What differs from span to span in the reasons of the same kind.
_VALUES = re.compile(r"'[^']*'|\d+")


class Notices:
    """
    The log of one reporter.

    Args:
        source: Name of the program, which every line contains.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self.reset()

    def reset(self) -> None:
        """Forget what was logged, in a forked child."""
        #: Kind of a line -> (when it was last written, monotonic seconds; how often it was left out since then).
        self._written: dict[str, tuple[float, int]] = {}
        self._silent = self._dropping = False
        self._ended = False

    def refused(self, reason: str, count: int = 1) -> None:
        """Say that *count* spans are not valid and not stored."""
        self._at_intervals(
            logging.WARNING, f"a span is not valid and is not stored: {reason}", _VALUES.sub("", reason), count
        )

    def failed(self, spans: int, reason: str) -> None:
        """Say that a batch of *spans* was refused for good."""
        self._at_intervals(logging.ERROR, f"a batch was refused and its spans are lost: {reason}", reason, spans)

    def fault(self, what: str, error: BaseException) -> None:
        """Say that the sender failed and starts again, with the traceback."""
        self._at_intervals(
            logging.ERROR, f"{what}: {type(error).__name__}: {error}", f"{what} {type(error)}", error=error
        )

    def _at_intervals(
        self, level: int, text: str, kind: str, count: int = 1, error: BaseException | None = None
    ) -> None:
        now = time.monotonic()
        at, left_out = self._written.pop(kind, (-REPEAT_S, 0))
        if now - at < REPEAT_S:
            self._written[kind] = (at, left_out + count)
            return
        self._written[kind] = (now, 0)
        while len(self._written) > _MAX_REASONS:
            del self._written[next(iter(self._written))]
        total = left_out + count
        more = f" ({total} times since this was last said)" if total > 1 else ""
        log.log(level, "reporter %s: %s%s", self._source, text, more, exc_info=error)

    def waiting(self, seconds: float, spans: int, reason: str) -> None:
        """Say, once until spans are accepted again, that *spans* have waited for *seconds*."""
        if seconds < SILENT_S or self._silent:
            return
        self._silent = True
        cause = reason or "no answer"
        log.warning("reporter %s: no span was accepted for %.0f s and %d wait: %s", self._source, seconds, spans, cause)

    def dropping(self, reason: str) -> None:
        """Say, once until spans are accepted again, that spans are dropped."""
        if not self._dropping:
            self._dropping = True
            log.warning("reporter %s: spans are dropped from now on, because %s", self._source, reason)

    def accepted(self, waiting: int) -> None:
        """Say that spans are accepted again, if they were not; *waiting* is how many still wait."""
        if self._silent or (self._dropping and waiting == 0):
            self._silent = self._dropping = False
            log.info("reporter %s: spans are accepted again", self._source)

    def ended(self, dropped: int, failed: int, rejected: int, reason: str) -> None:
        """Say, once, how many spans were lost in all, and why the last ones were not accepted; "" = unknown."""
        if self._ended or not dropped + failed + rejected:
            return
        self._ended = True
        log.warning(
            "reporter %s: spans lost: %d (%d dropped, %d in refused batches, %d not valid)%s",
            self._source,
            dropped + failed + rejected,
            dropped,
            failed,
            rejected,
            f"; not accepted: {reason}" if dropped and reason else "",
        )
