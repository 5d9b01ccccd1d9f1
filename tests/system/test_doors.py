"""No web page can drive a local server: Host, Origin and content type are checked on every route of every service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kit.cases import check_all
from kit.fleet import Fleet
from kit.pipeline import Answer, Pipeline, http

SERVICES = ("ingest", "aggregator", "alerter", "api")
#: The routes of services that have no document.
PLAIN = (("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/internal/metrics"))
FOREIGN: dict[str, Mapping[str, str]] = {
    "a foreign Host": {"Host": "attacker.example"},
    "a foreign Host with our port": {"Host": "attacker.example:{port}"},
    "a foreign Origin": {"Origin": "https://attacker.example"},
    "an opaque Origin": {"Origin": "null"},
    "a page of another local port": {"Origin": "http://127.0.0.1:1"},
}
SPAN = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": "a page"}
RULE = {"name": "planted", "metric": "error_rate", "op": "gt", "threshold": 1, "window": "1h"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory: Path = tmp_path_factory.mktemp("doors")
    running = Fleet(directory, SERVICES, {"TOKENTRACE_HTTP_HOSTS": "tokentrace.internal"})
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("serve"))
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


def routes(url: str) -> list[tuple[str, str]]:
    """Return (method, path) of every route of a server, with ``absent`` in place of each path parameter."""
    document = http("GET", url + "/openapi.json")
    if document.status != 200:
        return list(PLAIN)
    paths = json.loads(document.body)["paths"]
    return [(method.upper(), re.sub(r"\{\w+\}", "absent", path)) for path, item in paths.items() for method in item]


def ask(url: str, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    sent = {"Content-Type": "application/json", **headers}
    port = url.rpartition(":")[2]
    return http(method, url + path, body, {name: value.replace("{port}", port) for name, value in sent.items()})


def check_url(url: str) -> None:
    """Check every route of the server at *url*."""
    for method, path in [*routes(url), ("GET", "/no/such/path"), ("OPTIONS", "/spans")]:
        for name, headers in FOREIGN.items():
            answer = ask(url, method, path, headers)
            assert answer.status == 403, (method, path, name, answer.body)
            assert "access-control-allow-origin" not in {key.lower() for key in answer.headers}, (method, path, name)
        if method in ("POST", "PUT"):
            for content_type in ("text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x"):
                assert ask(url, method, path, {"Content-Type": content_type}).status == 415, (method, path)
            form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": url}
            assert ask(url, method, path, form).status == 415, (method, path)


def test_every_route_of_every_service_refuses_what_a_page_may_send(fleet: Fleet, serving: Pipeline) -> None:
    urls = {name: fleet.url(name) for name in SERVICES} | {"serve": serving.url}
    assert len(routes(urls["serve"])) > 40
    check_all(urls, check_url)


def test_a_refused_request_changes_nothing(serving: Pipeline) -> None:
    before = serving.metrics()["span_count"]
    for headers in (*FOREIGN.values(), {"Content-Type": "text/plain"}):
        for path, body in (("/spans", SPAN), ("/alerts", RULE), ("/alerts/planted/silence", {"duration": "8760h"})):
            assert serving.post(path, body, headers).status in (403, 415)
    assert serving.get("/alerts/planted/status").status == 404
    assert serving.post("/spans", {**SPAN, "caller": "a program"}).status == 202
    serving.until(lambda: serving.metrics()["span_count"] == before + 1, "the program's span alone is counted")


def test_programs_are_served_by_every_name_of_the_server(fleet: Fleet) -> None:
    for host in ("localhost", "127.0.0.1:9090", "[::1]", "tokentrace.internal:9090", "TOKENTRACE.internal"):
        for name in SERVICES:
            assert http("GET", fleet.url(name) + "/healthz", headers={"Host": host}).status == 200, (name, host)


def test_the_page_of_the_server_itself_may_ask(serving: Pipeline) -> None:
    own = {"Origin": serving.url, "Content-Type": "application/json"}
    assert http("GET", serving.url + "/metrics", headers=own).status == 200
    assert serving.post("/spans", {**SPAN, "caller": "own page"}, own).status == 202


def test_curl_without_a_type_and_lower_case_bearer_are_served(tmp_path: Path) -> None:
    keyed = Pipeline(tmp_path, env={"TOKENTRACE_AUTH_TOKEN": "the-key"})
    keyed.start()
    try:
        body = json.dumps(SPAN).encode()
        for scheme in ("Bearer", "bearer", "BEARER"):
            headers = {"Authorization": f"{scheme} the-key", "Content-Type": "application/x-www-form-urlencoded"}
            assert http("POST", keyed.url + "/spans", body, headers).status == 202, scheme
        assert http("POST", keyed.url + "/spans", body, {"Authorization": "Basic the-key"}).status == 401
        assert http("POST", keyed.url + "/spans", body).status == 401
    finally:
        assert keyed.stop() == 0
