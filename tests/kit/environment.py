"""Paths and environment variables for the processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path

#: How many times longer than its limit a wait lasts before it fails: limits are those of a machine that is not busy.
PATIENCE = 6
ROOT = Path(__file__).parent.parent.parent
GUARD = ROOT / "tests" / "guard"
#: The setting that lets test processes deliver alerts to this machine only.
ALLOWED = {"TOKENTRACE_ALERT_ALLOW_HOSTS": "127.0.0.0/8,::1,localhost"}


def plain_environment() -> dict[str, str]:
    """Return the environment of this process with ``ALLOWED`` as the only settings of tokentrace."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TOKENTRACE_")} | ALLOWED
