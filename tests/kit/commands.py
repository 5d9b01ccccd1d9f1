"""
Runs of the ``tokentrace`` command.

Loading is nearly all that a run does if it ends at once. ``run_commands`` loads everything once and forks for each run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kit.environment import plain_environment

_PROGRAM = """
import gc, json, os, runpy, signal, sys
import tokentrace_standalone.cli, tokentrace_standalone.pipeline
from tokentrace_standalone.__main__ import main

def run(directory, words, environ, module):
    signal.alarm(30)
    os.chdir(directory)
    os.environ.update(environ)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open("command." + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    try:
        if not module:
            sys.exit(main(words))
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        # Not sys.exit, because freeing everything that was loaded takes longer than the run.
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

gc.freeze()
for arguments in json.load(sys.stdin):
    child = os.fork()
    if not child:
        run(*arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Command(NamedTuple):
    """
    A run of the command.

    Attributes:
        directory: The working directory, which no other run may share.
        words: The arguments.
        environ: Environment variables besides those that keep a test on this machine.
        module: The program to run instead of the command, such as ``tokentrace_api``.
    """

    directory: Path
    words: Sequence[str]
    environ: Mapping[str, str] = {}
    module: str = ""


class Ended(NamedTuple):
    """The end of a run; a negative code is the signal that ended it."""

    code: int
    stdout: str
    stderr: str


def run_command(directory: Path, *words: str) -> Ended:
    """Run the command in a process that loads everything itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tokentrace_standalone", *words],
        cwd=directory,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_commands(commands: Sequence[Command]) -> list[Ended]:
    """Run *commands* one after the other, each in a process that ends after 30 s at the latest."""
    runs = [
        (str(command.directory), list(command.words), dict(command.environ), command.module) for command in commands
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(runs),
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [
        Ended(
            int(code),
            *((command.directory / f"command.{name}").read_text(errors="replace") for name in ("stdout", "stderr")),
        )
        for code, command in zip(done.stdout.split(), commands, strict=True)
    ]
