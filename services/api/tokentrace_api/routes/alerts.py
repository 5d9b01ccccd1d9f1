"""``/alerts``: rules and their state, requested from the alerters over the bus, and deliveries."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bad_data import reading
from tokentrace.bus import Bus
from tokentrace.errors import Rejected, quoted
from tokentrace.records import CreateRule, DeleteRule, LiftSilence, ListRules, PutRule, SilenceRule
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.web import reply
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.alerter_client import answer_to, ask, rule_named
from tokentrace_api.routes.alerts_operations import (
    CREATE_RULE,
    DELETE_RULE,
    DELETE_RULE_BY_NAME,
    GET_RULE_STATUS,
    LIFT_SILENCE,
    LIST_DELIVERIES,
    LIST_RULES,
    MAX_DELIVERIES,
    PUT_RULE,
    SILENCE_RULE,
    Deliveries,
    DeliveriesParams,
    LastDelivery,
    ListParams,
    RuleName,
    RuleNameParams,
)

_MAX_BODY_BYTES = 64 * 1024
_SILENCE_KEYS = frozenset(SilenceRule.__struct_fields__) - {"name"}


def router(bus: Bus, history: AlertHistory) -> Router:
    """Return the routes of the alerts."""
    routes = Router("alerts")

    @routes.get("/alerts", **LIST_RULES)
    async def listed(params: Annotated[ListParams, QueryParams()]) -> Response:
        rules = [_with_delivery(rule, history) for rule in await ask(bus, ListRules())]
        for rule in rules:
            if "instances" in rule:
                rule["instances"] = rule["instances"][: params.instances]
        return reply(rules)

    @routes.post("/alerts", **CREATE_RULE)
    async def create(request: Request) -> Response:
        return reply(await ask(bus, CreateRule(await read_rule(request))), 201)

    @routes.get("/alerts/{name:path}/status", **GET_RULE_STATUS)
    async def status(name: RuleName) -> Response:
        name = await rule_named(bus, name)
        for rule in await ask(bus, ListRules()):
            if rule["name"] == name:
                return reply(_with_delivery(rule, history))
        raise Rejected(f"no rule is called {quoted(name)}", status=404)

    @routes.get("/alerts/{name:path}/deliveries", **LIST_DELIVERIES)
    async def deliveries(name: RuleName, params: Annotated[DeliveriesParams, QueryParams()]) -> Response:
        name = await rule_named(bus, name)
        records = history.deliveries(name)
        if not records and all(rule["name"] != name for rule in await ask(bus, ListRules())):
            raise Rejected(f"no rule is called {quoted(name)}", status=404)
        return reply(Deliveries(records[: min(params.limit, MAX_DELIVERIES)], len(records)))

    @routes.post("/alerts/{name:path}/silence", **SILENCE_RULE)
    async def silence(request: Request, name: RuleName) -> Response:
        body = await read_rule(request)
        if not isinstance(body, dict) or "duration" not in body or not body.keys() <= _SILENCE_KEYS:
            raise Rejected(
                'body: must be an object with duration and, if wanted, by and comment, such as {"duration": "2h"}'
            )
        return reply(await ask(bus, SilenceRule(await rule_named(bus, name), **body)))

    @routes.delete("/alerts/{name:path}/silence", **LIFT_SILENCE)
    async def lift(name: RuleName) -> Response:
        await ask(bus, LiftSilence(await rule_named(bus, name)))
        return Response(status_code=204)

    @routes.put("/alerts/{name:path}", **PUT_RULE)
    async def put(request: Request, name: RuleName) -> Response:
        rule = await read_rule(request)
        answer = await answer_to(bus, PutRule(await rule_named(bus, name), rule))
        return reply(answer.body, answer.status)

    @routes.delete("/alerts/{name:path}", **DELETE_RULE)
    async def delete(name: RuleName) -> Response:
        await ask(bus, DeleteRule(await rule_named(bus, name)))
        return Response(status_code=204)

    @routes.delete("/alerts", **DELETE_RULE_BY_NAME)
    async def delete_by_name(params: Annotated[RuleNameParams, QueryParams()]) -> Response:
        if not params.name:
            raise Rejected("name: is missing")
        await ask(bus, DeleteRule(params.name))
        return Response(status_code=204)

    return routes


def _with_delivery(rule: dict[str, Any], history: AlertHistory) -> dict[str, Any]:
    """Return *rule*, as an alerter renders it, with what became of its last delivery."""
    last = history.last_delivery(rule["name"])
    return {**rule, "last_delivery": None if last is None else LastDelivery(*last)}


async def read_rule(request: Request) -> Any:
    """Return the decoded JSON of a body of at most 64 KiB; Rejected if it is larger or no JSON."""
    body = await read_body(request, _MAX_BODY_BYTES)
    with reading("body"):
        return msgspec.json.decode(body)
