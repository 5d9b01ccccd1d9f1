"""The wheel in an environment with the two dependencies alone: what works, and what says which extra it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

import tokentrace
from kit.environment import ROOT
from kit.installs import Install, build_wheel
from tokentrace_standalone.__main__ import COMMANDS
from tokentrace_standalone.cli import app

SERVERS = (
    "tokentrace_ingest",
    "tokentrace_aggregator",
    "tokentrace_alerter",
    "tokentrace_api",
    "tokentrace_standalone",
)
CONFIGURATION = "transport: {type: file, file: {path: spans.jsonl}}\n"

#: Imports every module of the client and prints its name.
IMPORT_ALL = """
import importlib, pkgutil, tokentrace.client
for module in pkgutil.walk_packages(tokentrace.client.__path__, "tokentrace.client."):
    importlib.import_module(module.name)
    print(module.name)
"""

#: Prints the type and message of the error of each line.
FAIL = """
import tokentrace
from tokentrace import *
for line in {lines!r}:
    try:
        exec(line)
        print("nothing")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Install:
    return Install(tmp_path_factory.mktemp("base"), wheel)


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]], ids=str)
def test_the_help_lists_every_command_and_says_what_the_others_need(base: Install, words: list[str]) -> None:
    code, output, errors = base.run("tokentrace", *words)
    assert (code, errors) == (0, "")
    for name, text in COMMANDS.items():
        assert f"  {name:<9}{text}\n" in output
    assert output.endswith("need the extra 'server', which is not installed: pip install 'tokentrace[server]'\n")


def test_the_help_without_the_extra_has_the_commands_and_the_words_of_the_help_with_it() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group of commands
    assert {name: command.get_short_help_str(200) for name, command in commands.items()} == COMMANDS


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_is_printed(base: Install, word: str) -> None:
    assert base.run("tokentrace", word) == (0, f"tokentrace {tokentrace.__version__}\n", "")


@pytest.mark.parametrize("name", [*sorted(set(COMMANDS) - {"help", "version"}), "banana"])
def test_every_other_command_names_the_missing_extra_in_one_line(base: Install, name: str) -> None:
    code, output, errors = base.run("tokentrace", name)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("tokentrace needs" if name == "banana" else f"tokentrace {name} needs the extra 'server'")
    assert errors.endswith(": pip install 'tokentrace[server]'\n")


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_names_the_missing_extra_in_one_line(base: Install, server: str) -> None:
    code, output, errors = base.run("python", "-m", server, "serve")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "needs the extra 'server' (not installed: duckdb, " in errors


def test_every_public_name_and_every_module_of_the_client_can_be_imported(base: Install) -> None:
    names = base.python("from tokentrace import *; print(*sorted(set(dir()) & set(__import__('tokentrace').__all__)))")
    assert names.split() == sorted(tokentrace.__all__)
    modules = base.python(IMPORT_ALL).split()
    files = [file for file in (ROOT / "shared/tokentrace/client").rglob("*.py") if file.name != "__init__.py"]
    assert len(modules) > len(files)


def test_what_needs_an_extra_says_which(base: Install) -> None:
    (base.bin.parent.parent / "tokentrace.yml").write_text(CONFIGURATION)
    cases = {
        "Tracer(http_server=':0')": "ConfigError http_server, alerts and custom_metrics need the extra 'server' (",
        "Tracer(alerts=[cost_spike('x', 1.0, '1h')])": "ConfigError http_server, alerts and custom_metrics need the ",
        "Tracer.from_file()": "ConfigError tokentrace.yml: reading YAML needs the extra 'yaml' (",
        "Tracer.from_text('transport: {type: noop}')": "ConfigError configuration: reading YAML needs the extra 'yaml'",
        "instrument('openai')": "ConfigError instrument: the package openai is not installed: ",
        "instrument('anthropic')": "ConfigError instrument: the package anthropic is not installed: ",
        "instrument('google')": "ConfigError instrument: the package google-genai is not installed: ",
        "instrument('litellm')": "ConfigError instrument: the package litellm is not installed: ",
        "Reporter('x', 'nats://127.0.0.1', nkey='tokentrace.yml')": "ConfigError reporter: creds and nkey need ",
    }
    said = base.python(FAIL.format(lines=list(cases))).splitlines()
    for line, expected, found in zip(cases, cases.values(), said, strict=True):
        assert found.startswith(expected), (line, found)


def test_a_program_traces_to_a_file(base: Install) -> None:
    spans = base.bin.parent.parent / "traced.jsonl"
    base.python(
        "from tokentrace import Tracer\n"
        f"with Tracer('file://{spans}', source='base') as tracer, tracer.trace('answer') as trace:\n"
        "    trace.record(model='gpt-4o', prompt_tokens=512, completion_tokens=128)\n"
    )
    (line,) = spans.read_text().splitlines()
    assert json.loads(line)["prompt_tokens"] == 512


def test_with_the_extra_yaml_a_program_reads_its_tracer_from_a_file(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path
) -> None:
    directory = tmp_path_factory.mktemp("yaml")
    (directory / "tokentrace.yml").write_text(CONFIGURATION + "redaction: {mode: metadata_only}\n")
    install = Install(directory, wheel, ["yaml"])
    install.python(
        "from tokentrace import Tracer\n"
        "with Tracer.from_file(source='base') as tracer, tracer.trace('answer') as trace:\n"
        "    trace.record(model='gpt-4o', prompt_tokens=512)\n"
    )
    assert len((directory / "spans.jsonl").read_text().splitlines()) == 1
