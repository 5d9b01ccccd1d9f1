"""``serve`` with an invalid configuration ends with exit code 2 and names the key."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.cases import check_all
from kit.commands import Command, Ended, run_commands
from kit.pipeline import Pipeline

#: Name of the case -> (tokentrace.yml, what the error names).
CONFIGURATIONS: dict[str, tuple[str, str]] = {
    **{
        f"unknown key in {section}": (f"{section}:\n  banana: 1\n", "banana")
        for section in ("http_server", "retention", "pricing", "nats", "storage", "redaction", "mist", "transport")
    },
    "unknown section": ("banana: 1\n", "banana"),
    "unknown key of the file of a transport": ("transport: {file: {banana: 1}}", "banana"),
    "unknown key of an alert": (
        "alerts: [{name: a, metric: cost, op: gt, threshold: 1, window: 1h, banana: 1}]",
        "banana",
    ),
    "unknown key of a custom metric": ("custom_metrics: [{name: a, type: sum, banana: 1}]", "banana"),
    "unknown key of a price": (
        "pricing: {models: {m: {prompt_per_1m: 1, completion_per_1m: 1, banana: 1}}}",
        "banana",
    ),
    "the dialect of another project": ("sources: []\n", "sources"),
    "a section that is a number": ("nats: 5\n", "nats"),
    "a section that is text": ("storage: here\n", "storage"),
    "a section that is a list": ("retention: [1]\n", "retention"),
    "text for a number": ("http_server: {max_batch_size: many}", "http_server.max_batch_size"),
    "zero spans": ("http_server: {max_batch_size: 0}", "http_server.max_batch_size"),
    "a list for text": ("nats: {url: [a]}", "nats.url"),
    "text that is not a duration": ("storage: {snapshot_interval: soon}", "storage.snapshot_interval"),
    "a duration without a unit": ("http_server: {read_timeout: 5}", "http_server.read_timeout"),
    "a negative duration": ("nats: {duplicate_window: -5s}", "nats.duplicate_window"),
    "no shards": ("nats: {shards: 0}", "nats.shards"),
    "too many shards": ("nats: {shards: 100000}", "nats.shards"),
    "a shard that does not exist": ("nats: {own_shards: '7'}", "nats.own_shards"),
    "an unknown redaction mode": ("redaction: {mode: maybe}", "redaction.mode"),
    "text for a list": ("redaction: {keys: password}", "redaction.keys"),
    "a rule without a name": ("alerts: [{metric: cost, op: gt, threshold: 1, window: 1h}]", "alerts"),
    "a negative limit": ("retention: {max_spans: -1}", "retention.max_spans"),
    "a path without a slash": ("http_server: {ingest_path: spans}", "http_server.ingest_path"),
    "a price that is text": (
        "pricing: {models: {m: {prompt_per_1m: cheap, completion_per_1m: 1}}}",
        "prompt_per_1m",
    ),
    "a negative price": ("pricing: {models: {m: {prompt_per_1m: -1, completion_per_1m: 1}}}", "prompt_per_1m"),
    "a price that is not a number": (
        "pricing: {models: {m: {prompt_per_1m: .nan, completion_per_1m: 1}}}",
        "prompt_per_1m",
    ),
    "a negative body limit": ("http_server: {max_body_bytes: -1}", "http_server.max_body_bytes"),
    "a required variable that is not set": (
        "http_server: {auth_token: '${TT_NOT_SET:?set it}'}",
        "http_server.auth_token",
    ),
    "not YAML": ("a: [", "tokentrace.yml"),
    "a list": ("- a\n- b\n", "tokentrace.yml"),
    "deep YAML": ("[" * 5000, "tokentrace.yml"),
    "binary": ("\x00\x01\x02", "tokentrace.yml"),
}

#: (Environment variable, value, what the error names).
VARIABLES = (
    ("TOKENTRACE_SHARD_COUNT", "many", "nats.shards"),
    ("TOKENTRACE_MAX_SPANS", "-1", "retention.max_spans"),
    ("TOKENTRACE_DUPLICATE_WINDOW", "soon", "nats.duplicate_window"),
    ("TOKENTRACE_ALERT_ALLOW_HOSTS", "localhost,https://x", "alert_delivery.allow_hosts[1]"),
    ("TOKENTRACE_LOG_LEVEL", "loud", "TOKENTRACE_LOG_LEVEL"),
)


@pytest.fixture
def taken_address() -> Iterator[str]:
    """An address in use, so that ``serve`` ends with exit code 1 if it accepts its configuration."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def serve(directory: Path, address: str, **environ: str) -> Command:
    directory.mkdir()
    words = ["serve", "--addr", address, "--also", "none", "--data-dir", "data"]
    return Command(directory, words, environ)


def assert_named(refusal: tuple[Ended, str]) -> None:
    ended, key = refusal
    assert "Traceback" not in ended.stderr
    assert ended.code == 2, ended.stderr
    assert key in ended.stderr


def test_an_invalid_file_ends_serve_with_exit_code_2_and_the_key(tmp_path: Path, taken_address: str) -> None:
    commands = []
    for number, (text, _) in enumerate(CONFIGURATIONS.values()):
        commands.append(serve(tmp_path / str(number), taken_address))
        (commands[-1].directory / "tokentrace.yml").write_text(text)
    keys = [key for _, key in CONFIGURATIONS.values()]
    refusals = zip(run_commands(commands), keys, strict=True)
    check_all(dict(zip(CONFIGURATIONS, refusals, strict=True)), assert_named)


def test_an_invalid_variable_ends_serve_with_exit_code_2_and_the_key(tmp_path: Path, taken_address: str) -> None:
    commands = [serve(tmp_path / name, taken_address, **{name: value}) for name, value, _ in VARIABLES]
    keys = [key for _, _, key in VARIABLES]
    refusals = zip(run_commands(commands), keys, strict=True)
    check_all(dict(zip((name for name, _, _ in VARIABLES), refusals, strict=True)), assert_named)


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    # A section is empty in YAML if every key below it is commented out.
    pipeline = Pipeline(tmp_path)
    (tmp_path / "tokentrace.yml").write_text("storage:\n  # dir: ./here\nnats:\nhttp_server:\nalerts:\n")
    try:
        pipeline.start()
        assert pipeline.get("/healthz").status == 200
    finally:
        pipeline.stop()


def test_a_path_that_is_only_a_slash_is_served_or_refused_by_name(tmp_path: Path) -> None:
    keys = ("metrics_path", "prometheus_path", "ingest_path", "health_path")
    pipelines = {key: Pipeline(tmp_path / key) for key in keys}

    def is_decided(pipeline: Pipeline) -> bool:
        assert pipeline.process is not None
        with contextlib.suppress(OSError):
            return pipeline.process.poll() is not None or pipeline.get("/readyz").status == 200
        return False

    def check(key: str) -> None:
        process = pipelines[key].process
        assert process is not None
        if process.poll() is not None:
            assert process.returncode == 2
            assert key in pipelines[key].log.read_text()
        else:
            assert pipelines[key].get("/readyz").status == 200

    try:
        for key, pipeline in pipelines.items():
            (tmp_path / key / "tokentrace.yml").write_text(f"http_server: {{{key}: /}}")
            pipeline.start(wait=False)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(map(is_decided, pipelines.values())):
            time.sleep(0.05)
        check_all({key: key for key in keys}, check)
    finally:
        for pipeline in pipelines.values():
            pipeline.stop()
