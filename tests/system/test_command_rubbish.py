"""Every option of every command and service, with rubbish as its value: one sentence, exit code 2, and no traceback."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kit.cases import check_all
from kit.commands import Command, Ended, run_commands
from kit.examples import SEED, thinned
from tokentrace_standalone import cli

#: Values that fit hardly any option; each is tried with every option.
RUBBISH = (
    *("", " ", "-1", "99999999999999999999", "nan", "1e999", "\u00b2", "a..b", "::", "[::1", "http://[", "x:y:z"),
    *("/dev/null/x", "\n", "\udcff", "\u00fc" * 300, "${A}", "--", "nats://a:port", "."),
)
#: URLs that are refused before anything is tried; a command that is given another one waits for a server.
NO_URLS = (
    "",
    " ",
    "\n",
    "a..b",
    "http://[",
    "nats://a:port",
    "nats://",
    "x:y:z",
    "\udcff",
    "\u00fc" * 300,
    "nats://a b",
)
#: What a command needs besides the option that is tried, so that it ends soon whatever it is given.
NEEDED: dict[str, list[str]] = {
    "serve": ["--addr", "{taken}", "--also", "none", "--data-dir", "data"],
    # With this URL the command ends, whatever its other options are.
    "demo": ["--url", "nats://a:port"],
    "tail": [],
    "replay": ["plain", "--model", "m"],
    "rules check": ["rules.yml"],
    "rules backtest": ["rules.yml"],
    "config check": ["rules.yml"],
    "prices explain": ["gpt-4o"],
    # Nothing answers on this port.
    "coverage": ["--api", "http://127.0.0.1:1"],
    "doctor": ["--listen", "{taken}"],
    "keys create": ["shop", "--nats", "nats://a:port"],
    "keys list": [],
    "keys rotate": ["0000000000", "--nats", "nats://a:port"],
    "keys revoke": ["0000000000"],
}
#: Options whose values have a form, so that rubbish is never a value of them.
FORMS = {
    ("keys create", "--scopes"),
    ("keys create", "--expires"),
    ("keys create", "--rate"),
    ("keys rotate", "--overlap"),
    ("serve", "--max-spans"),
    ("serve", "--nats-port"),
    ("demo", "--rate"),
    ("demo", "--for"),
    ("demo", "--seed"),
    ("demo", "--history"),
    ("demo", "--addr"),
    ("tail", "--status"),
    ("replay", "--speed"),
    ("replay", "--ending"),
    ("replay", "--reporters"),
    ("prices explain", "--usage"),
    ("prices explain", "--context"),
}
URLS = {
    ("keys create", "--nats"),
    ("keys list", "--nats"),
    ("keys rotate", "--nats"),
    ("keys revoke", "--nats"),
    ("coverage", "--api"),
    ("doctor", "--forward"),
    ("demo", "--url"),
    ("tail", "--nats"),
    ("replay", "--url"),
    ("rules backtest", "--nats"),
}
#: Options that take any text, and would make a command run that has all it needs.
FREE = {("tail", "--model"), ("tail", "--caller")}
RULES = "alerts: [{name: a, metric: total_cost, op: gt, threshold: 1, window: 1h}]\n"


@pytest.fixture
def taken() -> Iterator[str]:
    """An address in use, so that ``serve`` ends with exit code 1 if it accepts its flags."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def options_of(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (command, option) for every option with a value of *command* and of its subcommands."""
    for name, below in getattr(command, "commands", {}).items():
        yield from options_of(below, (*words, name))
    for parameter in command.params:
        if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False):
            yield " ".join(words), parameter.opts[0]


def test_rubbish_in_any_option_of_the_command_gives_one_sentence(tmp_path: Path, taken: str) -> None:
    options = sorted(set(options_of(typer.main.get_command(cli.app))) - FREE)
    assert len(options) > 20
    assert {command for command, _ in options} <= set(NEEDED)
    runs: dict[str, tuple[Command, bool]] = {}
    dice = random.Random(SEED)
    for number, (command, option) in enumerate(options):
        is_url = (command, option) in URLS
        for index, value in enumerate(thinned(NO_URLS if is_url else RUBBISH, dice)):
            words = [*command.split(), *(word.replace("{taken}", taken) for word in NEEDED[command]), option, value]
            has_form = (command, option) in FORMS or (is_url and command != "replay")
            runs[f"{command} {option} {value!r:.40}"] = prepared(tmp_path / f"{number}-{index}", words), has_form
    check_runs(runs)


def test_rubbish_in_any_option_of_a_service_gives_one_sentence(tmp_path: Path, taken: str) -> None:
    """The options of all services are parsed in one place, so one service is enough."""
    runs: dict[str, tuple[Command, bool]] = {}
    for option in ("--addr", "--nats", "--config", "--data-dir"):
        for index, value in enumerate(RUBBISH):
            words = ["--addr", taken, option, value]
            command = prepared(tmp_path / f"{option}{index}", words, "tokentrace_ingest")
            runs[f"{option} {value!r:.40}"] = command, False
    check_runs(runs)


def prepared(directory: Path, words: list[str], module: str = "") -> Command:
    directory.mkdir()
    (directory / "plain").touch()
    (directory / "rules.yml").write_text(RULES)
    return Command(directory, words, module=module)


def check_runs(runs: dict[str, tuple[Command, bool]]) -> None:
    ended = run_commands([command for command, _ in runs.values()])

    def check(case: tuple[Ended, bool]) -> None:
        end, has_form = case
        assert "Traceback" not in end.stderr, end.stderr[-1500:]
        assert end.code in ((2,) if has_form else (0, 1, 2)), (end.code, end.stdout[-300:], end.stderr[-300:])
        if end.code == 2:
            assert end.stderr.count("\n") == 1, end.stderr
            assert len(end.stderr) < 1000

    check_all({line: (end, has_form) for (line, (_, has_form)), end in zip(runs.items(), ended, strict=True)}, check)
