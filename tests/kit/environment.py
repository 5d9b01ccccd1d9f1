"""The environment of the processes that tests start: it keeps them on this machine."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GUARD = ROOT / "tests" / "guard"
#: Hosts that every process of a test may deliver alerts to.
ALLOWED = {"TOKENTRACE_ALERT_ALLOW_HOSTS": "127.0.0.0/8,::1,localhost"}


def plain_environment() -> dict[str, str]:
    """The environment without settings of tokentrace, but for those that keep a test on this machine."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TOKENTRACE_")} | ALLOWED
