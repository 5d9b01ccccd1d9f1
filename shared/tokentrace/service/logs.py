"""
Logging of the server programs: structlog for tokentrace's modules, and the same format for loggers of ``logging``.

A module makes its logger with ``structlog.stdlib.get_logger(__name__)`` and binds what its lines are about, such as
``log.bind(shard=3)``. structlog passes the line to ``logging`` with the bound values as extra fields of the record, so
one formatter writes the lines of all loggers, also those of libraries. The modules that applications import
(``tokentrace.client``, ``tokentrace.bus``) use ``logging`` itself, because structlog is not among their dependencies.

The name of a bound value must not be that of a field of ``logging.LogRecord``, such as ``name`` or ``module``.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from tokentrace.errors import ConfigError

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
#: Fields that uvicorn adds to its records: a second copy of the message with colour codes.
_REPEATED = ("color_message",)

structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.render_to_log_kwargs,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def set_up_logging(tool: str, level: str = "info") -> None:
    """
    Write logs to stderr: coloured text if it is a terminal, otherwise one JSON object per line.

    A JSON line has the keys time, level, tool, logger and message, then the bound values and, if there is an exception,
    exception.

    Raises:
        ConfigError: *level* is not a log level.
    """
    if level.upper() not in _LEVELS:
        raise ConfigError(f"TOKENTRACE_LOG_LEVEL: {level!r} is none of debug, info, warning, error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=_text() if sys.stderr.isatty() else _json_lines(tool),
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # httpx logs whole URLs, and the URL of a webhook is a secret. httpcore logs the headers of answers, and the address
    # of a redirect is often the URL again.
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _json_lines(tool: str) -> list[Processor]:
    def order(_: Any, __: str, event: EventDict) -> EventDict:
        record = event.pop("_record")
        line = {
            "time": _render_time(record),
            "level": record.levelname.lower(),
            "tool": tool,
            "logger": record.name,
            "message": event.pop("event"),
        }
        for key, value in event.items():
            line.setdefault(key, value)
        return line

    return [_drop_repeated, structlog.processors.format_exc_info, order, structlog.processors.JSONRenderer()]


def _text() -> list[Processor]:
    def order(_: Any, __: str, event: EventDict) -> EventDict:
        record = event.pop("_record")
        return {"timestamp": _render_time(record), "level": record.levelname.lower(), "logger": record.name, **event}

    # The renderer's default tracebacks show local variables, and a variable may hold a secret.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return [_drop_repeated, order, console]


def _drop_repeated(_: Any, __: str, event: EventDict) -> EventDict:
    for key in ("_from_structlog", *_REPEATED):
        event.pop(key, None)
    return event


def _render_time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
