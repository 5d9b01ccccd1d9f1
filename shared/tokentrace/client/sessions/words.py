"""What both services of sessions share: their words, the ids of a started span, and the bodies of requests."""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import msgspec

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.records import KINDS, Kind, Role, Status

Json = dict[str, Any]
#: An error: a message, an exception, or ``{"message": ..., "stack": ...}``.
Error = str | BaseException | Mapping[str, Any]

#: How many characters of a stack trace are sent, counted from its end.
_MAX_STACK = 16_000


class StartedSpan(NamedTuple):
    """
    The ids of a span that ``start_span`` started.

    Attributes:
        trace_id: The id of the span. The sessions API calls it the trace id.
        session_id: The id of the session that the span belongs to.
    """

    trace_id: str
    session_id: str


def check_word(name: str, value: object, words: Sequence[str]) -> None:
    """
    Check that *value* is one of *words*.

    Raises:
        Rejected: It is none of them; the text names *name* and the words.
    """
    if value not in words:
        raise Rejected(f"{name}: {quoted(value)} is none of {', '.join(words)}")


def start_body(
    name: str, kind: Kind, session_id: str | None, parent_id: str | None, metadata: Mapping[str, Any] | None
) -> Json:
    """
    Return the body of ``POST /api/traces/start``, with a new id for the span, and for the session of a root.

    Raises:
        Rejected: *kind* is not a kind of span.
    """
    check_word("type", kind, KINDS)
    if session_id is None and parent_id is None:
        session_id = str(uuid.uuid4())
    return filled(
        traceId=str(uuid.uuid4()), sessionId=session_id, parentId=parent_id, name=name, type=kind, metadata=metadata
    )


def end_body(
    status: Status | None,
    error: Error | None,
    input_tokens: int | None,
    output_tokens: int | None,
    **fields: object,
) -> Json:
    """
    Return the body of ``POST /api/traces/{traceId}/end``.

    Args:
        status: None = error if there is an *error*, otherwise ok. An *error* makes ``ok`` an error, too.
        fields: The other fields by their names in the body.

    Raises:
        Rejected: *status* is not a status.
    """
    if status is not None:
        check_word("status", status, get_args(Status))
    if error is not None and status != "timeout":
        status = "error"
    tokens = None
    if input_tokens is not None or output_tokens is not None:
        tokens = {"input": input_tokens or 0, "output": output_tokens or 0}
    return filled(status=status or "ok", error=_error(error), tokens=tokens, **fields)


def _error(error: Error | None) -> object:
    if not isinstance(error, BaseException):
        return error
    stack = "".join(traceback.format_exception(error))
    return {"message": str(error) or type(error).__name__, "stack": stack[-_MAX_STACK:]}


def error_text(error: Error | None) -> str:
    """Return the message of *error*; "" = there is none."""
    given = _error(error)
    return str(given.get("message", "") if isinstance(given, Mapping) else given or "")


def message_body(session_id: str, trace_id: str, role: Role, content: str, metadata: Mapping[str, Any] | None) -> Json:
    """
    Return the body of ``POST /api/traces/messages``, with a new id for the message.

    Raises:
        Rejected: *role* is not a role.
    """
    check_word("role", role, get_args(Role))
    return filled(
        messageId=str(uuid.uuid4()),
        sessionId=session_id,
        traceId=trace_id,
        role=role,
        content=content,
        metadata=metadata,
    )


def filled(**fields: object) -> Json:
    """Return *fields* without those that are None."""
    return {name: value for name, value in fields.items() if value is not None}


def encode(body: Mapping[str, Any]) -> bytes:
    """
    Encode *body* as JSON; a value without a JSON form is written as ``str(value)``.

    Raises:
        Rejected: *body* has no form in JSON, because it contains itself or a lone surrogate for example.
    """
    try:
        return msgspec.json.encode(body, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Rejected(f"the request cannot be encoded as JSON: {shorten(exc)}") from exc
