"""Values that would be accepted without effect, or would hide or open everything, are refused with their key."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route

from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import build, load, parse_yaml
from tokentrace.config.http_server import TAKEN_PATHS
from tokentrace.errors import ConfigError
from tokentrace_standalone.pipeline import Configs, Pipeline

#: A key -> values that cannot work.
USELESS: dict[str, list[object]] = {
    "retention.memory_window": ["0s"],
    "storage.snapshot_interval": ["0s", "0"],
    "storage.memory_limit_mb": [0, -1, 1],
    "storage.dir": [""],
    "nats.spans_max_age": ["0s"],
    "nats.duplicate_window": ["0s"],
    "nats.raw_max_bytes": [0, -1, 1],
    "nats.spans_max_bytes": [0, -1, 1],
    "nats.project": ["", "x" * 500, "ü" * 200],
    "nats.url": [
        "",
        " ",
        "nats://",
        "nats://a:port",
        "http://a:4222",
        "nats://a:1,",
        "nats://a b:1",
        "nats://a..b",
    ],
    "http_server.hosts": [["a:9090"], ["https://a"], [""], ["a b"], ["*"], ["a/b"], ["-a"], ["a..b"]],
    "http_server.public_url": ["a", "ftp://a", "https://a/path", "https://a?x", "https://u:p@a", "https://a:443", "*"],
    "http_server.allowed_origins": [["*"], ["null"], ["a"], ["https://a/"], ["https://A"], ["https://a:x"], [""]],
    "http_server.ingest_url": ["a", "nats://a", "http://", "http://a:x", " http://a", "http://a\n"],
    "http_server.auth_token": ["key\n", " key", "k\u00e9y", "k\ney", "k\x00y", "k\u200by"],
}
#: A key of a path -> paths that are taken or would hide other routes.
PATHS: dict[str, list[str]] = {
    "ingest_path": [
        "/metrics",
        "/metrics/prometheus",
        "/metrics/x",
        "/health",
        "/mist",
        "/traces",
        "/api/traces/start",
    ],
    "health_path": [
        "/healthz",
        "/readyz",
        "/internal/metrics",
        "/openapi.json",
        "/docs",
        "/docs/x",
        "/metrics/x",
        "/session",
    ],
    "metrics_path": ["/", "/stats", "/alerts", "/export", "/spans"],
    "prometheus_path": ["/traces/recent", "/scores", "/prices/explain", "/metrics", "/page.json", "/page.js"],
}
ODD_PATHS = [
    "spans",
    "",
    "/a b",
    "/a?b",
    "/a#b",
    "/{x}",
    "/{x:path}",
    "/a%2Fb",
    "/a/",
    "//a",
    "/a/../b",
    "/./a",
    "/\u00fc",
    "/a\n",
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in USELESS.items() for value in values])
def test_a_value_that_cannot_work_is_refused_with_its_key(key: str, value: object) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=rf"^test\.yml: {re.escape(key)}\b") as error:
        build({section: {name: value}}, "test.yml")
    assert str(error.value).count("\n") == 0


def test_an_error_about_the_url_of_the_broker_shows_no_password() -> None:
    with pytest.raises(ConfigError) as error:
        build({"nats": {"url": "nats://user:s3cret@a:port"}}, "test.yml")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(("key", "path"), [(key, path) for key, paths in PATHS.items() for path in paths])
def test_a_path_that_is_taken_is_refused_with_its_key(key: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"http_server\.{key}"):
        build({"http_server": {key: path}}, "test.yml")


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("key", PATHS)
def test_a_path_that_no_request_can_have_is_refused_with_its_key(key: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"http_server\.{key}"):
        build({"http_server": {key: path}}, "test.yml")


def test_paths_of_ones_own_are_taken() -> None:
    own = {"metrics_path": "/m", "prometheus_path": "/m/prometheus", "ingest_path": "/v2/in", "health_path": "/alive"}
    assert build({"http_server": own}, "test.yml").http_server.ingest_path == "/v2/in"


def test_every_fixed_route_begins_with_a_name_that_no_configured_path_may_have() -> None:
    settings = load(None, {})
    pipeline = Pipeline(MemoryBus(MemoryBroker()), Configs.of(settings))
    http = settings.http_server
    configured = (http.metrics_path, http.prometheus_path, http.ingest_path, http.health_path)
    fixed = {
        route.path.split("/")[1]
        for route in pipeline.routes
        if isinstance(route, Route)
        and route.path not in configured
        and not route.path.startswith(f"{http.metrics_path}/")
    }
    # The page gives way to a route that is configured at its path.
    assert fixed - {""} <= TAKEN_PATHS


@pytest.mark.parametrize("url", ["nats://a", "a:4222", "tls://u:p@a:1", "nats://a:1, nats://[::1]:2", "ws://a:80"])
def test_urls_that_the_nats_client_reads_are_taken(url: str) -> None:
    assert build({"nats": {"url": url}}, "test.yml").nats.url == url


@pytest.mark.parametrize("text", ["1: a\n'1': b\n", "nats:\n  ? url\n  : a\n  url: b\n", '{"mist": {}, "mist": {}}'])
def test_a_key_that_appears_twice_in_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="already"):
        parse_yaml(text, "test.yml", {})
