"""The cases of ``test_track_matrix`` with the oldest SDKs that are supported, in environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import loopback_only
import pytest

from kit.environment import GUARD, ROOT
from kit.examples import PROFILE

OLDEST = {"openai": "openai==1.109.1", "anthropic": "anthropic==0.125.0"}


@pytest.mark.skipif(PROFILE != "all", reason="make test-all only: it installs older SDKs")
@pytest.mark.parametrize("sdk", OLDEST)
def test_the_oldest_sdk_is_tracked_like_the_newest(sdk: str, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True, with_pip=False)
    python = environment / "bin" / "python"
    # pytest is here because the kit registers its assertions there.
    wanted = [OLDEST[sdk], "msgspec", "nats-py", "pytest"]
    # The registry is not on loopback, and is the only place that anything asks.
    guards = ("PYTHONPATH", loopback_only.LOG)
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *wanted],
        env={name: value for name, value in os.environ.items() if name not in guards},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if installed.returncode:
        pytest.skip(f"{OLDEST[sdk]} cannot be installed: {installed.stderr[-300:]}")
    ran = subprocess.run(
        [python, "-m", "kit.sdk_matrix", sdk],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (GUARD, ROOT / "tests", ROOT / "shared")))},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert " 0 wrong" in ran.stdout
