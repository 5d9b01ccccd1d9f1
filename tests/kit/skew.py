"""Services whose host has a wrong clock."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from kit.environment import GUARD

_SITECUSTOMIZE = textwrap.dedent(
    """
    import time
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + {seconds}
    time.time_ns = lambda: _time_ns() + {seconds} * 1_000_000_000
    import loopback_only
    loopback_only.install()
    """
)


def skewed(directory: Path, seconds: int) -> dict[str, str]:
    """
    Return environment variables with which a Python process reads a clock that is *seconds* ahead.

    Args:
        directory: A new directory, into which a module is written that the process loads first.
    """
    directory.mkdir(parents=True)
    (directory / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(seconds=seconds))
    return {"PYTHONPATH": os.pathsep.join([str(directory), str(GUARD)])}
