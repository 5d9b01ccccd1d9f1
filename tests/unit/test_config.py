"""``tokentrace.yml``: how keys are read, documented defaults, errors that name the invalid key, and durations."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from tokentrace.config import (
    AlertRule,
    CustomMetric,
    FileTransport,
    HttpDelivery,
    HttpServer,
    HttpTransport,
    Retention,
    Settings,
    Transport,
    build,
    parse_yaml,
)
from tokentrace.errors import ConfigError

SECOND = 10**9
DAY = 86_400 * SECOND


def read(text: str, **environ: str) -> Settings:
    return build(parse_yaml(text, "test.yml", environ), "test.yml")


def refused(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(text, **environ)
    return str(error.value)


# -- documented keys

DEFAULTS: dict[tuple[type, str], object] = {
    (Transport, "type"): "stdout",
    (FileTransport, "path"): "./traces.jsonl",
    (FileTransport, "rotate"): False,
    (FileTransport, "max_size_mb"): 100,
    (FileTransport, "max_files"): 7,
    (FileTransport, "sync"): False,
    (FileTransport, "buffer_size_kb"): 256,
    (HttpTransport, "batch_size"): 100,
    (HttpTransport, "flush_interval"): 2 * SECOND,
    (HttpTransport, "timeout"): 10 * SECOND,
    (HttpTransport, "max_retries"): 3,
    (HttpTransport, "retry_backoff"): SECOND // 2,
    (HttpTransport, "compression"): "none",
    (HttpTransport, "max_queue_size"): 10_000,
    (HttpServer, "enabled"): False,
    (HttpServer, "addr"): ":9090",
    (HttpServer, "metrics_path"): "/metrics",
    (HttpServer, "prometheus_path"): "/metrics/prometheus",
    (HttpServer, "ingest_path"): "/spans",
    (HttpServer, "health_path"): "/health",
    (HttpServer, "read_timeout"): 5 * SECOND,
    (HttpServer, "write_timeout"): 10 * SECOND,
    (HttpServer, "auth_token"): "",
    (HttpServer, "max_batch_size"): 1000,
    (Retention, "memory_window"): 7 * DAY,
    (Retention, "disk_days"): 30,
}


@pytest.mark.parametrize(("section", "key"), DEFAULTS, ids=lambda part: getattr(part, "__name__", part))
def test_a_documented_key_has_its_documented_default(section: type, key: str) -> None:
    required = {"endpoint": "http://collector"} if section is HttpTransport else {}
    value = getattr(section(**required), key)
    assert value == DEFAULTS[section, key]
    assert type(value) is bool if isinstance(DEFAULTS[section, key], bool) else True


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n...\n", "transport: {}\nnats: {}\nalerts: []\n"])
def test_an_empty_file_means_the_defaults(text: str) -> None:
    assert read(text) == Settings()


FULL = """
transport:
  type: multi
  file: {path: /var/log/t.jsonl, rotate: true, max_size_mb: 5, max_files: 2, sync: true, buffer_size_kb: 64}
  http:
    endpoint: https://collector/spans
    batch_size: 50
    flush_interval: 5s
    timeout: 1m30s
    max_retries: 9
    retry_backoff: 1.5s
    compression: gzip
    max_queue_size: 77
    headers: {X-Team: ai}
  multi:
    - type: file
      file: {path: ./a.jsonl}
    - type: http
      http: {endpoint: "http://two"}
    - type: stdout
    - {type: noop}
http_server:
  enabled: true
  addr: 0.0.0.0:9191
  metrics_path: /m
  prometheus_path: /p
  ingest_path: /i
  health_path: /h
  read_timeout: 1s
  write_timeout: 2s
  auth_token: s3cret
  max_batch_size: 10
retention: {memory_window: 2d, disk_days: 3}
alerts:
  - name: cost
    metric: cost.total_usd
    op: gt
    threshold: 5.5
    window: 1h
    cooldown: 10m
    min_spans: 20
    filter: {model: gpt-4o, attr.team: search}
    delivery:
      type: http
      url: https://hooks/x
      timeout: 3s
      headers: {Authorization: Bearer x}
  - {name: bare, metric: latency.p95_ms, op: lt, threshold: 3, window: 5m}
custom_metrics:
  - {name: docs, type: sum, field: attr.documents}
  - {name: cached, type: count, filter_key: attr.cache, filter_val: hit}
pricing:
  models:
    my/model-1.5: {prompt_per_1m: 0.1, completion_per_1m: 12}
