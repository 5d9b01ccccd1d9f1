"""The examples, type-checked as a user checks a program: strictly, in a directory without settings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.environment import PATIENCE, ROOT


@pytest.mark.story
def test_every_example_passes_mypy_strict_outside_of_the_repository(tmp_path: Path) -> None:
    programs = sorted((ROOT / "examples").glob("*.py"))
    assert len(programs) >= 12
    for program in programs:
        shutil.copy(program, tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "--config-file=", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300 * PATIENCE,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"no issues found in {len(programs)} source files" in ran.stdout
