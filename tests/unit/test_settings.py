"""``tokentrace.yml``: every key of SPEC F.1 with its default, and an error that names the key for everything else."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tokentrace.config import (
    ENVIRONMENT,
    AlertRule,
    CustomMetric,
    FileTransport,
    HttpDelivery,
    HttpServer,
    HttpTransport,
    Nats,
    Retention,
    Settings,
    StdoutDelivery,
    Transport,
    build,
    load,
    own_shards,
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- SPEC F.1

DEFAULTS = {
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
def test_every_documented_key_has_its_documented_default(section: type, key: str) -> None:
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


def test_every_documented_key_is_read() -> None:
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
    assert got.alerts[1].cooldown is None  # the window, says the alerter
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
def test_every_operator_and_kind_of_metric_is_known(op: str, kind: str) -> None:
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


# -- unknown keys and wrong kinds


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


def test_the_third_dialect_of_configuration_is_refused_by_name() -> None:
    """Other projects of the name read ``sources:``; silence would look as if it worked."""
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
def test_a_value_of_the_wrong_kind_is_refused_with_its_key(text: str, key: str) -> None:
    message = refused(text)
    assert message.startswith("test.yml: ")
    assert key in message


@pytest.mark.parametrize("price", [-1, ".nan", ".inf", "-.inf"])
def test_a_price_that_is_no_price_is_refused(price: object) -> None:
    assert "pricing" in refused(f"pricing: {{models: {{m: {{prompt_per_1m: {price}, completion_per_1m: 2}}}}}}")


@pytest.mark.parametrize("threshold", [".nan", ".inf"])
def test_a_threshold_that_nothing_can_cross_is_refused(threshold: str) -> None:
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
def test_an_error_never_shows_a_long_value(text: str) -> None:
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
        "[" * 5000,
    ],
    ids=range(12),
)
def test_what_is_not_yaml_is_a_config_error(text: str) -> None:
    assert "test.yml" in refused(text)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "5", "2026-01-01"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
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
def test_durations_are_written_with_units(text: str, ns: int) -> None:
    assert read(f"retention: {{memory_window: {text}}}").retention.memory_window == ns
    assert read("retention: {memory_window: '${W}'}", W=text).retention.memory_window == ns


# -- ${VAR}


def test_variables_are_filled_in_anywhere_in_the_values() -> None:
    got = read(
        "http_server: {auth_token: '${TOKEN}', addr: '${HOST}:${PORT}', max_batch_size: '${SIZE}', enabled: '${ON}'}\n"
        "alerts: [{name: a, metric: m, op: gt, threshold: '${HIGH}', window: 1h,\n"
        "          delivery: {type: http, url: 'http://a', headers: {Authorization: 'Bearer ${TOKEN}'}}}]\n",
        TOKEN="s: {e} # ct",
        HOST="0.0.0.0",
        PORT="80",
        SIZE="55",
        ON="true",
        HIGH="0.5",
    )
    assert got.http_server.auth_token == "s: {e} # ct"
    assert got.http_server.addr == "0.0.0.0:80"
    assert (got.http_server.max_batch_size, got.http_server.enabled) == (55, True)
    assert got.alerts[0].threshold == 0.5
    assert isinstance(got.alerts[0].delivery, HttpDelivery)
    assert got.alerts[0].delivery.headers == {"Authorization": "Bearer s: {e} # ct"}


def test_an_unset_variable_is_empty() -> None:
    assert read("http_server: {auth_token: 'a${NONE}b'}").http_server.auth_token == "ab"


def test_a_variable_may_have_a_default() -> None:
    text = "http_server: {addr: '${ADDR:-:7777}', auth_token: '${TOKEN:-}'}"
    assert read(text).http_server.addr == ":7777"
    assert read(text).http_server.auth_token == ""
    assert read(text, ADDR=":1", TOKEN="t").http_server.addr == ":1"
    assert read(text, ADDR="").http_server.addr == ":7777"


@pytest.mark.parametrize("environ", [{}, {"TOKEN": ""}])
def test_a_required_variable_refuses_to_start_with_its_message(environ: dict[str, str]) -> None:
    message = refused("http_server: {auth_token: '${TOKEN:?please export a token}'}", **environ)
    assert "please export a token" in message
    assert "TOKEN" in message
    assert "http_server.auth_token" in message
    assert read("http_server: {auth_token: '${TOKEN:?m}'}", TOKEN="t").http_server.auth_token == "t"


def test_a_required_variable_without_a_message_is_named_too() -> None:
    message = refused("alerts: [{name: '${ALERT:?}', metric: m, op: gt, threshold: 1, window: 1h}]")
    assert "ALERT" in message
    assert "alerts[0].name" in message


@pytest.mark.parametrize("text", ["$TOKEN", "${}", "${1A}", "$${", "{TOKEN}", "${TOKEN", "%{TOKEN}"])
def test_what_only_looks_like_a_variable_stays(text: str) -> None:
    assert read(f"http_server: {{auth_token: '{text}'}}", TOKEN="x").http_server.auth_token == text


def test_a_value_is_filled_in_once_only() -> None:
    assert read("http_server: {auth_token: '${A}'}", A="${B}", B="deep").http_server.auth_token == "${B}"


def test_a_variable_in_a_comment_is_none(here: Path) -> None:
    assert read("# ${TOKEN:?must not matter}\nhttp_server: {}\n") == Settings()


# -- order


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(here: Path) -> None:
    assert load(None, {}).nats.url == "nats://127.0.0.1:4222"
    (here / "tokentrace.yml").write_text("nats: {url: 'nats://file:1', project: kept}\n")
    assert load(None, {}).nats.url == "nats://file:1"
    environ = {"TOKENTRACE_NATS_URL": "nats://environment:2"}
    assert load(None, environ).nats.url == "nats://environment:2"
    flags = {"nats.url": "nats://flag:3", "storage.dir": None}
    got = load(None, environ, flags)
    assert got.nats.url == "nats://flag:3"
    assert got.nats.project == "kept"
    assert got.storage.dir == Settings().storage.dir


def test_another_file_may_be_named_and_must_then_be_there(here: Path) -> None:
    (here / "tokentrace.yml").write_text("nats: {project: default-file}\n")
    (here / "other.yml").write_text("nats: {project: other-file}\n")
    assert load(str(here / "other.yml"), {}).nats.project == "other-file"
    for missing in (here / "missing.yml", here):
        with pytest.raises(ConfigError, match=str(missing)):
            load(str(missing), {})


def test_a_file_that_is_not_text_is_a_config_error(here: Path) -> None:
    (here / "tokentrace.yml").write_bytes(b"nats: {project: '\xff\xfe'}\n")
    with pytest.raises(ConfigError, match=r"tokentrace\.yml"):
        load(None, {})


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("TOKENTRACE_NATS_URL", "nats://x:1", "nats://x:1"),
        ("TOKENTRACE_PROJECT", "shop", "shop"),
        ("TOKENTRACE_SHARD_COUNT", "4", 4),
        ("TOKENTRACE_SHARDS", "0", "0"),
        ("TOKENTRACE_DUPLICATE_WINDOW", "1s", SECOND),
        ("TOKENTRACE_SPANS_MAX_BYTES", "1000000", 1_000_000),
        ("TOKENTRACE_DATA_DIR", "/data", "/data"),
        ("TOKENTRACE_SNAPSHOT_INTERVAL", "5s", 5 * SECOND),
        ("TOKENTRACE_MAX_SPANS", "9", 9),
        ("TOKENTRACE_AUTH_TOKEN", "12345", "12345"),
        ("TOKENTRACE_REDACTION_MODE", "metadata_only", "metadata_only"),
        ("TOKENTRACE_ALERT_ALLOW_HOSTS", "10.0.0.0/8, hooks.example.com:443", ["10.0.0.0/8", "hooks.example.com:443"]),
        ("TRACE_REDACT_KEYS", " badge, iban,,x-y ", ["badge", "iban", "x-y"]),
    ],
)
def test_every_variable_sets_its_key(here: Path, name: str, given: str, wanted: object) -> None:
    value: Any = load(None, {name: given})
    for part in ENVIRONMENT[name].split("."):
        value = getattr(value, part)
    assert value == wanted
    assert load(None, {name: ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("TOKENTRACE_SHARD_COUNT", "four"),
        ("TOKENTRACE_SHARD_COUNT", "0"),
        ("TOKENTRACE_SHARDS", "7"),
        ("TOKENTRACE_DUPLICATE_WINDOW", "1"),
        ("TOKENTRACE_MAX_SPANS", "-1"),
        ("TOKENTRACE_SPANS_MAX_BYTES", "8GiB"),
        ("TOKENTRACE_REDACTION_MODE", "sometimes"),
    ],
)
def test_a_bad_variable_is_a_config_error_that_names_the_key(here: Path, name: str, given: str) -> None:
    with pytest.raises(ConfigError, match=ENVIRONMENT[name]):
        load(None, {name: given})


@pytest.mark.parametrize("section", ["nats:\n", "nats: 5\n", "nats: []\n", "nats: text\n"])
def test_a_section_that_is_no_mapping_is_named_although_the_environment_sets_a_key_in_it(
    here: Path, section: str
) -> None:
    """A section whose keys are all commented out is empty in YAML: it means the defaults, or it is refused by name."""
    (here / "tokentrace.yml").write_text(section)
    try:
        got = load(None, {"TOKENTRACE_PROJECT": "shop"})
    except ConfigError as exc:
        assert "nats" in str(exc)  # noqa: PT017
    else:
        assert section == "nats:\n"
        assert got.nats.project == "shop"


def test_loading_does_not_change_what_it_was_given(here: Path) -> None:
    overrides: dict[str, object] = {"nats.url": "nats://x:1"}
    environ = {"TOKENTRACE_PROJECT": "shop"}
    load(None, environ, overrides)
    assert overrides == {"nats.url": "nats://x:1"}
    assert environ == {"TOKENTRACE_PROJECT": "shop"}
    assert load(None, {}) == Settings()


# -- shards


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("", [0, 1, 2, 3]),
        ("0", [0]),
        ("0-1", [0, 1]),
        ("0,3", [0, 3]),
        ("3,0", [0, 3]),
        ("0-1,1-2", [0, 1, 2]),
        (" 1 , 3 ", [1, 3]),
        ("2-2", [2]),
        ("0-3", [0, 1, 2, 3]),
    ],
)
def test_a_worker_may_hold_some_of_the_shards(text: str, shards: list[int]) -> None:
    assert own_shards(Nats(shards=4, own_shards=text)) == shards


@pytest.mark.parametrize("text", ["4", "0-4", "x", "-1", "0-", "-", ",", "1,", "2-1", "0-1-2", "0;1", "²", "٣", "1.0"])
def test_what_names_no_existing_shards_is_refused_with_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"nats\.own_shards"):
        own_shards(Nats(shards=4, own_shards=text))


def test_an_immense_range_of_shards_is_refused_without_being_written_out() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource\n"
            "from tokentrace.config.settings import *\n"
            "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
            "try:\n"
            "    own_shards(Nats(shards=4, own_shards='0-99999999999'))\n"
            "except ConfigError:\n"
            "    print('refused')\n",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "refused\n"


# -- what is open without a token


@pytest.mark.parametrize(("require", "is_open"), [("false", True), ("true", False)])
def test_mist_needs_a_token_only_if_told_so(require: str, is_open: bool) -> None:
    paths = read(f"mist: {{require_auth: {require}}}").open_paths
    assert ("/mist" in paths) is is_open
    assert {"/healthz", "/readyz"} <= set(paths)


def test_a_delivery_without_a_type_in_the_file_is_standard_output() -> None:
    got = read("alerts: [{name: a, metric: m, op: gt, threshold: 1, window: 1h, delivery: {send_resolved: true}}]")
    assert got.alerts[0].delivery == StdoutDelivery(send_resolved=True)


def test_a_key_of_a_rule_or_delivery_without_a_value_counts_as_absent() -> None:
    rule = "name: a, metric: m, op: gt, threshold: 1, window: 1h"
    got = read(f"alerts: [{{{rule}, for: , delivery: {{type: stdout, url: }}}}]")
    assert (got.alerts[0].for_, got.alerts[0].delivery) == (None, StdoutDelivery())
