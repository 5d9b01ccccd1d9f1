"""Where alerts go besides the alert subject."""

from __future__ import annotations

import sys


def to_stdout(event: bytes) -> None:
    """One JSON line."""
    sys.stdout.write(event.decode() + "\n")
    sys.stdout.flush()
