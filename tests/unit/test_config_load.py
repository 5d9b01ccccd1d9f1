"""Loading of settings: variables, the precedence of flags, environment and file, and the shards of an aggregator."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokentrace.config import DEPRECATED, ENVIRONMENT, HttpDelivery, Nats, Settings, build, load, own_shards, parse_yaml
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
    """Make an empty directory the current one; return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- ${VAR}


def test_variables_are_substituted_anywhere_in_the_values() -> None:
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
    assert read("nats: {project: 'a${NONE}b'}").nats.project == "ab"


RULE = "name: a, metric: m, op: gt, threshold: 1, window: 1h"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("http_server: {auth_token: '${NONE}'}", "http_server.auth_token"),
        ("http_server: {auth_token: 'a${NONE}b'}", "http_server.auth_token"),
        (
            f"alerts: [{{{RULE}, delivery: {{type: http, url: http://a, secret: '${{NONE}}'}}}}]",
            "alerts[0].delivery.secret",
        ),
        (
            f"alerts: [{{{RULE}, delivery: {{type: http, url: http://a, "
            "headers: {Authorization: 'Bearer ${NONE}'}}}]",
            "alerts[0].delivery.headers.Authorization",
        ),
        (f"alerts: [{{{RULE}, delivery: {{type: http, url: 'http://a/${{NONE}}'}}}}]", "alerts[0].delivery.url"),
        ("nats: {url: 'nats://user:${NONE}@a:1'}", "nats.url"),
        (f"alerts: [{{{RULE}, delivery: {{type: alertmanager, url: '${{NONE}}'}}}}]", "alerts[0].delivery.url"),
    ],
)
@pytest.mark.parametrize("environ", [{}, {"NONE": ""}])
def test_an_unset_variable_in_a_secret_is_refused_and_named(text: str, key: str, environ: dict[str, str]) -> None:
    message = refused(text, **environ)
    assert key in message
    assert "NONE" in message
    assert read(text.replace("${NONE}", "${NONE:-}"), **environ)
    assert read(text, NONE="set")


def test_an_unset_variable_elsewhere_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    read("nats: {project: 'a${NONE}b'}")
    assert caplog.messages == ["nats.project: the environment variable NONE is not set, so it is empty here"]
    caplog.clear()
    read("nats: {project: 'a${NONE:-}b${SET}'}", SET="x")
    assert caplog.messages == []


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
def test_text_that_only_resembles_a_variable_stays(text: str) -> None:
    assert read(f"http_server: {{auth_token: '{text}'}}", TOKEN="x").http_server.auth_token == text


def test_a_value_is_substituted_only_once() -> None:
    assert read("http_server: {auth_token: '${A}'}", A="${B}", B="deep").http_server.auth_token == "${B}"


def test_a_variable_in_a_comment_is_ignored(here: Path) -> None:
    assert read("# ${TOKEN:?must not matter}\nhttp_server: {}\n") == Settings()


# -- precedence of flags, environment and file


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


def test_a_program_without_a_file_does_not_load_the_yaml_library(here: Path) -> None:
    program = "import sys; from tokentrace.config import load; load(None, {}); assert 'yaml' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=here, check=True)


def test_another_file_may_be_named_and_must_then_exist(here: Path) -> None:
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
        ("TOKENTRACE_OWN_SHARDS", "0", "0"),
        ("TOKENTRACE_DUPLICATE_WINDOW", "1s", SECOND),
        ("TOKENTRACE_SPANS_MAX_BYTES", "1000000", 1_000_000),
        ("TOKENTRACE_DATA_DIR", "/data", "/data"),
        ("TOKENTRACE_SNAPSHOT_INTERVAL", "5s", 5 * SECOND),
        ("TOKENTRACE_MAX_SPANS", "9", 9),
        ("TOKENTRACE_AUTH_TOKEN", "12345", "12345"),
        ("TOKENTRACE_REDACTION_MODE", "metadata_only", "metadata_only"),
        ("TOKENTRACE_ALERT_ALLOW_HOSTS", "10.0.0.0/8, hooks.example.com:443", ["10.0.0.0/8", "hooks.example.com:443"]),
        ("TRACE_REDACT_KEYS", " badge, iban,,x-y ", ["badge", "iban", "x-y"]),
        ("TOKENTRACE_REDACTION_HASH_KEY", "sixteen or more letters", "sixteen or more letters"),
        ("TOKENTRACE_HTTP_HOSTS", "api, ingest", ["api", "ingest"]),
        ("TOKENTRACE_PUBLIC_URL", "https://llm.example.com", "https://llm.example.com"),
    ],
)
def test_a_variable_sets_its_key(here: Path, name: str, given: str, wanted: object) -> None:
    value: Any = load(None, {name: given})
    for part in ENVIRONMENT[name].split("."):
        value = getattr(value, part)
    assert value == wanted
    assert load(None, {name: ""}) == Settings()


