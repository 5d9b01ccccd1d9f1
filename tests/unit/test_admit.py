"""Which requests a service answers, by their Host, Origin, content type and token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from tokentrace.config import build
from tokentrace.records import BATCH_TYPE
from tokentrace.service.admit import Admission, Door

Headers = Mapping[str, str] | list[tuple[str, str]]
JSON = {"content-type": "application/json"}
#: What a browser sends with a form, or with a request that a script made without asking first.
OF_A_FORM = ("text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "TEXT/PLAIN", "text/html")
UNTOLD = ("application/x-www-form-urlencoded", "")


def scope_of(
    headers: Headers = MappingProxyType({}),
    *,
    method: str = "POST",
    path: str = "/alerts",
    server: str = "127.0.0.1",
    version: str = "1.1",
) -> dict[str, Any]:
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
    if not any(name == "host" for name, _ in pairs):
        pairs = [("host", f"{server}:8700"), *pairs]
    return {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "http_version": version,
        "server": (server, 8700),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
    }


def admission(**http_server: object) -> Admission:
    return Admission.of(build({"http_server": http_server}, "test.yml"))


def refusal(headers: Headers, admitting: Admission | None = None, **of: Any) -> tuple[int, str] | None:
    """Return the status and the text of a refusal; None = the request is admitted."""
    response = (admitting or admission()).admit(scope_of(headers, **of))
    return None if response is None else (response.status_code, json.loads(bytes(response.body))["error"])


# -- Host


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:8700", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.9.8.7:8700", "[::1]:8700"),
        *("[::1]", "tokentrace.localhost:8700", "[::ffff:127.0.0.1]"),
    ],
)
def test_loopback_names_are_served_on_every_port(host: str) -> None:
    assert refusal({"host": host}, method="GET") is None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "attacker.example",
            "attacker.example:8700",
            "localhost.attacker.example",
            "127.0.0.1.nip.io",
            "notlocalhost",
        ),
        *("10.0.0.7", "0.0.0.0:8700", "[2001:db8::1]:8700", "user@localhost", "localhost:8700@attacker.example"),
        *("", ":8700", "localhost:port", "a b", "\xff", "[::1", "localhost/x", "2130706433", "x" * 5000),
    ],
)
def test_any_other_host_is_a_403_whatever_the_method(host: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        refused = refusal({"host": host, **JSON}, method=method)
        assert refused is not None, method
        status, text = refused
        assert (status, text[:6]) == (403, "Host: "), method
        assert len(text) < 150


def test_the_address_at_which_a_request_arrives_is_served() -> None:
    assert refusal({"host": "10.0.0.7:8700"}, server="10.0.0.7") is None
    assert refusal({"host": "[2001:DB8::7]:8700"}, server="2001:db8::7") is None
    wildcard = Admission(hosts=["0.0.0.0"])
    assert refusal({"host": "0.0.0.0:8700"}, wildcard) is None


def test_configured_hosts_and_the_host_of_the_public_url_are_served() -> None:
    listed = admission(hosts=["api", "Trace.Example.com", "10.1.2.3", "::5"], public_url="https://llm.example.com/")
    for host in ("api:9090", "trace.example.com", "10.1.2.3:80", "[::5]:1", "llm.example.com"):
        assert refusal({"host": host}, listed, method="GET") is None
    assert refusal({"host": "other.example.com"}, listed, method="GET") is not None


def test_a_client_of_http_1_0_need_not_name_a_host_but_one_of_1_1_must() -> None:
    bare = {**scope_of(method="GET"), "headers": []}
    assert admission().admit({**bare, "http_version": "1.0"}) is None
    refused = admission().admit(bare)
    assert refused is not None
    assert refused.status_code == 400


def test_many_different_hosts_leave_nothing_behind() -> None:
    admitting = admission()
    for number in range(5000):
        assert refusal({"host": f"h{number}.localhost"}, admitting, method="GET") is None
        assert refusal({"host": f"h{number}.example.com"}, admitting, method="GET") is not None
    assert len(admitting._good_hosts) <= 64


# -- Origin


@pytest.mark.parametrize(
    "origin",
    [
        *("https://attacker.example", "http://localhost:3000", "http://127.0.0.1", "https://127.0.0.1:8700", "null"),
        *("http://127.0.0.1:8700.attacker.example", "http://127.0.0.1:8701", "HTTP://127.0.0.1:8700/", "", "x"),
    ],
)
def test_a_page_of_another_origin_is_a_403_whatever_the_method(origin: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        for path in ("/alerts", "/spans", "/healthz"):
            refused = refusal({"origin": origin, **JSON}, method=method, path=path)
            assert refused is not None, (method, path)
            assert (refused[0], refused[1][:8]) == (403, "Origin: ")


def test_the_own_page_may_ask() -> None:
    own = {"origin": "http://127.0.0.1:8700", **JSON}
    assert refusal(own) is None
    assert refusal({"host": "localhost:9090", "origin": "http://localhost:9090", **JSON}) is None


def test_with_a_public_url_only_pages_of_its_origin_may_ask() -> None:
    behind = admission(public_url="https://llm.example.com")
    assert refusal({"origin": "https://llm.example.com", **JSON}, behind) is None
    for origin in ("http://llm.example.com", "http://127.0.0.1:8700", "https://llm.example.com:444"):
        assert refusal({"origin": origin, **JSON}, behind) is not None, origin
    assert refusal(JSON, behind) is None


def test_a_forwarded_header_changes_nothing() -> None:
    forwarded = {"x-forwarded-host": "attacker.example", "x-forwarded-proto": "https", "forwarded": "host=a.example"}
    assert refusal({"origin": "https://attacker.example", **JSON, **forwarded}) is not None
    assert refusal({"host": "attacker.example", "x-forwarded-host": "localhost"}, method="GET") is not None


def test_allowed_origins_may_send_spans_and_nothing_else() -> None:
    shop = admission(allowed_origins=["https://shop.example.com"], ingest_path="/in")
    origin = {"origin": "https://shop.example.com", **JSON}
    for path in ("/in", "/mist", "/api/traces/start", "/api/traces/x/end"):
        assert refusal(origin, shop, path=path) is None, path
    for path, method in (("/alerts", "POST"), ("/spans", "POST"), ("/in", "GET"), ("/metrics", "GET"), ("/in", "PUT")):
        refused = refusal(origin, shop, path=path, method=method)
        assert refused is not None, path
        assert refused[0] == 403, path
    assert refusal({"origin": "https://other.example.com", **JSON}, shop, path="/in") is not None


async def test_a_browser_learns_that_an_allowed_origin_may_send_spans_but_never_with_cookies() -> None:
    shop = admission(allowed_origins=["https://shop.example.com"], auth_token="the-key")
    asked = {"origin": "https://shop.example.com", "access-control-request-method": "POST"}
    status, headers = await answer_of(shop, scope_of(asked, method="OPTIONS", path="/spans"))
    assert status == 204
    assert headers["access-control-allow-origin"] == "https://shop.example.com"
    assert "Idempotency-Key" in headers["access-control-allow-headers"]
    assert headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in headers
    # The page may read why its spans were refused: here the token is missing.
    status, headers = await answer_of(shop, scope_of({**asked, **JSON}, path="/spans"))
    assert (status, headers["access-control-allow-origin"]) == (401, "https://shop.example.com")
    status, headers = await answer_of(shop, scope_of(asked, method="OPTIONS", path="/alerts"))
    assert (status, "access-control-allow-origin" in headers) == (403, False)


async def answer_of(admitting: Admission, scope: dict[str, Any]) -> tuple[int, dict[str, str]]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("a refusal reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("the request was admitted")

    await Door(app, admitting)(scope, receive, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


# -- Content-Type


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"),
        *(BATCH_TYPE, *UNTOLD),
    ],
)
def test_a_program_may_send_json_or_no_type(content_type: str) -> None:
    assert refusal({"content-type": content_type}) is None
    assert refusal({}) is None


@pytest.mark.parametrize("content_type", [*OF_A_FORM, "application/xml", "image/png", "json", "\xff", "x" * 5000])
def test_any_other_type_of_a_body_is_a_415(content_type: str) -> None:
    for method in ("POST", "PUT", "PATCH"):
        refused = refusal({"content-type": content_type}, method=method)
        assert refused is not None
        assert (refused[0], refused[1][:14]) == (415, "Content-Type: ")
        assert len(refused[1]) < 150
    assert refusal({"content-type": content_type}, method="GET") is None


@pytest.mark.parametrize("content_type", [*UNTOLD, *OF_A_FORM])
def test_a_body_without_the_type_of_json_is_refused_if_a_browser_sends_it(content_type: str) -> None:
    for of_a_browser in ({"origin": "http://127.0.0.1:8700"}, {"sec-fetch-site": "none"}):
        refused = refusal({"content-type": content_type, **of_a_browser})
        assert refused is not None
        assert refused[0] == 415
    refused = refusal({"content-type": content_type, "sec-fetch-site": "cross-site"})
    assert refused is not None
    assert refused[0] == 403


# -- the token


@pytest.mark.parametrize("sent", ["Bearer the-key", "bearer the-key", "BEARER the-key", "Bearer   the-key "])
def test_the_name_of_the_bearer_scheme_has_any_case(sent: str) -> None:
    assert refusal({"authorization": sent}, admission(auth_token="the-key"), method="GET") is None


@pytest.mark.parametrize("sent", ["", "the-key", "Bearer", "Bearer the-ke", "Bearer The-Key", "Basic the-key", "\xff"])
def test_a_wrong_or_missing_token_is_a_401(sent: str) -> None:
    refused = refusal({"authorization": sent} if sent else {}, admission(auth_token="the-key"), method="GET")
    assert refused == (401, "missing or wrong bearer token")


def test_health_needs_no_token_but_a_right_host() -> None:
    keyed = admission(auth_token="the-key")
    for path in ("/healthz", "/readyz", "/mist"):
        assert refusal(JSON, keyed, path=path) is None
        assert refusal({"host": "attacker.example", **JSON}, keyed, path=path) is not None
