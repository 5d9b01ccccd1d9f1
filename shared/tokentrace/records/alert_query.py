"""
Requests about rules on ``tokentrace.query.alerts``, and the answers to them; JSON.

A request is an object whose key ``ask`` says which one it is. An empty payload asks for the list of rules.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from tokentrace.bad_data import UNREADABLE, reading, reason_of
from tokentrace.errors import Rejected, shorten


class ListRules(msgspec.Struct, frozen=True, tag_field="ask", tag="list"):
    """The request for the state of all rules."""


class CreateRule(msgspec.Struct, frozen=True, tag_field="ask", tag="create"):
    """
    The request to add a rule.

    Attributes:
        rule: The rule as it was posted. Only the alerter checks it, and its error names the key.
    """

    rule: Any


class PutRule(msgspec.Struct, frozen=True, tag_field="ask", tag="put"):
    """
    The request to replace the rule *name*, or to add it if there is none.

    Attributes:
        rule: The rule as it was sent, with or without its name. Only the alerter checks it.
    """

    name: str
    rule: Any


class DeleteRule(msgspec.Struct, frozen=True, tag_field="ask", tag="delete"):
    """The request to remove the rule *name*."""

    name: str


class SilenceRule(msgspec.Struct, frozen=True, tag_field="ask", tag="silence"):
    """
    The request to publish no events of the rule *name* for a while.

    Attributes:
        duration: How long, such as ``2h``.
        by: Who silences it; "" = it is not said.
        comment: Why; "" = it is not said.
    """

    name: str
    duration: str
    by: str = ""
    comment: str = ""


class LiftSilence(msgspec.Struct, frozen=True, tag_field="ask", tag="lift_silence"):
    """The request to end the silence of the rule *name* now."""

    name: str


class RuleNames(msgspec.Struct, frozen=True, tag_field="ask", tag="names"):
    """The request for the names of all rules."""


class RuleDefinition(msgspec.Struct, frozen=True, tag_field="ask", tag="definition"):
    """The request for the definition of the rule *name*, without secrets."""

    name: str


class RuleSilences(msgspec.Struct, frozen=True, tag_field="ask", tag="silences"):
    """The request for the present silence of the rule *name* and those before it."""

    name: str


class PreviewRule(msgspec.Struct, frozen=True, tag_field="ask", tag="preview", omit_defaults=True):
    """
    The request to replay a rule that need not exist over the log.

    Attributes:
        rule: The rule as it was posted. Only the alerter checks it.
        window_ns: How far back, nanoseconds.
        to_ns: Up to when, Unix nanoseconds; 0 = up to now.
    """

    rule: Any
    window_ns: Annotated[int, Meta(gt=0)]
    to_ns: Annotated[int, Meta(ge=0)] = 0


class RuleSeries(msgspec.Struct, frozen=True, tag_field="ask", tag="series", omit_defaults=True):
    """
    The request to replay the rule *name* over the log.

    Attributes:
        window_ns, to_ns: As for ``PreviewRule``.
    """

    name: str
    window_ns: Annotated[int, Meta(gt=0)]
    to_ns: Annotated[int, Meta(ge=0)] = 0


AlertRequest = (
    ListRules
    | CreateRule
    | PutRule
    | DeleteRule
    | SilenceRule
    | LiftSilence
    | RuleNames
    | RuleDefinition
    | RuleSilences
    | PreviewRule
    | RuleSeries
)


class AlertAnswer(msgspec.Struct, frozen=True):
    """
    The answer of an alerter.

    Attributes:
        status: The HTTP status of the answer.
        body: ``{"error": text}`` if *status* is 300 or more; otherwise what the HTTP client receives, for ``ListRules``
            the list of rules, and for ``RuleNames`` the list of names.
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
    Decode a request; an empty *payload* is ``ListRules``.

    Raises:
        Rejected: *payload* is not a request; the text begins with the key that is wrong, or with ``request``.
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
            known = ", ".join(str(kind.__struct_config__.tag) for kind in get_args(AlertRequest))
            raise Rejected(f"ask: {shorten(at[1])} (one of {known})") from exc
        raise Rejected(f"{at[2]}: {at[1]}") from exc


def encode_alert_answer(answer: AlertAnswer) -> bytes:
    """Return *answer* as JSON."""
    return msgspec.json.encode(answer)


def decode_alert_answer(payload: bytes, request: AlertRequest) -> AlertAnswer:
    """
    Decode an answer to *request*.

    Raises:
        Rejected: *payload* is not an answer, its error has no text, or an answer to ``ListRules`` or ``RuleNames`` is
            no list of rules or names.
    """
    with reading("answer"):
        answer = _answers.decode(payload)
        if answer.status >= 300:
            msgspec.convert(answer.body, type=_Failure)
        elif isinstance(request, ListRules):
            msgspec.convert(answer.body, type=list[_ListedRule])
        elif isinstance(request, RuleNames):
            msgspec.convert(answer.body, type=list[str])
        return answer
