"""A login is a cookie that only this server can make, which ends by itself and with its token."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import load
from tokentrace.errors import Rejected
from tokentrace.service.admit import Admission
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.credentials import Credentials
from tokentrace.service.login import LASTS_S, SECRET_KEY, Login, TooMany, agreed_secret

TOKEN, SECRET = "the-token", b"s" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def scope_of(
    host: str = "127.0.0.1:8700", *, scheme: str = "http", client: str = "127.0.0.1", method: str = "GET", **more: str
) -> dict[str, Any]:
    headers = {"host": host, **{name.replace("_", "-"): value for name, value in more.items()}}
    if method in ("POST", "PUT", "PATCH"):
        headers["content-type"] = "application/json"
    return {
        "type": "http",
        "method": method,
        "path": "/alerts",
        "scheme": scheme,
        "http_version": "1.1",
        "server": ("127.0.0.1", 8700),
        "client": (client, 4711),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }


def login_of(clock: Clock, *, token: str = TOKEN, secret: bytes = SECRET, **more: str) -> Login:
    return Login(Credentials(token), secret, now=clock, elapsed=clock, **more)


def is_in(login: Login, scope: dict[str, Any], cookies: bytes) -> bool:
    return login.grant_of(scope, cookies) is not None


def cookie_of(login: Login, scope: dict[str, Any]) -> str:
    return login.enter(TOKEN, scope)[0].partition(";")[0]


def test_the_cookie_is_strict_unreadable_by_scripts_and_lasts_twelve_hours() -> None:
    clock = Clock()
    text, until = login_of(clock).enter(TOKEN, scope_of())
    pair, *rules = text.split("; ")
    assert pair.startswith("tokentrace-8700=")
    assert rules == ["Max-Age=43200", "Path=/", "HttpOnly", "SameSite=Strict"]
    assert until == clock.now + LASTS_S


@pytest.mark.parametrize(
    ("host", "scheme", "public_url", "name", "secure"),
    [
        ("127.0.0.1:9090", "http", "", "tokentrace-9090", False),
        ("localhost", "http", "", "tokentrace-80", False),
        ("[::1]:8700", "http", "", "tokentrace-8700", False),
        ("[::1]", "http", "", "tokentrace-80", False),
        ("llm.example.com", "https", "", "__Host-tokentrace-443", True),
        ("127.0.0.1:8700", "http", "https://llm.example.com", "__Host-tokentrace-443", True),
        ("127.0.0.1:8700", "http", "https://llm.example.com:8443/", "__Host-tokentrace-8443", True),
    ],
)
def test_its_name_has_the_port_and_on_https_the_prefix_that_binds_it_to_the_host(
    host: str, scheme: str, public_url: str, name: str, secure: bool
) -> None:
    login, scope = login_of(Clock(), public_url=public_url), scope_of(host, scheme=scheme)
    text, _ = login.enter(TOKEN, scope)
    assert text.startswith(name + "=")
    assert text.endswith("; Secure") == secure
    assert login.leave(scope).startswith(f"{name}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict")


def test_every_replica_takes_it_until_its_end_and_no_server_with_another_token_secret_or_project() -> None:
    clock = Clock()
    cookie = cookie_of(login_of(clock), scope_of()).encode()
    assert is_in(login_of(clock), scope_of(), b"other=1; " + cookie)
    assert not is_in(login_of(clock, token="changed"), scope_of(), cookie)
    assert not is_in(login_of(clock, secret=b"t" * 32), scope_of(), cookie)
    assert not is_in(login_of(clock, project="other"), scope_of(), cookie)
    assert not is_in(login_of(clock), scope_of("127.0.0.1:1"), cookie)
    clock.now += LASTS_S - 1
    assert is_in(login_of(clock), scope_of(), cookie)
    clock.now += 1
    assert not is_in(login_of(clock), scope_of(), cookie)


@given(st.data())
def test_no_changed_cookie_is_valid(data: st.DataObject) -> None:
    clock = Clock()
    cookie = cookie_of(login_of(clock), scope_of()).encode()
    begin = len(b"tokentrace-8700=")
    at = data.draw(st.integers(begin, len(cookie) - 1))
    byte = data.draw(st.integers(0, 255))
    changed = cookie[:at] + bytes([byte]) + cookie[at + 1 :]
    # The last letter of base64 has bits that mean nothing, so two letters can stand for the same bytes.
    same = _parts(changed[begin:]) == _parts(cookie[begin:])
    assert is_in(login_of(clock), scope_of(), changed) == same


def _parts(value: bytes) -> list[bytes] | None:
    try:
        return [
            base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
            for part in value.split(b".")
        ]
    except ValueError:
        return None


@given(st.binary(max_size=200))
def test_no_invented_cookie_is_valid_or_an_error(value: bytes) -> None:
    assert not is_in(login_of(Clock()), scope_of(), b"tokentrace-8700=" + value)


def test_ten_wrong_tokens_of_an_address_shut_it_out_for_a_minute_and_no_other() -> None:
    clock = Clock()
    login = login_of(clock)
    for _ in range(10):
        with pytest.raises(Rejected, match="token: is wrong"):
            login.enter("wrong", scope_of())
    with pytest.raises(TooMany) as refused:
        login.enter(TOKEN, scope_of())
    assert (refused.value.status, refused.value.retry_after_s) == (429, 60)
    login.enter(TOKEN, scope_of(client="10.0.0.7"))
    clock.now += 60
    login.enter(TOKEN, scope_of())


def test_the_addresses_that_are_remembered_are_limited() -> None:
    login = login_of(Clock())
    for number in range(3000):
        with pytest.raises(Rejected):
            login.enter("wrong", scope_of(client=f"10.0.{number // 250}.{number % 250}"))
    assert len(login._wrong) == 1024


def admitted(method: str, **headers: str) -> int | None:
    """Return the status of the refusal of a request with a valid cookie; None = it is admitted."""
    login = login_of(Clock())
    admission = Admission(
        credentials=Credentials(TOKEN),
        login=login,
        allowed_origins=["https://app.example.com"],
        spans_paths=["/alerts"],
    )
    cookie = cookie_of(login, scope_of())
    response = admission.admit(scope_of(method=method, cookie=cookie, **headers))
    return None if response is None else response.status_code


def test_a_cookie_stands_for_the_token_and_methods_that_change_something_need_the_origin_of_the_server() -> None:
    own = "http://127.0.0.1:8700"
    for method in ("GET", "HEAD"):
        assert admitted(method) is None
        assert admitted(method, origin=own, sec_fetch_site="same-origin") is None
        # A page on another port of this host is of the same site, so the browser sends it the cookie.
        for site in ("same-site", "cross-site"):
            assert admitted(method, sec_fetch_site=site) == 401
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert admitted(method, origin=own) is None
        assert admitted(method) == 403
        assert admitted(method, origin="http://127.0.0.1:8701") == 403
        assert admitted(method, origin=own, sec_fetch_site="same-site") == 401
    assert admitted("POST", origin="https://app.example.com") == 403
    assert admitted("GET", authorization="Bearer wrong") == 401


async def test_replicas_that_start_together_agree_on_one_secret() -> None:
    broker = MemoryBroker()
    await bootstrap(MemoryBus(broker), load(None))
    agreed = await asyncio.gather(*(agreed_secret(MemoryBus(broker)) for _ in range(5)))
    assert len(set(agreed)) == 1
    assert len(agreed[0]) == 32
    assert await agreed_secret(MemoryBus(broker)) == agreed[0]


async def test_a_secret_that_is_too_short_is_set_aside_and_replaced() -> None:
    bus = MemoryBus(MemoryBroker())
    await bootstrap(bus, load(None))
    await bus.kv(subjects.META).put(SECRET_KEY, b"short")
    made = await agreed_secret(bus)
    assert len(made) == 32
    assert bus.set_aside.totals
    assert await agreed_secret(bus) == made
