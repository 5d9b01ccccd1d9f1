"""
Requests about rules on ``tokentrace.query.alerts``, and the answer to them; JSON.

A request is an object whose key ``ask`` says which one it is. An empty payload asks for the list of rules.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tokentrace.bad_data import UNREADABLE, reading, reason_of
from tokentrace.errors import Rejected, shorten


class ListRules(msgspec.Struct, frozen=True, tag_field="ask", tag="list"):
    """Return the state of all rules."""


class CreateRule(msgspec.Struct, frozen=True, tag_field="ask", tag="create"):
    """
    Add a rule.

    Attributes:
        rule: As it was posted. The alerter checks it, so that the error names the key.
    """

    rule: Any


class DeleteRule(msgspec.Struct, frozen=True, tag_field="ask", tag="delete"):
    """Remove the rule called *name*."""

    name: str


class SilenceRule(msgspec.Struct, frozen=True, tag_field="ask", tag="silence"):
    """
    Publish nothing for the rule called *name* for a while.

    Attributes:
        duration: Such as ``2h``.
    """

    name: str
    duration: str


AlertRequest = ListRules | CreateRule | DeleteRule | SilenceRule


class AlertAnswer(msgspec.Struct, frozen=True):
    """
    What an alerter answers.

    Attributes:
        status: The HTTP status of the answer.
        body: The rules for a list; the error as ``{"error": text}`` from status 300 on.
    """

    status: Annotated[int, Meta(ge=200, le=599)]
    body: Any


class _Failure(msgspec.Struct, frozen=True):
    error: str


class _ListedRule(msgspec.Struct, frozen=True):
    name: str


_requests = msgspec.json.Decoder(AlertRequest)
_answers = msgspec.json.Decoder(AlertAnswer)
_KEY = re.compile(r"(.*) - at `\$\.(\w+)`", re.DOTALL)


def encode_alert_request(request: AlertRequest) -> bytes:
    """Return *request* as JSON."""
    return msgspec.json.encode(request)


def decode_alert_request(payload: bytes) -> AlertRequest:
    """
    Return the request that *payload* is.

    Raises:
        Rejected: It is not a request; the text begins with the key that is wrong.
    """
    if not payload:
        return ListRules()
    try:
        request: AlertRequest = _requests.decode(payload)
        return request
    except UNREADABLE as exc:
        reason = reason_of(exc)
        at = _KEY.fullmatch(reason)
        if at is None:
            raise Rejected(f"request: {reason}") from exc
        if at[2] == "ask":
            raise Rejected(f"ask: {shorten(at[1])} (one of list, create, delete, silence)") from exc
        raise Rejected(f"{at[2]}: {at[1]}") from exc


def encode_alert_answer(answer: AlertAnswer) -> bytes:
    """Return *answer* as JSON."""
    return msgspec.json.encode(answer)


def decode_alert_answer(payload: bytes, request: AlertRequest) -> AlertAnswer:
    """
    Return the answer to *request*, with a body of the form that it must have.

    Raises:
        Rejected: It is not an answer to it.
    """
    with reading("answer"):
        answer = _answers.decode(payload)
        if answer.status >= 300:
            msgspec.convert(answer.body, type=_Failure)
        elif isinstance(request, ListRules):
            msgspec.convert(answer.body, type=list[_ListedRule])
        return answer
