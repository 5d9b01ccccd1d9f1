"""Requests to the alerters about rules, over the bus; the first answer counts."""

from __future__ import annotations

import re
from typing import Any

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.records import (
    AlertAnswer,
    AlertRequest,
    ListRules,
    RuleNames,
    decode_alert_answer,
    encode_alert_request,
)

_TIMEOUT_S = 5.0
_RULE_ID = re.compile(r"alert_[0-9a-f]{8}")


async def ask(bus: Bus, alert_request: AlertRequest, timeout_s: float = _TIMEOUT_S) -> Any:
    """Return the body of the first answer to *alert_request*; raises what ``answer_to`` raises."""
    return (await answer_to(bus, alert_request, timeout_s)).body


async def rule_named(bus: Bus, name: str) -> str:
    """
    Return the name of the rule that a path means by *name*: that name, or else that of the rule with this ``rule_id``.

    A browser removes ``.`` and ``..`` from every path, so the id is the only way to rules of these names.

    Raises:
        Unavailable: *name* has the form of an id, and no alerter answers.
    """
    if _RULE_ID.fullmatch(name):
        rules = await ask(bus, ListRules())
        if all(rule["name"] != name for rule in rules):
            return next((str(rule["name"]) for rule in rules if rule["rule_id"] == name), name)
    return name


async def rule_names(bus: Bus, timeout_s: float) -> list[str] | None:
    """Return the names of all rules; None = no alerter says so within *timeout_s*."""
    try:
        return list((await answer_to(bus, RuleNames(), timeout_s)).body)
    except TokentraceError:
        return None


async def answer_to(bus: Bus, alert_request: AlertRequest, timeout_s: float = _TIMEOUT_S) -> AlertAnswer:
    """
    Return the first answer to *alert_request*.

    Raises:
        Rejected, Conflict: The alerter refused the request.
        Unavailable: The alerter cannot carry out the request now, or no alerter answers within *timeout_s*.
    """
    decoded: list[AlertAnswer] = []
    read = 0

    def wait_s(answers: list[bytes]) -> float:
        nonlocal read
        for answer in answers[read:]:
            with bus.set_aside.guard(subjects.QUERY_ALERTS, "answer"):
                decoded.append(decode_alert_answer(answer, alert_request))
        read = len(answers)
        return 0 if decoded else timeout_s

    try:
        await bus.request_many(subjects.QUERY_ALERTS, encode_alert_request(alert_request), wait_s)
    except Unavailable as exc:
        raise Unavailable("no alerter answers") from exc
    if not decoded:
        raise Unavailable("no alerter answers")
    status, body = decoded[0].status, decoded[0].body
    if status < 300:
        return decoded[0]
    if status == 409:
        raise Conflict(body["error"])
    if status >= 500:
        raise Unavailable(body["error"])
    raise Rejected(body["error"], status=status)
