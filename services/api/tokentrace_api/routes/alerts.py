"""``/alerts``: rules and their state, requested from the alerters over the bus, and deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Path as PathName
from fastapi import Query as QueryParams
from msgspec import UNSET, Meta, UnsetType
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bad_data import reading
from tokentrace.bus import Bus
from tokentrace.config import AlertRule
from tokentrace.errors import Rejected, quoted
from tokentrace.records import (
    CreateRule,
    DeleteRule,
    DeliveryRecord,
    LiftSilence,
    ListRules,
    PutRule,
    SilenceRule,
)
from tokentrace.service.body import read_body
from tokentrace.service.contract import Answer, Content, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.alerter_client import answer_to, ask
from tokentrace_api.parameters import Count, Text
from tokentrace_api.routes.answers import InstantText, Natural

_MAX_BODY_BYTES = 64 * 1024
MAX_DELIVERIES = 200
RuleName = Annotated[str, PathName(description="Name of the rule.", examples=["slow"])]
State = Literal["inactive", "pending", "firing", "resolved", "no_data", "warming"]


class DeliveriesParams(Params):
    """The parameter of the list of deliveries."""

    limit: Count = Field(100, description=f"Most deliveries to list; over {MAX_DELIVERIES} counts as {MAX_DELIVERIES}.")


class RuleNameParams(Params):
    """The parameter that names a rule."""

    name: Text = Field(None, description="Name of the rule.", examples=[".."])


class RuleInstance(msgspec.Struct):
    """
    An instance of a rule: its state for one value of ``group_by``.

    Attributes:
        group: The value.
        why_not_fired: Why the last evaluation published nothing; null = it published an event, or there was none.
        unpriced_span_count: For a rule on money: spans that the value leaves out because their cost is unknown.
    """

    group: str
    state: State
    current_value: float | None
    span_count: Natural
    last_fired: InstantText | None
    why_not_fired: str | None
    unpriced_span_count: Natural | UnsetType = UNSET


class Overflow(msgspec.Struct):
    """The metric over the spans of all instances over the limit together, and their number."""

    current_value: float | None
    span_count: Natural


class RuleState(msgspec.Struct, kw_only=True):
    """
    A rule and its state. For a grouped rule, the state is that of the worst instance: firing before pending.

    Attributes:
        last_fired: When any instance last fired; null = never.
        current_value: The metric at the last evaluation, in its documented unit; null without data.
        firing: An episode lasts, for at least one instance (state ``firing``), or would if the rule were not silenced.
        delivery: Type of the delivery; null = events are only published.
        span_count: Number of spans that contributed to the value.
        unpriced: ignore, or fire = a rule on money also fires while the window has spans of unknown cost.
        unpriced_span_count: For a rule on money: spans that the value leaves out because their cost is unknown.
        spans_considered: Number of spans that matched the filter since the alerter began to evaluate the rule.
        late_spans: Number of those spans that arrived too late to be counted.
        why_not_fired: Why the last evaluation published nothing; null = it published an event, or there was none.
        instance_count: Number of instances of a grouped rule.
        instances: Up to 100 instances of a grouped rule, firing ones first.
        overflow: Spans of instances over the limit, which are not compared with the threshold; absent without any.
        breached: The condition held at the last evaluation, for at least one instance, whether or not the rule fired.
        misses_late_scores: The rule selects or groups spans by a score, and ignores scores that are given later.
        source: file = from the configuration; created = made at run time.
        hides_rule_of_file: The configuration has a rule of that name too, which is not evaluated.
    """

    name: str
    metric: str
    op: Literal["gt", "gte", "lt", "lte"]
    threshold: float
    window: str
    last_evaluated: InstantText | None
    last_fired: InstantText | None
    current_value: float | None
    firing: bool
    silenced: bool
    silenced_until: InstantText | None
    rule_id: str
    level: str
    filter: dict[str, str]
    min_spans: Natural
    cooldown: str
    eval_interval: str
    for_: str = msgspec.field(name="for")
    recovery_threshold: float | None
    no_data: str
    unpriced: str
    group_by: str | None
    change: str | None
    delivery: str | None
    next_evaluation: InstantText | None
    span_count: Natural
    unpriced_span_count: Natural | UnsetType = UNSET
    spans_considered: int
    late_spans: int
    state: State
    starts_at: InstantText | None
    why_not_fired: str | None
    instance_count: Natural | UnsetType = UNSET
    instances: list[RuleInstance] | UnsetType = UNSET
    overflow: Overflow | UnsetType = UNSET
    breached: bool
    misses_late_scores: bool
    source: Literal["file", "created"]
    hides_rule_of_file: bool


class RuleCreated(msgspec.Struct):
    """The id and the name of a rule."""

    rule_id: Annotated[str, Meta(pattern="^alert_[0-9a-f]{8}$")]
    name: str


class SilenceInput(msgspec.Struct, forbid_unknown_fields=True):
    """How long a rule is silenced: a duration such as ``2h``, at most ``366d``."""

    duration: str


class Silenced(msgspec.Struct):
    """The instant until which the rule publishes nothing."""

    silenced_until: InstantText


class Deliveries(msgspec.Struct):
    """
    Attempts to deliver the events of a rule, newest first.

    Attributes:
        count: Number of attempts that are kept, at most 200; up to ``limit`` of them are listed.
    """

    deliveries: list[DeliveryRecord]
    count: Natural


_RULE_EXAMPLE: dict[str, Any] = {
    "name": "slow",
    "metric": "latency_p95",
    "op": "gt",
    "threshold": 3000,
    "window": "5m",
    "cooldown": "10m",
    "min_spans": 20,
    "filter": {"caller": "checkout"},
    "delivery": {"type": "http", "url": "https://hooks.example.com/x"},
}
_STATE_EXAMPLE: dict[str, Any] = {
    "name": "slow",
    "metric": "latency_p95",
    "op": "gt",
    "threshold": 3000,
    "window": "5m",
    "last_evaluated": "2026-03-15T14:23:00.000Z",
    "last_fired": None,
    "current_value": 2140.0,
    "firing": False,
    "silenced": False,
    "silenced_until": None,
    "rule_id": "alert_a1b2c3d4",
    "level": "warning",
    "filter": {"caller": "checkout"},
    "min_spans": 20,
    "cooldown": "10m",
    "eval_interval": "30s",
    "for": "0s",
    "recovery_threshold": None,
    "no_data": "ignore",
    "unpriced": "ignore",
    "group_by": None,
    "change": None,
    "delivery": "http",
    "next_evaluation": "2026-03-15T14:23:30.000Z",
    "span_count": 312,
    "spans_considered": 312,
    "late_spans": 0,
    "state": "inactive",
    "starts_at": None,
    "why_not_fired": "ok",
    "breached": False,
    "misses_late_scores": False,
    "source": "file",
    "hides_rule_of_file": False,
}
_DELIVERY_EXAMPLE: dict[str, Any] = {
    "rule": "slow",
    "fired_at": "2026-03-15T14:23:00.000Z",
    "status": "firing",
    "group": {},
    "key": "slow.2026-03-15T14:23:00.000Z",
    "channel": "http",
    "destination": "https://hooks.example.com/...",
    "outcome": "delivered",
    "attempt": 1,
    "error": "",
    "at": "2026-03-15T14:23:00.120Z",
    "took_ms": 41.5,
    "retry_after_s": None,
}
_NO_PARAMETERS = {400: "limit: unknown parameter; allowed are none"}
_NOT_FOUND = {404: "no rule is called 'slow'"}
_AWAY = {503: "no alerter answers"}
_BODY_ERRORS = {
    413: "body: over 65536 bytes, which is the limit after decompression",
    415: "Content-Encoding: 'br' is not supported, only gzip is",
}
_LIST = operation(
    "listAlerts",
    "List rules and their state",
    "Every rule: those of the configuration file and those created at run time.",
    Answer(list[RuleState], "The rules.", [_STATE_EXAMPLE]),
    errors={**_NO_PARAMETERS, **_AWAY},
)
_CREATE = operation(
    "createAlert",
    "Create a rule",
    "The rule is kept across restarts. Its first evaluation includes the spans of its window that the log still holds.",
    Answer(RuleCreated, "The rule is created.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}, status=201),
    body=[Content(AlertRule, {"rule": _RULE_EXAMPLE})],
    errors={
        400: "rule: metric: 'latency' is not known",
        409: "a rule is called 'slow' already",
        **_BODY_ERRORS,
        **_AWAY,
    },
)
_STATUS = operation(
    "getAlertStatus",
    "Get the state of a rule",
    "The rule as `GET /alerts` shows it.",
    Answer(RuleState, "The rule.", _STATE_EXAMPLE),
    errors={**_NO_PARAMETERS, **_NOT_FOUND, **_AWAY},
)
_DELIVERIES = operation(
    "listAlertDeliveries",
    "List the deliveries of a rule",
    "The last attempts to deliver events of the rule, newest first; up to 200 are kept.",
    Answer(Deliveries, "The attempts.", {"deliveries": [_DELIVERY_EXAMPLE], "count": 1}),
    errors={400: "limit: 'x' is not a whole number >= 0 of at most 18 digits", **_NOT_FOUND, **_AWAY},
)
_SILENCE = operation(
    "silenceAlert",
    "Silence a rule",
    "The rule is still evaluated, but publishes nothing until the silence ends.",
    Answer(Silenced, "The rule is silenced.", {"silenced_until": "2026-03-15T17:00:00.000Z"}),
    body=[Content(SilenceInput, {"two hours": {"duration": "2h"}})],
    errors={
        400: "duration: 'x' is not a duration such as 90s, 2h30m or 7d",
        **_NOT_FOUND,
        409: "rule 'slow' is being changed",
        **_BODY_ERRORS,
        **_AWAY,
    },
)
_PUT = operation(
    "putAlert",
    "Replace or create a rule",
    """
    Replaces a rule that was made at run time, or creates one. If only `cooldown`, `eval_interval`, `silenced` and
    `delivery` change, the rule continues its episode, which is delivered where it began. Any other change ends an open
    episode with a `resolved` event, and the rule starts anew. A silence stays.
    """,
    Answer(RuleCreated, "The rule is replaced.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}),
    Answer(RuleCreated, "The rule is created.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}, status=201),
    body=[Content(AlertRule, {"rule": _RULE_EXAMPLE})],
    errors={
        400: "rule.name: 'fast' is not 'slow', the name in the path",
        409: "rule 'slow' is in the configuration; change it there, or delete it first",
        **_BODY_ERRORS,
        **_AWAY,
    },
)
_LIFT = operation(
    "liftAlertSilence",
    "Lift the silence of a rule",
    "Ends a silence now; without one, nothing changes. What the silence held back is published at the next evaluation.",
    Answer(None, "The rule is not silenced.", status=204),
    errors={
        **_NO_PARAMETERS,
        **_NOT_FOUND,
        409: "rule 'slow' is silenced by its key silenced, not by a silence",
        **_AWAY,
    },
)
_DELETE = operation(
    "deleteAlert",
    "Delete a rule",
    "An open episode is ended with a `resolved` event. A rule of the configuration file comes back at the next start.",
    Answer(None, "The rule is deleted.", status=204),
    errors={**_NO_PARAMETERS, **_NOT_FOUND, 409: "rule 'slow' is being changed", **_AWAY},
)
_DELETE_BY_NAME = operation(
    "deleteAlertByName",
    "Delete a rule by a parameter",
    "As `DELETE /alerts/{name}`, for a name that a path cannot hold, such as `..`.",
    Answer(None, "The rule is deleted.", status=204),
    errors={400: "name: is missing", **_NOT_FOUND, 409: "rule 'slow' is being changed", **_AWAY},
)


def router(bus: Bus, history: AlertHistory) -> Router:
    """Return the routes of the alerts."""
    routes = Router("alerts")

    @routes.get("/alerts", **_LIST)
    async def listed() -> Response:
        return reply(await ask(bus, ListRules()))

    @routes.post("/alerts", **_CREATE)
    async def create(request: Request) -> Response:
        return reply(await ask(bus, CreateRule(await _json(request))), 201)

    @routes.get("/alerts/{name:path}/status", **_STATUS)
    async def status(name: RuleName) -> Response:
        for rule in await ask(bus, ListRules()):
            if rule["name"] == name:
                return reply(rule)
        raise Rejected(f"no rule is called {quoted(name)}", status=404)

    @routes.get("/alerts/{name:path}/deliveries", **_DELIVERIES)
    async def deliveries(name: RuleName, params: Annotated[DeliveriesParams, QueryParams()]) -> Response:
        records = history.deliveries(name)
        if not records and all(rule["name"] != name for rule in await ask(bus, ListRules())):
            raise Rejected(f"no rule is called {quoted(name)}", status=404)
        return reply(Deliveries(records[: min(params.limit, MAX_DELIVERIES)], len(records)))

    @routes.post("/alerts/{name:path}/silence", **_SILENCE)
    async def silence(request: Request, name: RuleName) -> Response:
        body = await _json(request)
        if not isinstance(body, dict) or set(body) != {"duration"}:
            raise Rejected('body: must be an object with the single key duration, such as {"duration": "2h"}')
        return reply(await ask(bus, SilenceRule(name, body["duration"])))

    @routes.delete("/alerts/{name:path}/silence", **_LIFT)
    async def lift(name: RuleName) -> Response:
        await ask(bus, LiftSilence(name))
        return Response(status_code=204)

    @routes.put("/alerts/{name:path}", **_PUT)
    async def put(request: Request, name: RuleName) -> Response:
        answer = await answer_to(bus, PutRule(name, await _json(request)))
        return reply(answer.body, answer.status)

    @routes.delete("/alerts/{name:path}", **_DELETE)
    async def delete(name: RuleName) -> Response:
        await ask(bus, DeleteRule(name))
        return Response(status_code=204)

    @routes.delete("/alerts", **_DELETE_BY_NAME)
    async def delete_by_name(params: Annotated[RuleNameParams, QueryParams()]) -> Response:
        if not params.name:
            raise Rejected("name: is missing")
        await ask(bus, DeleteRule(params.name))
        return Response(status_code=204)

    return routes


async def _json(request: Request) -> Any:
    body = await read_body(request, _MAX_BODY_BYTES)
    with reading("body"):
        return msgspec.json.decode(body)
