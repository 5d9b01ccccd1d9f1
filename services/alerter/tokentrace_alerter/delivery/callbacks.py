"""Functions of one's own that take an event: found by name, called so that one which hangs holds nobody up."""

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
    What ``package.module:name`` is.

    Raises:
        ConfigError: It is not there, or cannot be called.
    """
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"delivery.target: {target!r}: {exc}") from exc
    made = not inspect.isclass(found)
    found = getattr(found, "deliver", found)
    if not made or not callable(found):
        raise ConfigError(f"delivery.target: {target!r} is neither a function nor an object with deliver()")
    call: Callable[..., Any] = found
    return call


class Callbacks:
    """
    Calls of such functions.

    Args:
        at_once: So many calls of one function may be under way, those included that nobody waits for any more.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running: Counter[str] = Counter()

    async def call(self, target: str, payload: Mapping[str, Any], timeout_ns: int) -> None:
        """
        Hand *payload* to *target*.

        Raises:
            TimeoutError: It does not return in time, or calls before did not.
            Exception: Whatever it raises.
        """
        async with asyncio.timeout(timeout_ns / SECOND):
            function = load_target(target)
            asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
                getattr(function, "__call__", None)  # noqa: B004 - an object may be called asynchronously
            )
            answer = function(payload) if asynchronous else await self._apart(target, function, payload)
            if inspect.isawaitable(answer):
                await answer

    async def _apart(self, target: str, function: Callable[..., Any], payload: Mapping[str, Any]) -> Any:
        """
        What it returns, in a thread of its own.

        Not one of a pool: the program's end would wait for it.
        """
        if self._running[target] >= self._at_once:
            raise TimeoutError(f"{self._at_once} calls of it have not returned")
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Any] = loop.create_future()

        def settle(answer: Any, error: Exception | None) -> None:
            self._running[target] -= 1
            if returned.done():
                return
            if error is not None:
                returned.set_exception(error)
            else:
                returned.set_result(answer)

        def run() -> None:
            answer, error = None, None
            try:
                answer = function(payload)
            except Exception as exc:  # noqa: BLE001 - whoever waits is told
                # A future takes no StopIteration.
                error = RuntimeError(repr(exc)) if isinstance(exc, StopIteration) else exc
            # The loop may have ended meanwhile.
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, answer, error)

        self._running[target] += 1
        threading.Thread(target=run, name=target, daemon=True).start()
        return await returned
