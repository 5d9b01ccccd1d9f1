"""``/alerts``: what the alerter says of its rules, and what people want of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bad_data import reading
from tokentrace.bus import subjects
from tokentrace.errors import Conflict, Rejected, Unavailable, shorten
from tokentrace.records import (
    AlertAnswer,
    AlertRequest,
    CreateRule,
    DeleteRule,
    ListRules,
    SilenceRule,
    decode_alert_answer,
    encode_alert_request,
)
from tokentrace.service.body import read_body
from tokentrace.service.web import reply
from tokentrace_api.parameters import parameters, parse_count

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_TIMEOUT_S = 5.0
_MAX_BODY_BYTES = 64 * 1024
MAX_DELIVERIES = 200


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the alerts."""

    async def listed(request: Request) -> Response:
        parameters(request, ())
        return reply(await _ask(api, ListRules()))

    async def create(request: Request) -> Response:
        parameters(request, ())
        return reply(await _ask(api, CreateRule(await _json(request))), 201)

    async def status(request: Request) -> Response:
        parameters(request, ())
        name = request.path_params["name"]
        for rule in await _ask(api, ListRules()):
            if rule["name"] == name:
                return reply(rule)
        raise Rejected(f"no rule is called {shorten(name)!r}", status=404)

    async def silence(request: Request) -> Response:
        parameters(request, ())
        given = await _json(request)
        if not isinstance(given, dict) or set(given) != {"duration"}:
            raise Rejected('body: {"duration": "2h"} is what a silence takes')
        return reply(await _ask(api, SilenceRule(request.path_params["name"], given["duration"])))

    async def delete(request: Request) -> Response:
        parameters(request, ())
        await _ask(api, DeleteRule(request.path_params["name"]))
        return Response(status_code=204)

    async def deliveries(request: Request) -> Response:
        given = parameters(request, ("limit",))
        name = request.path_params["name"]
        limit = parse_count(given, "limit", 100, most=MAX_DELIVERIES)
        found = api.alert_history.deliveries(name)
        if not found and all(rule["name"] != name for rule in await _ask(api, ListRules())):
            raise Rejected(f"no rule is called {shorten(name)!r}", status=404)
        return reply({"deliveries": [msgspec.to_builtins(record) for record in found[:limit]], "count": len(found)})

    return [
        Route("/alerts", listed, methods=["GET"]),
        Route("/alerts", create, methods=["POST"]),
        Route("/alerts/{name:path}/status", status),
        Route("/alerts/{name:path}/deliveries", deliveries),
        Route("/alerts/{name:path}/silence", silence, methods=["POST"]),
        Route("/alerts/{name:path}", delete, methods=["DELETE"]),
    ]


async def _json(request: Request) -> Any:
    body = await read_body(request, _MAX_BODY_BYTES)
    with reading("body"):
        return msgspec.json.decode(body)


async def _ask(api: Api, asked: AlertRequest) -> Any:
    """
    The answer of one of the alerters.

    Raises:
        Rejected, Conflict, Unavailable: As it says, or there is none.
    """
    told: list[AlertAnswer] = []
    read = 0

    def patience(answers: list[bytes]) -> float:
        nonlocal read
        for answer in answers[read:]:
            with api.bus.set_aside.guard(subjects.QUERY_ALERTS, "answer"):
                told.append(decode_alert_answer(answer, asked))
        read = len(answers)
        return 0 if told else _TIMEOUT_S

    try:
        await api.bus.request_many(subjects.QUERY_ALERTS, encode_alert_request(asked), patience)
    except Unavailable as exc:
        raise Unavailable("no alerter answers") from exc
    if not told:
        raise Unavailable("no alerter answers")
    status, body = told[0].status, told[0].body
    if status < 300:
        return body
    if status == 409:
        raise Conflict(body["error"])
    if status >= 500:
        raise Unavailable(body["error"])
    raise Rejected(body["error"], status=status)
