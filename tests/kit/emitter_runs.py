"""
Runs of emitters of OpenTelemetry spans, each set up as its page in ``docs/how-to/otlp`` says.

The blocks of the page are what runs: ``pip install`` and ``npm install`` make an environment, ``export`` sets
variables, and the last line starts the program of the page, which then makes the calls of ``emitter_cases`` too.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import loopback_only

from kit.emitter_cases import CASES
from kit.emitters import Emitter
from kit.environment import GUARD, ROOT
from kit.llm_server import LlmServer, Script, Told

PAGES = ROOT / "docs" / "how-to" / "otlp"
#: Where the pages say that tokentrace listens.
ADDRESS = "http://127.0.0.1:8700"
#: What the program that makes the calls needs besides an emitter.
_ALSO = ["pytest"]
_INSTALL_S, _RUN_S = 600, 300


class CannotInstall(Exception):
    """The packages of an emitter cannot be installed here."""


@dataclass(frozen=True)
class SetUp:
    """
    What the blocks of a page say.

    Attributes:
        packages: The packages to install.
        exports: Environment variables.
        command: The words of the line that starts the program, such as ``python app.py``.
        program: The text of the program.
    """

    packages: tuple[str, ...]
    exports: Mapping[str, str]
    command: tuple[str, ...]
    program: str

    @property
    def is_node(self) -> bool:
        return self.command[-2] == "node"


@dataclass(frozen=True)
class Run:
    """
    What a run has led to.

    Attributes:
        told: What the emitter's client was told by the server of models.
        output: The output of the program.
        refused: The hosts that the program wanted to reach besides this machine.
    """

    told: list[Told]
    output: str
    refused: list[str]


def read_page(emitter: Emitter) -> SetUp:
    """Return what the page of *emitter* says, below its heading if the page has several set-ups."""
    text = (PAGES / f"{emitter.page}.md").read_text()
    if emitter.section:
        text = text.partition(f"\n## {emitter.section}\n")[2].partition("\n## ")[0]
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (program,) = re.findall(r"^```(?:python|js)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    packages: list[str] = []
    exports: dict[str, str] = {}
    *lines, last = (shlex.split(line) for line in shell.splitlines())
    for words in lines:
        if words[1] == "install":
            packages += words[2:]
        else:
            assert words[0] == "export", words
            exports |= dict(word.split("=", 1) for word in words[1:])
    return SetUp(tuple(packages), exports, tuple(last), program)


class Environments:
    """The environments of emitters, each made once, in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[tuple[str, ...], Path] = {}
        self._numbers = itertools.count()

    def make(self, set_up: SetUp) -> Path:
        """Return the folder of an environment with the packages of *set_up*; raise CannotInstall if there is none."""
        if set_up.packages not in self._made:
            # A failed installation leaves its folder behind.
            path = self.folder / str(next(self._numbers))
            path.mkdir(parents=True)
            (self._node if set_up.is_node else self._python)(path, set_up.packages)
            self._made[set_up.packages] = path
        return self._made[set_up.packages]

    def _python(self, path: Path, packages: tuple[str, ...]) -> None:
        # pip spends minutes on what depends on forty instrumentations, uv seconds.
        tools = self.folder / "tools"
        if not tools.exists():
            venv.create(tools, symlinks=True, with_pip=False)
            _install(
                [sys.executable, "-m", "pip", "--python", str(tools / "bin" / "python"), "install", "--quiet", "uv"]
            )
        venv.create(path, symlinks=True, with_pip=False)
        # pip trusts what the system trusts, and uv only if it is told to.
        uv = [str(tools / "bin" / "uv"), "pip", "install", "--quiet", "--system-certs"]
        _install([*uv, "--python", str(path / "bin" / "python"), *packages, *_ALSO])

    def _node(self, path: Path, packages: tuple[str, ...]) -> None:
        if shutil.which("npm") is None:
            raise CannotInstall("there is no npm")
        (path / "package.json").write_text('{"private": true}')
        _install(["npm", "install", "--silent", "--no-audit", "--no-fund", *packages], path)


def _install(command: list[str], folder: Path | None = None) -> None:
    # The registry is not on loopback, and is the only place that anything asks.
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", loopback_only.LOG)}
    try:
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"not installed within {_INSTALL_S} s: {command[-3:]}") from None
    if done.returncode:
        raise CannotInstall((done.stderr or done.stdout)[-400:])


def run(
    emitter: Emitter, folder: Path, set_up: SetUp, server: LlmServer, url: str, programs: Path | None = None
) -> Run:
    """
    Run *emitter*, which sends its spans to *url*, with the cases that it can do.

    Args:
        folder: The environment, of ``Environments.make``.
        programs: Where its interpreter is; None = in ``folder/bin``.
    """
    server.start(Script())
    server.numbers_ids = True
    server.scripts = {case.model: case.script() for case in CASES}
    program = set_up.program.replace("'shop'", f"'{emitter.name}'").replace('"shop"', f'"{emitter.name}"')
    (folder / ("app.mjs" if set_up.is_node else "app.py")).write_text(program)
    refused = folder / "refused"
    refused.write_text("")
    node = "/v1" if set_up.is_node else ""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        **{name: value.replace(ADDRESS, url) for name, value in set_up.exports.items()},
        "OTEL_SERVICE_NAME": emitter.name,
        # All spans in one request: a failed call that is told twice is one call only then.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": f"{server.url}{node}",
        "PYTHONPATH": os.pathsep.join(map(str, (GUARD, ROOT / "tests"))),
        loopback_only.LOG: str(refused),
    }
    command = _command(emitter, folder, programs or folder / "bin", set_up)
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_RUN_S)
    assert ran.returncode == 0, f"{emitter.name}: {ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    hosts = sorted(set(re.findall(r"'([^']+)' would leave", refused.read_text())))
    return Run(list(server.told), ran.stdout + ran.stderr, hosts)


def _command(emitter: Emitter, folder: Path, programs: Path, set_up: SetUp) -> list[str]:
    *launcher, interpreter, _ = set_up.command
    cases = [case for case in CASES if emitter.does(case) and case.name != "page"]
    if interpreter == "node":
        shutil.copy(ROOT / "tests" / "kit" / "emitter_program.mjs", folder)
        shown = [
            {"provider": case.provider, "name": case.name, "model": case.model, "fails": case.counts is None}
            for case in cases
        ]
        return ["node", "emitter_program.mjs", "./app.mjs", json.dumps(shown)]
    started = [str(programs / word) for word in (*launcher, interpreter)]
    names = [f"{case.provider}:{case.name}" for case in cases]
    return [*started, "-m", "kit.emitter_program", "app.py", emitter.driver, *names]
