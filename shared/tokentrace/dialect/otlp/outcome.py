"""How a call ended: its status, and the message and stack trace of its error."""

from __future__ import annotations

from typing import NamedTuple

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.model import STATUS_ERROR
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Status

#: The last words of exception types and error types that mean a timeout, in lower case.
_TIMEOUT_ENDINGS = ("timeout", "timeouterror", "timeoutexception", "timeout_error", "timedout", "deadline_exceeded")
_TIMEOUT_CODES = frozenset({"408", "504"})


class Outcome(NamedTuple):
    """
    How a call ended.

    Attributes:
        error: The message; "" if the status is ok.
        error_type: The type of the error, as the emitter names it; "" = unknown.
        stack: The stack trace; "" = none.
    """

    status: Status
    error: str = ""
    error_type: str = ""
    stack: str = ""


_OK = Outcome("ok")


def outcome_of(view: View) -> Outcome:
    """Return how a call ended; a status that is not set is ok, because most emitters never set it."""
    span = view.span
    if span.status != STATUS_ERROR:
        return _OK
    exception_type = message = stack = ""
    for event in span.events:
        found = event.attributes
        if event.name == "exception" or "exception.type" in found:
            exception_type = values.text(found.get("exception.type")) or ""
            message = values.text(found.get("exception.message")) or ""
            stack = values.text(found.get("exception.stacktrace")) or ""
            break
    error_type = view.get("error_type") or exception_type
    error = span.message or view.get("message") or message or error_type
    types = (view.get("error_type"), exception_type, view.get("error_code"), view.get("http_status"))
    is_timeout = any(_is_timeout(name) for name in types if name) or _says_timeout(error)
    return Outcome("timeout" if is_timeout else "error", error, error_type, stack or view.get("stack") or "")


def _is_timeout(name: str) -> bool:
    return name in _TIMEOUT_CODES or name.lower().endswith(_TIMEOUT_ENDINGS)


def _says_timeout(error: str) -> bool:
    return error.startswith("Request timed out") or "aborted due to timeout" in error