def test_trace_redact_keys_extends_the_keys_of_the_file(here: Path) -> None:
    (here / "tokentrace.yml").write_text("redaction: {keys: [badge]}")
    assert load(None, {"TRACE_REDACT_KEYS": "iban, ssn_no"}).redaction.keys == ["badge", "iban", "ssn_no"]
    redactor = load(None, {"TRACE_REDACT_KEYS": "iban"}).redaction.redactor
    assert redactor.value("badge", "x") == redactor.value("iban", "x") == redactor.value("password", "x") != "x"
    (here / "tokentrace.yml").write_text("redaction: {keys: badge}")
    with pytest.raises(ConfigError, match=r"redaction\.keys"):
        load(None, {})


def test_hosts_of_the_environment_extend_those_of_the_file(here: Path) -> None:
    (here / "tokentrace.yml").write_text("http_server: {hosts: [trace.example.com]}")
    assert load(None, {"TOKENTRACE_HTTP_HOSTS": "api"}).http_server.hosts == ["trace.example.com", "api"]


def test_hash_ids_needs_a_key_of_sixteen_characters(here: Path) -> None:
    for key in ("", "fifteen letters"):
        (here / "tokentrace.yml").write_text(f"redaction: {{hash_ids: true, hash_key: '{key}'}}")
        with pytest.raises(ConfigError, match=r"redaction\.hash_key: 16 characters"):
            load(None, {})
    (here / "tokentrace.yml").write_text('redaction: {hash_ids: true, hash_key: "${HASH_KEY}"}')
    with pytest.raises(ConfigError, match="HASH_KEY"):
        load(None, {})
    assert load(None, {"HASH_KEY": "sixteen or more letters"}).redaction.redactor.user_id("a").startswith("h_")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("TOKENTRACE_SHARD_COUNT", "four"),
        ("TOKENTRACE_SHARD_COUNT", "0"),
        ("TOKENTRACE_OWN_SHARDS", "7"),
        ("TOKENTRACE_AUTH_TOKEN", "s3cret\n"),
        ("TOKENTRACE_DUPLICATE_WINDOW", "1"),
        ("TOKENTRACE_MAX_SPANS", "-1"),
        ("TOKENTRACE_SPANS_MAX_BYTES", "8GiB"),
        ("TOKENTRACE_REDACTION_MODE", "sometimes"),
        ("TOKENTRACE_HTTP_HOSTS", "api:9090"),
        ("TOKENTRACE_PUBLIC_URL", "llm.example.com"),
        ("TOKENTRACE_INGEST_URL", "http://ingest:8700\n"),
        ("TOKENTRACE_NATS_URL", "nats://broker:port"),
        ("TOKENTRACE_SNAPSHOT_INTERVAL", "0s"),
    ],
)
def test_a_bad_variable_is_a_config_error_that_names_the_key(here: Path, name: str, given: str) -> None:
    with pytest.raises(ConfigError, match=ENVIRONMENT[name]) as error:
        load(None, {name: given})
    assert name in str(error.value)


