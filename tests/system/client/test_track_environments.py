"""
What needs environments of its own: litellm, which is large, and the earliest google-genai that is tracked.

The cases of litellm are in ``kit.litellm_cases``; those of google-genai are the ones of ``test_track_google``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.environment import GUARD, ROOT
from kit.examples import PROFILE

#: What our base installation and the cases need.
_ALWAYS = ["msgspec", "nats-py", "pytest", "pytest-asyncio"]
#: The cache of litellm imports the other three.
_LITELLM = ["litellm==1.110.2", "fastapi", "orjson", "soundfile"]
_GOOGLE = ["google-genai==1.16.1"]
#: This version has no interactions, evaluates no annotations and raises nothing for an error in a stream.
_MISSING_IN_GOOGLE = "not interaction and not function_calls and not event"

pytestmark = pytest.mark.skipif(PROFILE != "all", reason="make test-all only: it installs SDKs")


def _run(folder: Path, wanted: list[str], cases: Path, selected: str = "") -> None:
    """Run *cases* with pytest in a new environment with the packages *wanted*."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=300)
    python = environment / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, *_ALWAYS],
        # Without the guard: the registry of packages is no part of what is tested.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if installed.returncode:
        pytest.skip(f"{wanted[0]} cannot be installed: {installed.stderr[-300:]}")
    options = ["--noconftest", "--quiet", "-c", os.devnull, "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [python, "-m", "pytest", *options, "-k", selected, cases],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (GUARD, ROOT / "tests", ROOT / "shared")))},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


def test_calls_of_litellm_are_tracked(tmp_path: Path) -> None:
    _run(tmp_path, _LITELLM, ROOT / "tests" / "kit" / "litellm_cases.py")


def test_the_earliest_google_genai_is_tracked_like_the_newest(tmp_path: Path) -> None:
    _run(tmp_path, _GOOGLE, ROOT / "tests" / "system" / "client" / "test_track_google.py", _MISSING_IN_GOOGLE)
