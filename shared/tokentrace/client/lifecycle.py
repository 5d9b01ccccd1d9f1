"""
What happens to reporters at the end of the interpreter and at a fork.

At exit all senders have the same 5 seconds to send their waiting spans. A forked child inherits no thread and may
inherit locks that are held for ever, so the child gives every sender a new state, without the parent's spans and under
a new id. A fork waits until a sender thread has finished an import: a half imported module could never be imported in
the child.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from importlib import import_module
from typing import Protocol

from tokentrace.client import native

#: How long ``close`` and the end of the program wait for spans to be accepted, seconds.
CLOSE_TIMEOUT_S = 5.0


class ProcessBound(Protocol):
    """A part of the client that must be closed at exit and reset after a fork, such as one that owns a thread."""

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
_sources: weakref.WeakSet[ProcessBound] = weakref.WeakSet()
_senders: weakref.WeakSet[ProcessBound] = weakref.WeakSet()


def register(part: ProcessBound, *, is_source: bool = False) -> None:
    """
    Close *part* at exit and reset it after a fork, as long as it is referenced.

    Args:
        is_source: True = it hands its spans to another part, so it is closed before those that send.
    """
    (_sources if is_source else _senders).add(part)


def close_at_exit_of_child() -> None:
    """
    Register the closing of all senders in a child of ``multiprocessing`` or ``billiard``, which has no ``atexit``.

    Such a child runs the finalizers of its own library. It forgets those of its parent when it begins, so they are
    registered with its first span. A child of Celery's pool ends with ``os._exit`` right after a signal of Celery.
    """
    for library in ("multiprocessing", "billiard"):
        process = sys.modules.get(f"{library}.process")
        if process is None or getattr(process.current_process(), "_parent_pid", None) is None:
            continue
        import_module(f"{library}.util").Finalize(None, _close_all, exitpriority=10)
        signals = sys.modules.get("celery.signals")
        if library == "billiard" and signals is not None:
            signals.worker_process_shutdown.connect(_close_after_signal, weak=False, dispatch_uid=__name__)


def _close_after_signal(**_: object) -> None:
    _close_all()


#: Held by a thread while it imports a module, and during a fork. A signal handler may need it during an import.
importing = native.make_rlock()


def close_sources() -> None:
    """Let all parts that hand spans over do so now, because a part that sends has to close before the others."""
    _close(list(_sources))


def _close_all() -> None:
    close_sources()
    _close(list(_senders))


def _close(parts: list[ProcessBound]) -> None:
    # Begin to close all before waiting for the first, so that they share one timeout.
    for part in parts:
        part.begin_close(CLOSE_TIMEOUT_S)
    for part in parts:
        part.finish_close()


def _reset_all() -> None:
    importing.release()
    for part in [*_sources, *_senders]:
        part.reset()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=_reset_all)
