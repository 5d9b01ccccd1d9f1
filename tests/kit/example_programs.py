"""Programs under examples/, run as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from kit.environment import PATIENCE, ROOT

EXAMPLES = ROOT / "examples"


def start(name: str, url: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """
    Start the example *name* for the pipeline at *url*.

    Args:
        name: The file.
        url: Where spans go.
        words: Arguments of the program.
        env: Environment variables besides those of the test process.
    """
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *words],
        env={**os.environ, "TOKENTRACE_URL": url, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(name: str, url: str, *, env: Mapping[str, str] | None = None) -> str:
    """Run the example *name* to its end, check that it succeeds, and return its output."""
    running = start(name, url, env=env)
    output, _ = running.communicate(timeout=60 * PATIENCE)
    assert running.returncode == 0, output
    return output
