"""What every program needs around its service: the event loop, signals and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from tokentrace.errors import ConfigError, TokentraceError
from tokentrace.service.logs import set_up_logging
from tokentrace.service.stopping import Stopped

#: Seconds after which a program is assumed to have loaded its modules and tables.
_LOADED_S = 1.0
EXIT_OK, EXIT_UNAVAILABLE, EXIT_CONFIG = 0, 1, 2


def run(tool: str, service: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """
    Run *service* until it ends or a signal stops it.

    The first SIGINT or SIGTERM sets the event that *service* receives, so that it finishes what is under way; a second
    signal ends the process at once. A service that is still starting raises ``Stopped``, which is exit code 0.

    Args:
        tool: The name of the program in logs and messages.

    Returns:
        The exit code: 0 = stopped; 2 = invalid configuration; 1 = another error of tokentrace, such as a broker or port
        that is not available.
    """
    # Nearly everything that a start makes is kept, so a collection frees nothing; it is on again after ``_LOADED_S``.
    gc.disable()
    try:
        set_up_logging(tool, os.environ.get("TOKENTRACE_LOG_LEVEL", "info"))
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_with_signals(service))
    except (TokentraceError, BaseExceptionGroup) as exc:
        return _explain(tool, exc)
    finally:
        # Frozen objects are not collected at exit, and some libraries report them as leaks.
        gc.unfreeze()
        gc.enable()
    return EXIT_OK


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _explain(tool: str, error: BaseException) -> int:
    """Print *error* on stderr and return the exit code; raise it again unless it is an error of tokentrace."""
    leaves = _leaves(error)
    if not all(isinstance(leaf, TokentraceError) for leaf in leaves):
        raise error
    for leaf in leaves:
        print(f"{tool}: {one_line(str(leaf))}", file=sys.stderr)
    return EXIT_CONFIG if any(isinstance(leaf, ConfigError) for leaf in leaves) else EXIT_UNAVAILABLE


def one_line(text: str) -> str:
    """Return *text* with its control characters escaped, because a file name or an address may hold a newline."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def _freeze_loaded_objects() -> None:
    """
    Exclude the objects loaded at the start from garbage collection.

    A busy service creates many records, and every few hundred of them start a collection. Visiting the price tables and
    modules in these collections took a tenth of ingest's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


async def _with_signals(service: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_later(_LOADED_S, _freeze_loaded_objects)

    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    with contextlib.suppress(Stopped):
        await service(stopping)
