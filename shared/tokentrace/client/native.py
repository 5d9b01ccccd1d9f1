"""
Real threads, locks and selectors, also in a program that gevent or eventlet has patched.

``monkey.patch_all()`` makes green threads of threads. The sender of a reporter must not be one: it would send only
while the program lets it, and its event loop could not run beside one of the program. So in a patched program the
sender is a thread of the system, and what it shares with the program are locks that the library has not replaced.
Nothing waits for such a lock for long. Who waits for the sender sleeps with the ``sleep`` of the program, so that other
green threads run.
"""

from __future__ import annotations

import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

_POLL_S = 0.005


def patched_by() -> str:
    """Return which library has replaced the threads of this program: gevent, eventlet, or "" = none."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return ""


def original(module: str, name: str) -> Any:
    """Return an attribute of a module of the standard library as it was before gevent or eventlet replaced it."""
    library = patched_by()
    if library == "gevent":
        return sys.modules["gevent.monkey"].get_original(module, name)
    if library == "eventlet":
        return getattr(sys.modules["eventlet.patcher"].original(module), name)
    return getattr(__import__(module), name)


class Event(Protocol):
    """What is used of ``threading.Event``."""

    def is_set(self) -> bool:
        """Return True once ``set`` was called."""
        ...

    def set(self) -> None:
        """Let those that wait go on."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for *timeout* seconds at most; return ``is_set()``."""
        ...


class Thread(Protocol):
    """What is used of ``threading.Thread``."""

    def start(self) -> None:
        """Start the thread."""
        ...

    def is_alive(self) -> bool:
        """Return True until the function of the thread returns."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread."""
        ...


class _PolledEvent:
    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def wait(self, timeout: float | None = None) -> bool:
        return wait_for(self.is_set, timeout)


class _NativeThread:
    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._ended = _PolledEvent()

    def start(self) -> None:
        original("_thread", "start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._function()
        finally:
            self._ended.set()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


def wait_for(condition: Callable[[], bool], timeout: float | None) -> bool:
    """Wait until *condition* holds, with the ``sleep`` of the program; return False after *timeout* seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    while not condition():
        if until is not None and time.monotonic() >= until:
            return False
        time.sleep(_POLL_S)
    return True


def make_event() -> Event:
    """Return an event that another thread of the system can set."""
    return _PolledEvent() if patched_by() else threading.Event()


def make_thread(function: Callable[[], object], name: str) -> Thread:
    """Return a daemon thread of the system that will run *function*."""
    if patched_by():
        return _NativeThread(function)
    return threading.Thread(target=function, name=name, daemon=True)


def make_lock() -> Any:
    """Return a lock of the system, as ``threading.Lock``."""
    return original("_thread", "allocate_lock")()


def make_rlock() -> Any:
    """Return a re-entrant lock of the system, as ``threading.RLock``."""
    return original("_thread", "RLock")()


def thread_id() -> int:
    """Return the id of this thread of the system."""
    return int(original("_thread", "get_ident")())


def sleep(seconds: float) -> None:
    """Let this thread of the system sleep."""
    original("time", "sleep")(seconds)


def make_selector() -> selectors.BaseSelector:
    """Return a selector that blocks its thread of the system."""
    return _PollSelector() if patched_by() else selectors.DefaultSelector()


class _PollSelector(selectors.BaseSelector):
    """A selector on the unreplaced ``select.poll``."""

    def __init__(self) -> None:
        self._keys: dict[int, selectors.SelectorKey] = {}
        select = "select"
        self._poll = original(select, "poll")()
        self._in, self._out = original(select, "POLLIN"), original(select, "POLLOUT")

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = _number(fileobj)
        if number in self._keys:
            raise KeyError(f"descriptor {number} is registered already")
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        self._poll.register(number, self._mask(events))
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(self._find(fileobj))
        self._poll.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = self._find(fileobj)
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        self._poll.modify(number, self._mask(events))
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait_ms = None if timeout is None else max(0, int(timeout * 1000 + 0.999))
        try:
            found = self._poll.poll(wait_ms)
        except InterruptedError:
            return []
        ready = []
        for number, mask in found:
            events = (selectors.EVENT_WRITE if mask & ~self._in else 0) | (
                selectors.EVENT_READ if mask & ~self._out else 0
            )
            key = self._keys.get(number)
            if key is not None:
                ready.append((key, events & key.events))
        return ready

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[self._find(fileobj)]

    def close(self) -> None:
        self._keys.clear()

    def _find(self, fileobj: Any) -> int:
        try:
            return _number(fileobj)
        except (OSError, ValueError):  # closed before it was unregistered
            for number, key in self._keys.items():
                if key.fileobj is fileobj:
                    return number
            raise

    def _mask(self, events: int) -> int:
        mask = self._in if events & selectors.EVENT_READ else 0
        return int(mask | (self._out if events & selectors.EVENT_WRITE else 0))


def _number(fileobj: Any) -> int:
    number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if number < 0:
        raise ValueError(f"{fileobj!r} has no descriptor")
    return int(number)
