"""The package as a user installs it: a wheel in a fresh environment, with chosen dependencies of the running one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from kit.environment import PATIENCE, ROOT, plain_environment


def build_wheel(directory: Path) -> Path:
    """Build the wheel of this project into *directory*, without a registry, and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


class Install:
    """
    A virtual environment with the wheel and the modules of a base install, which are links to those of this one.

    Args:
        directory: Where the environment is made.
        wheel: The wheel.
        modules: Further modules, such as those of an extra.
    """

    def __init__(self, directory: Path, wheel: Path, modules: Sequence[str] = ()) -> None:
        self.bin = directory / "env" / "bin"
        self._directory = directory
        venv.create(directory / "env", symlinks=True, with_pip=False)
        # The outer pip installs, because an environment without one is made in no time.
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*command, "--no-index", "--no-deps", str(wheel)], check=True, timeout=60 * PATIENCE)
        (packages,) = (directory / "env" / "lib").glob("python*/site-packages")
        for name in ("msgspec", "nats", *modules):
            (packages / name).symlink_to(Path(importlib.import_module(name).__file__ or "").parent)

    def run(self, program: str, *words: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Run a program of the environment; return its exit code and its two outputs."""
        ended = subprocess.run(
            [str(self.bin / program), *words],
            cwd=self._directory,
            env={**plain_environment(), **(env or {})},
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    def python(self, text: str) -> str:
        """Run a Python program, check that it succeeds without a word on standard error, and return what it prints."""
        code, output, errors = self.run("python", "-W", "error", "-c", text)
        assert (code, errors) == (0, ""), errors
        return output
