"""
The thread of all reporters of a process, and its event loop.

A sender is a task of this loop from its first span until its reporter is closed. The thread starts with the first
sender and ends with the last one, and leaves no descriptor behind. If the loop itself fails, it is replaced, and every
sender starts again. Tasks that a sender or its connection started end with it.

A finalizer or a signal handler may report a span at any point of the code, so no lock is waited for here: a thread that
holds it could wait for the lock of a queue, and the thread that holds that one for this. Who starts the thread is
decided by a lock that is tried once, and what others ask for waits in a ``deque``, whose methods are atomic.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar
from time import monotonic
from typing import Any, Protocol

from tokentrace.client import lifecycle, native

THREAD_NAME = "tokentrace-reporter"
#: The first and the longest pauses before the loop is made anew, seconds.
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 2.0
#: How long the tasks of a sender may take to end after they were cancelled, seconds.
_END_S = 0.5

_Tasks = weakref.WeakSet[asyncio.Task[Any]]
#: The tasks of the sender whose code runs.
_tasks: ContextVar[_Tasks] = ContextVar("tokentrace_tasks")


class Member(Protocol):
    """A sender, as the hub sees it. The hub calls all methods in its thread, but ``not_started`` in any."""

    def not_started(self, error: Exception) -> None:
        """Say that no thread can be started. The member has to be added again."""
        ...

    async def run(self) -> None:
        """Send until the reporter is closed."""
        ...

    def failed(self, error: Exception) -> None:
        """Say that the loop failed, and that ``run`` will be called again."""
        ...

    @property
    def is_over(self) -> bool:
        """True if it is too late to send anything."""
        ...

    def ended(self) -> None:
        """Take notice that ``run`` is not called again."""
        ...


class Hub:
    """Runs members in one daemon thread. All methods but those for the thread itself may be called from any thread."""

    def __init__(self) -> None:
        self.reset()
        lifecycle.register(self)

    def reset(self) -> None:
        """Forget the thread and the members of the parent, in a forked child."""
        self._asked: deque[Member] = deque()
        self._members: dict[Member, asyncio.Task[None]] = {}
        #: Held by the thread, from before its start to its end.
        self._gate = native.make_lock()
        self._thread: native.Thread | None = None
        self._thread_id = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin_close(self, timeout: float) -> None:
        """Do nothing: the thread ends with its last member."""

    def finish_close(self) -> None:
        """Do nothing, as ``begin_close``."""

    def add(self, member: Member) -> None:
        """Run *member*, until its ``run`` returns; twice is the same as once."""
        self._asked.append(member)
        self._wake_or_start()

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the thread soon, if it runs."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(function)

    @property
    def is_this_thread(self) -> bool:
        """True in the thread of the hub."""
        return self._thread_id == native.thread_id()

    def wait_until_gone(self, timeout: float) -> None:
        """Wait until the thread has ended, unless it has members, for *timeout* seconds at most."""
        deadline = monotonic() + timeout
        thread = self._thread
        while thread is not None and thread.is_alive() and not self.is_this_thread:
            if self._members or self._asked or monotonic() > deadline:
                return
            thread.join(0.01)

    def _wake_or_start(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(self._take_asked)
                return
        if not self._gate.acquire(blocking=False):
            return  # the thread starts, or it ends and looks once more
        try:
            self._thread = native.make_thread(self._run, THREAD_NAME)
            lifecycle.close_at_exit_of_child()
            self._thread.start()
        except Exception as exc:  # noqa: BLE001 - the system has no thread to spare, or the interpreter ends
            self._thread = None
            waiting = [self._asked.popleft() for _ in range(len(self._asked))]
            self._gate.release()
            for member in waiting:
                member.not_started(exc)

    # -- in the thread

    def _run(self) -> None:
        self._thread_id = native.thread_id()
        try:
            self._run_until_alone()
        except Exception:  # noqa: BLE001 - a second fault, while the first was handled: another thread goes on
            self._ask_again()
        except BaseException:  # the thread itself was made to end
            for member in [*self._members, *self._asked]:
                member.ended()
            self._members.clear()
            self._asked.clear()
            raise
        finally:
            self._thread_id = 0
            self._gate.release()
            if self._asked:
                self._wake_or_start()

    def _ask_again(self) -> None:
        self._asked.extend(self._members)
        self._members.clear()

    def _run_until_alone(self) -> None:
        pause = _FIRST_PAUSE_S
        while self._members or self._asked:
            try:
                self._run_loop()
                pause = _FIRST_PAUSE_S
            except Exception as exc:  # noqa: BLE001 - whatever fails, later spans must be sent
                self._ask_again()
                for member in dict.fromkeys([*self._asked]):
                    member.failed(exc)
                native.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE_S)
                for member in {member for member in [*self._asked] if member.is_over}:
                    # In place, because another thread may append meanwhile.
                    for _ in range(self._asked.count(member)):
                        self._asked.remove(member)
                    member.ended()

    def _run_loop(self) -> None:
        loop = _Loop(native.make_selector())
        try:
            loop.set_task_factory(_make_task)
            asyncio.set_event_loop(loop)
            self._loop = loop
            loop.call_soon(self._take_asked)
            loop.run_forever()
        finally:
            self._loop = None
            try:
                loop.run_until_complete(_end(asyncio.all_tasks(loop)))
            finally:
                loop.close()

    def _take_asked(self) -> None:
        assert self._loop is not None
        while self._asked:
            member = self._asked[0]
            if member not in self._members:
                self._members[member] = self._loop.create_task(self._run_member(member))
            self._asked.popleft()  # last, so that a fault in between loses no member
        if not self._members:
            self._loop.stop()

    async def _run_member(self, member: Member) -> None:
        tasks: _Tasks = weakref.WeakSet()
        _tasks.set(tasks)
        pause = _FIRST_PAUSE_S
        try:
            while not await _ran(member):
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE_S)
            await _end(set(tasks))
        except asyncio.CancelledError:
            return  # the loop is replaced, and the member runs again
        self._members.pop(member, None)
        member.ended()
        if not self._members and not self._asked and self._loop is not None:
            self._loop.stop()


async def _ran(member: Member) -> bool:
    """Run *member*; return False if it failed and should run again."""
    try:
        await member.run()
    except Exception as exc:  # noqa: BLE001 - a defect: later spans must be sent
        member.failed(exc)
        return member.is_over
    return True


class _Loop(asyncio.SelectorEventLoop):
    """
    An event loop that looks up host names in threads of its own.

    Other loops of asyncio use a thread pool for this, which is closed before ``atexit`` handlers run, so a program that
    ends right after its first span could not connect any more.
    """

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        """Do what ``loop.getaddrinfo`` does; while the interpreter ends, it may block the loop."""
        answer: asyncio.Future[Any] = self.create_future()
        find = native.original("socket", "getaddrinfo")

        def settle(result: Any, error: OSError | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            result, error = None, None
            try:
                result = find(host, port, **kwargs)
            except (OSError, UnicodeError) as exc:
                error = exc if isinstance(exc, OSError) else OSError(str(exc))
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(settle, result, error)

        try:
            native.make_thread(look_up, "tokentrace-lookup").start()
        except RuntimeError:  # the interpreter ends, or has no thread to spare
            return find(host, port, **kwargs)
        return await answer


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
) -> asyncio.Task[Any]:
    """Make a task that belongs to the sender whose code runs."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    owned = _tasks.get(None)
    if owned is not None:
        owned.add(task)
    return task


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel *tasks*, but not the current one, and let them close their sockets."""
    me = asyncio.current_task()
    tasks = [task for task in tasks if task is not me]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_END_S)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # take notice of it, or asyncio logs that it was never retrieved
    await asyncio.sleep(0)


hub = Hub()
