"""Custom Python functions that receive events. One that hangs in its thread does not delay other destinations."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tokentrace.errors import ConfigError
from tokentrace.units import SECOND


def load_target(target: str) -> Callable[..., Any]:
    """
    Return the function that *target* (``package.module:name``) names, or the method ``deliver`` of such an object.

    Raises:
        ConfigError: Importing the module raises an error, or the name does not exist or names neither of these.
    """
    module, _, name = target.partition(":")
    try:
        named: Any = importlib.import_module(module)
        for part in name.split("."):
            named = getattr(named, part)
    # Importing a module runs the user's code, which may raise anything.
    except Exception as exc:
        raise ConfigError(f"delivery.target: {target!r}: {type(exc).__name__}: {exc}") from exc
    is_class = inspect.isclass(named)
    function = getattr(named, "deliver", named)
    if is_class or not callable(function):
        raise ConfigError(f"delivery.target: {target!r} is neither a function nor an object with deliver()")
    call: Callable[..., Any] = function
    return call


class Callbacks:
    """
    Calls custom functions.

    Args:
        at_once: Limit of threads that call the same function, including calls that timed out and are still running.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running: Counter[str] = Counter()

    async def call(self, target: str, payload: Mapping[str, Any], timeout_ns: int) -> None:
        """
        Call *target* with *payload*; a coroutine function runs in the event loop, any other function in a thread.

        Args:
            timeout_ns: Limit for the call, nanoseconds.

        Raises:
            TimeoutError: The call does not return in time, or too many earlier calls have not returned.
            ConfigError: As ``load_target``.
            Exception: Any exception that the function raises.
        """
        async with asyncio.timeout(timeout_ns / SECOND):
            function = load_target(target)
            asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
                getattr(function, "__call__", None)  # noqa: B004 - an object may be called asynchronously
            )
            result = function(payload) if asynchronous else await self._call_in_thread(target, function, payload)
            if inspect.isawaitable(result):
                await result

    async def _call_in_thread(self, target: str, function: Callable[..., Any], payload: Mapping[str, Any]) -> Any:
        """
        Call *function* in a daemon thread and return its result.

        The threads of a pool are not daemons: at its end the process would wait for a call that hangs.
        """
        if self._running[target] >= self._at_once:
            raise TimeoutError(f"{self._at_once} earlier calls have not returned")
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            self._running[target] -= 1
            if returned.done():
                return
            if error is not None:
                returned.set_exception(error)
            else:
                returned.set_result(result)

        def run() -> None:
            result, error = None, None
            try:
                result = function(payload)
            except Exception as exc:  # noqa: BLE001 - awaiting the future raises it
                # A future does not accept StopIteration as its exception.
                error = RuntimeError(repr(exc)) if isinstance(exc, StopIteration) else exc
            # The service may have stopped while the call was running.
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, error)

        self._running[target] += 1
        threading.Thread(target=run, name=target, daemon=True).start()
        return await returned
