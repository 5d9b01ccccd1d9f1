"""``POST /session`` and ``DELETE /session``: a browser gets the cookie that stands for its token, and gives it back."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.service.body import read_body
from tokentrace.service.contract import Answer, Content, Router, operation
from tokentrace.service.credentials import OverRate
from tokentrace.service.login import Login, LoginInput, TooMany
from tokentrace.service.web import failure, reply
from tokentrace.units import SECOND, render_instant

SESSION_PATH = "/session"
_MOST_BYTES = 8192
_NO_STORE = {"Cache-Control": "no-store"}
_COOKIE = {"Set-Cookie": "`HttpOnly; SameSite=Strict`, and `Secure` on https; the name has the port."}


class LoggedIn(msgspec.Struct):
    """A login and its end."""

    expires_at: Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


def login_router(login: Login | None) -> Router:
    """Return the routes of the login; *login* is None if the server takes no cookies."""
    routes = Router("service")

    @routes.post(
        SESSION_PATH,
        **operation(
            "logIn",
            "Log in with the token or a key",
            """
            For browsers: the answer sets a cookie that stands for the token or key on every route for 12 hours, or
            until the token is changed or the key ends. The request needs the Origin of this server. After 10 wrong
            tokens of an address within a minute the answer is 429. With a cookie, every method but GET and HEAD needs
            the Origin of this server.
            """,
            Answer(LoggedIn, "The cookie is set.", {"expires_at": "2026-03-16T02:23:01.000Z"}, headers=_COOKIE),
            body=[Content(LoginInput, {"token": {"token": "the-token"}})],
            errors={
                400: "session: this server needs no token, so nothing has to be sent",
                401: "token: is wrong",
                403: "Origin: is missing; a login is for browsers, programs send Authorization: Bearer",
                413: f"body: over {_MOST_BYTES} bytes",
                429: "token: over 10 wrong ones in 60 s; wait 42 s",
            },
        ),
    )
    async def log_in(request: Request) -> Response:
        if login is None or not login.needed:
            raise Rejected("session: this server needs no token, so nothing has to be sent")
        if "origin" not in request.headers:
            text = "Origin: is missing; a login is for browsers, programs send Authorization: Bearer"
            raise Rejected(text, status=403)
        body = await read_body(request, _MOST_BYTES)
        try:
            sent = msgspec.json.decode(body, type=LoginInput)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise Rejected(f"body: {exc}") from exc
        try:
            cookie, until = login.enter(sent.token, request.scope)
        except (TooMany, OverRate) as exc:
            return failure(str(exc), exc.status, {"Retry-After": str(exc.retry_after_s)})
        expires = render_instant(until * SECOND)
        return reply(LoggedIn(expires), headers={**_NO_STORE, "Set-Cookie": cookie})

    @routes.delete(
        SESSION_PATH,
        **operation(
            "logOut",
            "Log out",
            "Removes the cookie from the browser. It needs no token.",
            Answer(None, "The cookie is removed.", status=204, headers=_COOKIE),
        ),
    )
    async def log_out(request: Request) -> Response:
        headers = dict(_NO_STORE) if login is None else {**_NO_STORE, "Set-Cookie": login.leave(request.scope)}
        return Response(status_code=204, headers=headers)

    return routes
