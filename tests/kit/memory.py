"""The memory of processes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def rss_bytes(pid: int) -> int:
    """Return the resident memory of the process *pid*."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def nats_pid(parent: int) -> int:
    """Return the process id of the nats-server that the process *parent* has started."""
    children = subprocess.run(["pgrep", "-P", str(parent), "nats-server"], capture_output=True, check=True)
    return int(children.stdout.split()[0])
