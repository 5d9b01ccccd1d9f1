"""``/alerts/{name}/definition`` and ``/alerts/{name}/silences``: how a rule is written, and when it was silenced."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from tokentrace.bus import Bus
from tokentrace.records import RuleDefinition, RuleSilences
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace_api.alerter_client import ask, rule_named
from tokentrace_api.routes.alerts_operations import NO_PARAMETERS, RULE_EXAMPLE, RuleName
from tokentrace_api.routes.answers import InstantText, Natural


class Definition(msgspec.Struct):
    """
    How a rule is written.

    Attributes:
        source: file = the configuration has it, and it is shown as it could stand there; created = it was made at run
            time, and is shown as it was sent.
        rule: In the form of `POST /alerts`, without secrets: of a URL only scheme, host and port are shown, and
            `<hidden>` stands for a secret and for the value of a header. In `PUT /alerts/{name}` they stand for the
            values that are kept.
        hidden: The keys whose values are not shown, such as `delivery.url`.
    """

    source: Literal["file", "created"]
    rule: dict[str, Any]
    hidden: list[str]


class PastSilence(msgspec.Struct):
    """
    A silence.

    Attributes:
        at: When it was made.
        until: When it ends, or has ended.
        by, comment: Who made it, and why; null = it was not said.
    """

    at: InstantText
    until: InstantText
    by: str | None
    comment: str | None


class Silences(msgspec.Struct):
    """The present or last silence of a rule and up to 20 before it, newest first."""

    silences: list[PastSilence]
    count: Annotated[Natural, Meta(le=21)]


_SILENCE: dict[str, Any] = {
    "at": "2026-03-15T14:00:00.000Z",
    "until": "2026-03-15T16:00:00.000Z",
    "by": "ann",
    "comment": "load test, see ticket 41",
}
_ERRORS: dict[int, str] = {**NO_PARAMETERS, 404: "no rule is called 'slow'", 503: "no alerter answers"}
_DEFINITION = operation(
    "getAlertDefinition",
    "Get the definition of a rule",
    "How the rule is written, without secrets. Changed, it can be sent to `PUT /alerts/{name}`.",
    Answer(
        Definition,
        "The definition.",
        {
            "source": "created",
            "rule": {**RULE_EXAMPLE, "delivery": {"type": "http", "url": "https://hooks.example.com/..."}},
            "hidden": ["delivery.url"],
        },
    ),
    errors=_ERRORS,
)
_SILENCES = operation(
    "listAlertSilences",
    "List the silences of a rule",
    "When the rule was silenced, by whom and why. A silence that was lifted ends when it was lifted.",
    Answer(Silences, "The silences.", {"silences": [_SILENCE], "count": 1}),
    errors=_ERRORS,
)


def router(bus: Bus) -> Router:
    """Return the routes."""
    routes = Router("alerts")

    @routes.get("/alerts/{name:path}/definition", **_DEFINITION)
    async def definition(name: RuleName) -> Response:
        return reply(await ask(bus, RuleDefinition(await rule_named(bus, name))))

    @routes.get("/alerts/{name:path}/silences", **_SILENCES)
    async def silences(name: RuleName) -> Response:
        listed = await ask(bus, RuleSilences(await rule_named(bus, name)))
        return reply({"silences": listed, "count": len(listed)})

    return routes