def test_the_old_name_of_a_variable_keeps_its_meaning_and_logs_a_warning(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert DEPRECATED == {"TOKENTRACE_SHARDS": "TOKENTRACE_OWN_SHARDS"}
    count = {"TOKENTRACE_SHARD_COUNT": "4"}
    with caplog.at_level(logging.WARNING):
        assert load(None, {**count, "TOKENTRACE_OWN_SHARDS": "2-3"}).nats.own_shards == "2-3"
    assert caplog.messages == []
    got = load(None, {**count, "TOKENTRACE_SHARDS": "2"})
    assert (got.nats.shards, own_shards(got.nats)) == (4, [2]), "own shards, not the count"
    (message,) = caplog.messages
    assert all(name in message for name in ("TOKENTRACE_SHARDS", "TOKENTRACE_OWN_SHARDS"))
    both = load(None, {**count, "TOKENTRACE_SHARDS": "0", "TOKENTRACE_OWN_SHARDS": "1"})
    assert both.nats.own_shards == "1"
    with pytest.raises(ConfigError, match="TOKENTRACE_SHARDS"):
        load(None, {**count, "TOKENTRACE_SHARDS": "4"})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("transport: {type: stdout}", "transport"),
        ("http_server: {enabled: false}", "http_server.enabled"),
        ("http_server: {read_timeout: 3s}", "http_server.read_timeout"),
        ("http_server: {write_timeout: 3s}", "http_server.write_timeout"),
        ("retention: {disk_days: 3}", "retention.disk_days"),
        ("mist: {accept_eval_result: true}", "mist.accept_eval_result"),
    ],
)
def test_a_key_without_effect_is_named_in_one_warning(
    here: Path, caplog: pytest.LogCaptureFixture, text: str, key: str
) -> None:
    (here / "tokentrace.yml").write_text(text)
    load(None, {})
    (message,) = caplog.messages
    assert message.startswith(f"tokentrace.yml: {key}: has no effect in the server: ")


def test_keys_with_an_effect_are_loaded_without_a_warning(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "transport:\nhttp_server: {addr: ':1', auth_token: t}\nretention: {max_spans: 5}\nnats: {shards: 2}\n"
    (here / "tokentrace.yml").write_text(text)
    load(None, {})
    assert caplog.messages == []


@pytest.mark.parametrize("directory", ["plain", "plain/below", "./plain/a/b"])
def test_a_data_directory_that_is_or_lies_below_a_file_is_refused(here: Path, directory: str) -> None:
    (here / "plain").touch()
    with pytest.raises(ConfigError, match=r"storage\.dir.*plain is not a directory"):
        load(None, {}, {"storage.dir": directory})
    assert load(None, {}, {"storage.dir": "new/below"}).storage.dir == "new/below"


@pytest.mark.parametrize("section", ["nats:\n", "nats: 5\n", "nats: []\n", "nats: text\n"])
def test_a_section_must_be_a_mapping_or_empty_also_if_the_environment_sets_a_key_in_it(
    here: Path, section: str
) -> None:
    """A section whose keys are all commented out is empty in YAML; no other section may be without a mapping."""
    (here / "tokentrace.yml").write_text(section)
    try:
        got = load(None, {"TOKENTRACE_PROJECT": "shop"})
    except ConfigError as exc:
        assert "nats" in str(exc)  # noqa: PT017
    else:
        assert section == "nats:\n"
        assert got.nats.project == "shop"


def test_loading_does_not_change_its_arguments(here: Path) -> None:
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
def test_an_aggregator_may_own_some_of_the_shards(text: str, shards: list[int]) -> None:
    assert own_shards(Nats(shards=4, own_shards=text)) == shards


@pytest.mark.parametrize("text", ["4", "0-4", "x", "-1", "0-", "-", ",", "1,", "2-1", "0-1-2", "0;1", "²", "٣", "1.0"])
def test_own_shards_that_do_not_exist_are_refused_with_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"nats\.own_shards"):
        own_shards(Nats(shards=4, own_shards=text))


def test_an_immense_range_of_shards_is_refused_within_512_mib_of_memory() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource\n"
            "from tokentrace.config import Nats, own_shards\n"
            "from tokentrace.errors import ConfigError\n"
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


# -- paths that need no token


@pytest.mark.parametrize(("require", "is_open"), [("false", True), ("true", False)])
def test_mist_needs_a_token_only_if_require_auth_is_set(require: str, is_open: bool) -> None:
    paths = read(f"mist: {{require_auth: {require}}}\nhttp_server: {{auth_token: the-key}}").open_paths
    assert ("/mist" in paths) is is_open
    assert {"/healthz", "/readyz"} <= set(paths)
