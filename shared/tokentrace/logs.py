"""
Trace ids in log lines, so that a line is found from a trace and a trace from a line.

    handler.addFilter(tokentrace.logs.TraceIds())                          # logging
    structlog.configure(processors=[tokentrace.logs.trace_ids, ...])       # structlog

``current()`` decides: the innermost open span or trace of the task or thread that writes the line. No line is sent
anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from tokentrace.client.tracing import OpenSpan, current


class TraceIds(logging.Filter):
    """
    Adds ``trace_id``, ``span_id`` and ``session_id`` to log records, for a format such as ``%(trace_id)s %(message)s``.

    They are "" where there is none. A value that the program has given, with ``extra``, stays. Added to a handler, it
    holds for all its records; added to a logger, only for those of this logger. It rejects no record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """
        Add the ids to *record*.

        Args:
            record: The record of a line.

        Returns:
            True.
        """
        for name, value in _ids().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def trace_ids(logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """
    Add ``trace_id``, ``span_id`` and ``session_id`` to an event of structlog; those that are unknown are left out.

    Args:
        logger: Not used.
        method_name: Not used.
        event_dict: The event. A value that it has stays.

    Returns:
        The event.
    """
    for name, value in _ids().items():
        if value:
            event_dict.setdefault(name, value)
    return event_dict


def _ids() -> dict[str, str]:
    inner = current()
    if inner is None:
        return {"trace_id": "", "span_id": "", "session_id": ""}
    if isinstance(inner, OpenSpan):
        trace_id, span_id = inner.trace_id, inner.span_id
    else:
        trace_id, span_id = inner.id, ""
    return {"trace_id": trace_id, "span_id": span_id, "session_id": inner.session_id or ""}
