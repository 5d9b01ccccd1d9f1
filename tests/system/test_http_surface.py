"""The routes of the api require the token and refuse other methods and unknown parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from kit.fleet import Fleet
from kit.pipeline import http
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import load
from tokentrace_api.app import compose
from tokentrace_api.service import Config

TOKEN = {"Authorization": "Bearer the-key"}


def all_routes() -> list[tuple[str, str]]:
    """Return (method, path) of every route of the api, with ``absent`` in place of each path parameter."""
    app = compose(MemoryBus(MemoryBroker()), Config.of(load(None)))
    found = []
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{[^}]*\}", "absent", route.path)
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


ROUTES = all_routes()
#: The files of the page, which need no token.
PAGE = ("/", "/page.js", "/page.css", "/favicon.svg")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory: Path = tmp_path_factory.mktemp("surface")
    running = Fleet(directory, ["ingest", "aggregator", "api"], {"TOKENTRACE_AUTH_TOKEN": "the-key"})
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def test_the_api_has_these_routes() -> None:
    assert {
        ("GET", "/traces"),
        ("GET", "/traces/tail"),
        ("GET", "/traces/recent"),
        ("GET", "/traces/series"),
        ("GET", "/traces/absent"),
        ("DELETE", "/traces/absent"),
        ("GET", "/traces/absent/timeline"),
        ("GET", "/traces/absent/spans/absent"),
        ("GET", "/export"),
        ("GET", "/coverage"),
        ("GET", "/rejected"),
        ("GET", "/reporters"),
        ("GET", "/alerts/events"),
        ("GET", "/alerts/absent/series"),
        ("POST", "/alerts/preview"),
        ("POST", "/scores"),
        ("DELETE", "/api/users/absent"),
        ("GET", "/api/sessions"),
        ("GET", "/api/sessions/summary"),
        ("GET", "/api/sessions/absent/graph"),
        ("GET", "/api/sessions/absent/details"),
        ("POST", "/api/sessions/absent/end"),
    } <= set(ROUTES)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[1] not in PAGE])
def test_every_route_asks_for_the_token(fleet: Fleet, method: str, path: str) -> None:
    body = b"{}" if method == "POST" else None
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "the-key"}):
        answer = http(method, fleet.url("api") + path, body, headers)
        assert answer.status == 401, headers
        assert answer.headers["www-authenticate"] == "Bearer"
    if (method, path) != ("GET", "/traces/tail"):
        assert http(method, fleet.url("api") + path, body, TOKEN).status != 401


@pytest.mark.parametrize(("path", "kind"), [("/traces/tail", "text/event-stream"), ("/export", "application/x-ndjson")])
def test_a_head_request_starts_no_stream(fleet: Fleet, path: str, kind: str) -> None:
    answer = http("HEAD", fleet.url("api") + path, headers=TOKEN)
    assert (answer.status, answer.headers["content-type"].partition(";")[0], answer.body) == (200, kind, b"")
    assert b"tokentrace_api_tails 0.0" in http("GET", fleet.url("api") + "/internal/metrics", headers=TOKEN).body


@pytest.mark.parametrize("path", sorted({path for method, path in ROUTES if method == "GET"}))
def test_an_unknown_parameter_is_refused(fleet: Fleet, path: str) -> None:
    answer = http("GET", fleet.url("api") + path + "?unread_name=1", headers=TOKEN)
    # The first two ignore unknown parameters, as the earlier Go server did; a link to the page may have some added.
    if path in ("/traces/recent", "/health", *PAGE):
        assert answer.status in (200, 503)
        return
    assert answer.status == 400, answer.body
    assert answer.json()["error"].startswith("unread_name: unknown parameter; allowed are ")


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_a_method_that_a_path_does_not_have_is_a_405(fleet: Fleet, path: str) -> None:
    answer = http("PATCH", fleet.url("api") + path, b"{}", TOKEN)
    assert (answer.status, answer.json()["error"]) == (405, "method not allowed")
