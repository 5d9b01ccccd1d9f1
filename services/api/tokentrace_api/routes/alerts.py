"""``GET /alerts`` and ``GET /alerts/{name}/status``: what the alerter says of its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bus import subjects
from tokentrace.errors import Rejected, Unavailable, shorten
from tokentrace.http import reply
from tokentrace_api.routes.parameters import parameters

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_TIMEOUT_S = 1.0


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the alerts."""

    async def listed(request: Request) -> Response:
        parameters(request, ())
        return reply(await _rules(api))

    async def status(request: Request) -> Response:
        parameters(request, ())
        name = request.path_params["name"]
        for rule in await _rules(api):
            if rule["name"] == name:
                return reply(rule)
        raise Rejected(f"no rule is called {shorten(name)!r}", status=404)

    return [Route("/alerts", listed), Route("/alerts/{name:path}/status", status)]


async def _rules(api: Api) -> list[dict[str, Any]]:
    try:
        answer = await api.bus.request(subjects.QUERY_ALERTS, b"", timeout_s=_TIMEOUT_S)
    except Unavailable as exc:
        raise Unavailable("no alerter answers") from exc
    rules: list[dict[str, Any]] = msgspec.json.decode(answer)
    return rules
