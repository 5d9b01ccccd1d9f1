"""
What a transport logs: nothing while it works, one line when it fails, one when it works again, one about what was lost.

A transport must not fill the log of an application, and must not be silent when spans are lost. A reason is repeated at
most every 10 s, with a count.
"""

from __future__ import annotations

import logging
import re
import time

log = logging.getLogger("tokentrace.transport")

#: A line with the same reason is repeated after this many seconds at the earliest.
REPEAT_S = 10.0
#: Limit for the reasons that are told apart.
_MAX_REASONS = 100
#: What differs from item to item in the reasons of the same kind.
_VALUES = re.compile(r"'[^']*'|\d+")


class Notices:
    """
    The log of one transport. Without a lock: at worst, two threads write the same line.

    Args:
        name: What every line begins with, such as ``file transport traces.jsonl``.
        items: What is delivered, such as ``spans``.
    """

    def __init__(self, name: str, items: str = "spans") -> None:
        self._name, self._items = name, items
        self.reset()

    def reset(self) -> None:
        """Forget what was logged, in a forked child."""
        #: Kind of a line -> (when it was last written, monotonic seconds; how often it was left out since then).
        self._written: dict[str, tuple[float, int]] = {}
        self._failing = self._dropping = self._ended = False

    def failing(self, reason: str) -> None:
        """Say, once until something is delivered, that nothing can be delivered now."""
        if not self._failing:
            self._failing = True
            log.warning("%s: %s wait, because they cannot be delivered: %s", self._name, self._items, reason)

    def dropping(self, reason: str) -> None:
        """Say, once until something is delivered and nothing waits, that new items are dropped."""
        if not self._dropping:
            self._dropping = True
            log.warning("%s: %s are dropped from now on, because %s", self._name, self._items, reason)

    def delivered(self, waiting: int) -> None:
        """Say that delivery works again, if it did not; *waiting* is how many items still wait."""
        if self._failing or (self._dropping and waiting == 0):
            self._failing = self._dropping = False
            log.info("%s: %s are delivered again", self._name, self._items)

    def rejected(self, reason: str, count: int = 1) -> None:
        """Say that *count* items are not valid and not delivered."""
        self._at_intervals(f"{self._items} are not valid and not delivered: {reason}", count)

    def failed(self, reason: str, count: int) -> None:
        """Say that *count* items were given up."""
        self._at_intervals(f"{self._items} are lost: {reason}", count)

    def fault(self, error: BaseException, count: int) -> None:
        """Say that *count* items are lost through an unexpected error, with the traceback."""
        self._at_intervals(f"{self._items} are lost: {type(error).__name__}: {error}", count, error)

    def _at_intervals(self, text: str, count: int, error: BaseException | None = None) -> None:
        now, kind = time.monotonic(), _VALUES.sub("", text)
        at, left_out = self._written.pop(kind, (-REPEAT_S, 0))
        if now - at < REPEAT_S:
            self._written[kind] = (at, left_out + count)
            return
        self._written[kind] = (now, 0)
        while len(self._written) > _MAX_REASONS:
            del self._written[next(iter(self._written))]
        log.warning("%s: %d %s", self._name, left_out + count, text, exc_info=error)

    def ended(self, dropped: int, failed: int, rejected: int) -> None:
        """Say, once, how many items were lost in all."""
        if self._ended or not dropped + failed + rejected:
            return
        self._ended = True
        log.warning(
            "%s: %s lost: %d (%d dropped, %d failed, %d not valid)",
            self._name,
            self._items,
            dropped + failed + rejected,
            dropped,
            failed,
            rejected,
        )
