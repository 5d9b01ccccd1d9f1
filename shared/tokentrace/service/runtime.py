"""What every program does around its service: logs, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from tokentrace.errors import ConfigError, TokentraceError
from tokentrace.service.stopping import Stopped

#: After this long everything that is loaded at start has been, seconds.
_SETTLED_S = 1.0
EXIT_OK, EXIT_UNAVAILABLE, EXIT_CONFIG = 0, 1, 2


class _JsonLines(logging.Formatter):
    """One JSON object per line, as log collectors want it."""

    def __init__(self, tool: str) -> None:
        super().__init__()
        self._tool = tool

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "tool": self._tool,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(tool: str, level: str = "info") -> None:
    """
    Logs to stderr: text for a terminal, JSON lines otherwise.

    Raises:
        ConfigError: No such level.
    """
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"TOKENTRACE_LOG_LEVEL: {level!r} is none of debug, info, warning, error")
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    else:
        handler.setFormatter(_JsonLines(tool))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It logs whole addresses, and the address of a webhook is a secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def run(tool: str, service: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """
    Run *service* until it ends or a signal stops it.

    The first SIGINT or SIGTERM sets the event it is given, so that it drains; a second one ends the process.
    A service that is still starting then raises ``Stopped``: exit code 0.

    Returns:
        Exit code: 0 stopped, 1 broker or port unavailable, 2 bad configuration.
    """
    try:
        set_up_logging(tool, os.environ.get("TOKENTRACE_LOG_LEVEL", "info"))
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_with_signals(service))
    except (TokentraceError, BaseExceptionGroup) as exc:
        return _explain(tool, exc)
    finally:
        # What was frozen is collected at the end, or libraries complain that it was leaked.
        gc.unfreeze()
    return EXIT_OK


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _explain(tool: str, error: BaseException) -> int:
    """Say on stderr what was wrong and choose the exit code; what nobody expected is raised again."""
    leaves = _leaves(error)
    if not all(isinstance(leaf, TokentraceError) for leaf in leaves):
        raise error
    for leaf in leaves:
        print(f"{tool}: {leaf}", file=sys.stderr)
    return EXIT_CONFIG if any(isinstance(leaf, ConfigError) for leaf in leaves) else EXIT_UNAVAILABLE


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def _spare_the_collector() -> None:
    """
    Keep the garbage collector from walking what never goes.

    A busy service makes thousands of records a millisecond, nearly all freed by their last reference; walking the price
    tables and modules for each few hundred of them took a tenth of ingest's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _with_signals(service: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_later(_SETTLED_S, _spare_the_collector)

    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    with contextlib.suppress(Stopped):
        await service(stopping)