"""


def test_the_values_of_a_file_are_read_into_their_settings() -> None:
    got = read(FULL)
    file = FileTransport(path="/var/log/t.jsonl", rotate=True, max_size_mb=5, max_files=2, sync=True, buffer_size_kb=64)
    assert got.transport.type == "multi"
    assert got.transport.file == file
    http = got.transport.http
    assert http is not None
    assert (http.endpoint, http.batch_size, http.flush_interval) == ("https://collector/spans", 50, 5 * SECOND)
    assert (http.timeout, http.max_retries, http.retry_backoff) == (90 * SECOND, 9, 3 * SECOND // 2)
    assert (http.compression, http.max_queue_size, http.headers) == ("gzip", 77, {"X-Team": "ai"})
    assert [child.type for child in got.transport.multi] == ["file", "http", "stdout", "noop"]
    assert got.transport.multi[0].file == FileTransport(path="./a.jsonl")
    assert got.transport.multi[1].http == HttpTransport(endpoint="http://two")
    server = got.http_server
    assert (server.enabled, server.addr, server.auth_token) == (True, "0.0.0.0:9191", "s3cret")
    assert (server.metrics_path, server.prometheus_path, server.ingest_path, server.health_path) == (
        "/m",
        "/p",
        "/i",
        "/h",
    )
    assert (server.read_timeout, server.write_timeout, server.max_batch_size) == (SECOND, 2 * SECOND, 10)
    assert (got.retention.memory_window, got.retention.disk_days) == (2 * DAY, 3)
    assert got.alerts == [
        AlertRule(
            name="cost",
            metric="cost.total_usd",
            op="gt",
            threshold=5.5,
            window="1h",
            cooldown="10m",
            min_spans=20,
            filter={"model": "gpt-4o", "attr.team": "search"},
            delivery=HttpDelivery(
                url="https://hooks/x",
                timeout="3s",
                headers={"Authorization": "Bearer x"},
            ),
        ),
        AlertRule(name="bare", metric="latency.p95_ms", op="lt", threshold=3.0, window="5m"),
    ]
    assert got.alerts[1].min_spans == 0
    assert got.alerts[1].cooldown is None  # None = the alerter uses the window
    assert got.custom_metrics == [
        CustomMetric(name="docs", type="sum", field="attr.documents"),
        CustomMetric(name="cached", type="count", filter_key="attr.cache", filter_val="hit"),
    ]
    rate = got.pricing.models["my/model-1.5"]
    assert (rate.prompt_per_1m, rate.completion_per_1m) == (Decimal("0.1"), Decimal(12))


@pytest.mark.parametrize("kind", ["file", "http", "stdout", "multi", "noop"])
def test_every_documented_transport_is_known(kind: str) -> None:
    block = "\n  http: {endpoint: 'http://x'}" if kind == "http" else ""
    assert read(f"transport:\n  type: {kind}{block}\n").transport.type == kind


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte"])
@pytest.mark.parametrize("kind", ["sum", "count", "avg", "p95"])
def test_every_operator_and_type_of_custom_metric_is_known(op: str, kind: str) -> None:
    got = read(
        f"alerts: [{{name: a, metric: m, op: {op}, threshold: 1, window: 1h}}]\n"
        f"custom_metrics: [{{name: c, type: {kind}}}]\n"
    )
    assert (got.alerts[0].op, got.custom_metrics[0].type) == (op, kind)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("transport: {http: {batch_size: 5}}", "endpoint"),
        ("transport: {multi: [{type: http, http: {}}]}", "endpoint"),
        ("transport: {type: http}", "transport.http"),
        *[
            (f"alerts: [{{{', '.join(f'{k}: {v}' for k, v in rule.items())}}}]", missing)
            for missing in ("name", "metric", "op", "threshold", "window")
            for rule in [
                {
                    k: v
                    for k, v in {"name": "a", "metric": "m", "op": "gt", "threshold": 1, "window": "1h"}.items()
                    if k != missing
                }
            ]
        ],
        ("custom_metrics: [{type: sum}]", "name"),
        ("custom_metrics: [{name: x}]", "type"),
        ("pricing: {models: {m: {prompt_per_1m: 1}}}", "completion_per_1m"),
    ],
)
def test_a_missing_key_is_named(text: str, key: str) -> None:
    message = refused(text)
    assert key in message
    assert message.startswith("test.yml: ")


# -- unknown keys and invalid values


@pytest.mark.parametrize(
    ("text", "place", "key"),
    [
        ("colour: red", "", "colour"),
        ("transport: {colour: red}", "transport", "colour"),
        ("transport: {file: {colour: red}}", "transport.file", "colour"),
        ("transport: {http: {endpoint: x, colour: red}}", "transport.http", "colour"),
        ("transport: {multi: [{type: stdout}, {type: stdout, colour: red}]}", "transport.multi", "colour"),
        ("transport: {multi: [{type: file, file: {colour: red}}]}", "transport.multi", "colour"),
        ("http_server: {colour: red}", "http_server", "colour"),
        ("retention: {colour: red}", "retention", "colour"),
        ("alerts: [{name: a, metric: m, op: gt, threshold: 1, window: 1h, colour: red}]", "alerts", "colour"),
        (
            "alerts: [{name: a, metric: m, op: gt, threshold: 1, window: 1h, delivery: {colour: red}}]",
            "delivery",
            "colour",
        ),
        ("custom_metrics: [{name: x, type: sum, colour: red}]", "custom_metrics", "colour"),
        ("pricing: {colour: red}", "pricing", "colour"),
        ("pricing: {models: {m: {prompt_per_1m: 1, completion_per_1m: 2, colour: 3}}}", "pricing.models", "colour"),
        ("nats: {colour: red}", "nats", "colour"),
        ("storage: {colour: red}", "storage", "colour"),
        ("redaction: {colour: red}", "redaction", "colour"),
        ("mist: {colour: red}", "mist", "colour"),
        ("1: x", "", "1"),
        ("true: x", "", "True"),
    ],
)
def test_an_unknown_key_is_named_with_its_place(text: str, place: str, key: str) -> None:
    message = refused(text)
    assert message.startswith("test.yml: ")
    assert place in message
    assert f"`{key}`" in message


def test_a_file_of_another_project_called_tokentrace_is_refused_by_its_key() -> None:
    """Another project called tokentrace reads ``sources:``; without an error, its file would seem to work here."""
    message = refused("sources:\n  - type: jsonl\n    path: ./x.jsonl\n")
    assert "`sources`" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("transport: {type: kafka}", "transport.type"),
        ("transport: stdout", "transport"),
        ("transport: [stdout]", "transport"),
        ("transport: {http: {endpoint: x, compression: zip}}", "compression"),
        ("http_server: {enabled: perhaps}", "http_server.enabled"),
        ("http_server: {max_batch_size: many}", "http_server.max_batch_size"),
        ("http_server: {max_batch_size: 1.5}", "http_server.max_batch_size"),
        ("http_server: {max_batch_size: 0}", "http_server.max_batch_size"),
        ("http_server: {max_batch_size: -3}", "http_server.max_batch_size"),
        ("http_server: {addr: [1]}", "http_server.addr"),
        ("http_server: {auth_token: {a: b}}", "http_server.auth_token"),
        ("http_server: {metrics_path: metrics}", "http_server.metrics_path"),
        ("http_server: {health_path: ''}", "http_server.health_path"),
        ("http_server: {read_timeout: 5}", "http_server.read_timeout"),
        ("http_server: {read_timeout: fast}", "http_server.read_timeout"),
        ("http_server: {read_timeout: -5s}", "http_server.read_timeout"),
        ("http_server: {read_timeout: true}", "http_server.read_timeout"),
        ("http_server: {read_timeout: null}", "http_server.read_timeout"),
        ("http_server: {read_timeout: [5s]}", "http_server.read_timeout"),
        ("retention: {max_spans: -1}", "retention.max_spans"),
        ("retention: {memory_window: 7 days}", "retention.memory_window"),
        ("nats: {shards: 0}", "nats.shards"),
        ("nats: {shards: 257}", "nats.shards"),
        ("nats: {shards: -1}", "nats.shards"),
        ("alerts: {}", "alerts"),
        ("alerts: [5]", "alerts"),
        ("alerts: [{name: a, metric: m, op: equals, threshold: 1, window: 1h}]", "op"),
        ("alerts: [{name: a, metric: m, op: gt, threshold: high, window: 1h}]", "threshold"),
        ("alerts: [{name: a, metric: m, op: gt, threshold: 1, window: 1h, delivery: {type: slack}}]", "delivery.type"),
        ("custom_metrics: [{name: x, type: p50}]", "type"),
        ("pricing: {models: {m: {prompt_per_1m: cheap, completion_per_1m: 2}}}", "prompt_per_1m"),
        ("pricing: {models: [m]}", "pricing.models"),
        ("redaction: {mode: maybe}", "redaction.mode"),
        ("redaction: {keys: secret}", "redaction.keys"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(text: str, key: str) -> None:
    message = refused(text)
    assert message.startswith("test.yml: ")
    assert key in message


@pytest.mark.parametrize("window", ["0s", "0", "0ms"])
def test_a_memory_window_of_zero_is_refused_because_no_span_would_be_shown(window: str) -> None:
    assert "retention.memory_window" in refused(f"retention: {{memory_window: {window}}}")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ingest_path: /metrics", ("ingest_path", "metrics_path")),
        ("health_path: /metrics/prometheus", ("health_path", "prometheus_path")),
        ("ingest_path: /x, health_path: /x", ("ingest_path", "health_path")),
    ],
)
def test_two_settings_with_the_same_path_are_refused_and_both_are_named(text: str, keys: tuple[str, str]) -> None:
    message = refused(f"http_server: {{{text}}}")
    assert all(f"http_server.{key}" in message for key in keys)


@pytest.mark.parametrize("token", ["s3cret\n", " s3cret", "s3cret\t", "\r\n", " "])
def test_a_token_with_white_space_around_it_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConfigError, match=r"http_server\.auth_token: .*white space") as error:
        build({"http_server": {"auth_token": token}}, "test.yml")
    assert "s3cret" not in str(error.value)
    assert read("http_server: {auth_token: two words}").http_server.auth_token == "two words"


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("nats: {}\nstorage: {}\nnats: {}\n", "nats", (1, 3)),
        ("nats:\n  shards: 1\n  shards: 2\n", "shards", (2, 3)),
        ("alerts:\n  - {name: a, name: b}\n", "name", (2, 2)),
        ("nats: {shards: 1}\n'nats': {}\n", "nats", (1, 2)),
    ],
)
def test_a_key_that_appears_twice_in_a_mapping_is_refused_with_both_lines(
    text: str, key: str, lines: tuple[int, int]
) -> None:
    message = refused(text)
    assert message.startswith("test.yml: ")
    assert f": {key}: " in message
    assert re.findall(r"line (\d+)", message) == [str(lines[1]), str(lines[0])]


def test_a_merged_mapping_may_override_a_key() -> None:
    """A key that overrides one of a mapping merged with ``<<`` is not a repeated key."""
    text = "redaction: {keys: &keys [a]}\nretention: &base {max_spans: 1}\nstorage: {}\n"
    got = read(text + "nats: {<<: {shards: 2, project: shop}, shards: 3}\n")
    assert (got.nats.shards, got.nats.project) == (3, "shop")


@pytest.mark.parametrize("price", [-1, ".nan", ".inf", "-.inf"])
def test_a_price_that_is_negative_or_not_finite_is_refused(price: object) -> None:
    assert "pricing" in refused(f"pricing: {{models: {{m: {{prompt_per_1m: {price}, completion_per_1m: 2}}}}}}")


@pytest.mark.parametrize("threshold", [".nan", ".inf"])
def test_a_threshold_that_is_not_finite_is_refused(threshold: str) -> None:
    text = f"alerts: [{{name: a, metric: m, op: gt, threshold: {threshold}, window: 1h}}]"
    assert "threshold" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "transport: {type: 'PLACE'}",
        "http_server: {read_timeout: 'PLACE'}",
        "http_server: {max_batch_size: 'PLACE'}",
        "nats: {own_shards: 'PLACE'}",
        "nats: {shards: 'PLACE'}",
    ],
)
def test_an_error_does_not_show_the_whole_of_a_long_value(text: str) -> None:
    secret = "s3cret-" * 40
    assert secret[:60] not in refused(text.replace("PLACE", secret))


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "a: [1, 2",
        "\tx: 1",
        "a: 1\n---\nb: 2\n",
        "a: !!python/object/apply:os.system ['true']",
        "a: *nowhere",
        "a: \x00",
        "'",
        "a: 2026-02-31",
        "a: !!int many",
        "alerts: &a [*a]",
        pytest.param("[" * 5000, marks=pytest.mark.long),
    ],
    ids=range(12),
)
def test_text_that_cannot_be_read_as_one_yaml_document_is_a_config_error(text: str) -> None:
    assert "test.yml" in refused(text)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "5", "2026-01-01"])
def test_a_file_that_is_not_a_mapping_is_refused(text: str) -> None:
    assert "mapping" in refused(text)


# -- durations


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("500ms", SECOND // 2),
        ("2s", 2 * SECOND),
        ("90m", 5400 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("2h", 7200 * SECOND),
        ("7d", 7 * DAY),
        ("1d12h", 36 * 3600 * SECOND),
        ("1.5s", 3 * SECOND // 2),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_a_duration_is_numbers_with_units_or_zero(text: str, ns: int) -> None:
    assert read(f"http_server: {{write_timeout: {text}}}").http_server.write_timeout == ns
    assert read("http_server: {write_timeout: '${W}'}", W=text).http_server.write_timeout == ns
