"""``make screenshots`` makes the pictures of docs/images; what they show is not compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kit.environment import PATIENCE, ROOT
from kit.examples import WHOLE
from kit.page_world import needs_chromium

pytestmark = needs_chromium


@pytest.mark.skipif(not WHOLE, reason="the pictures are made by make test-all")
def test_a_picture_of_every_kind_is_made_and_small_enough_for_the_readme(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "screenshots.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert set(made) == {path.name for path in (ROOT / "docs" / "images").glob("*.png")}
    assert all(10_000 < size <= 150 * 1024 for size in made.values()), made
