"""
What happens to reporters at the end of the interpreter and at a fork.

At exit all senders have the same 5 seconds to send their waiting spans. A forked child inherits no thread and may
inherit locks that are held for ever, so the child gives every sender a new state, without the parent's spans and under
a new id.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

#: How long ``close`` and the end of the program wait for spans to be accepted, seconds.
CLOSE_TIMEOUT_S = 5.0


class ProcessBound(Protocol):
    """A part of a reporter that owns a thread and must be closed at exit and reset after a fork."""

    def begin_close(self, timeout: float) -> None:
        """Ask the thread to end within *timeout* seconds, without waiting."""
        ...

    def finish_close(self) -> None:
        """Wait for the end of the thread for a limited time, and drop the spans that were not accepted."""
        ...

    def reset(self) -> None:
        """Discard the thread, spans and counters of the parent, in a forked child."""
        ...


# Weak, so that a reporter that is no longer used can be collected. A running thread keeps its sender referenced.
_senders: weakref.WeakSet[ProcessBound] = weakref.WeakSet()


def register(sender: ProcessBound) -> None:
    """Close *sender* at exit and reset it after a fork, as long as it is referenced."""
    _senders.add(sender)


def close_at_exit_of_child() -> None:
    """Register the closing of all senders in a ``multiprocessing`` child, which runs no ``atexit`` handlers."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    from multiprocessing.util import Finalize

    Finalize(None, _close_all, exitpriority=10)


def _close_all() -> None:
    senders = list(_senders)
    # Begin to close all senders before waiting for the first, so that they share one timeout.
    for sender in senders:
        sender.begin_close(CLOSE_TIMEOUT_S)
    for sender in senders:
        sender.finish_close()


def _reset_all() -> None:
    for sender in list(_senders):
        sender.reset()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
