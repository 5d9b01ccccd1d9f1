"""A process that appends ``numbered_log`` to a store and ends without closing it, if it is not killed before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kit.environment import ROOT

_PROGRAM = """
import os, sys
from pathlib import Path
from kit.store_log import numbered_log, open_store, read_to, segment
segment.MAX_BYTES = int(sys.argv[2])
store, log = open_store(Path(sys.argv[1]), shards=1), numbered_log(int(sys.argv[3]))
store.catalog.database.run("SET checkpoint_threshold = '20KB'" if sys.argv[4] else "SELECT 1")
items = log.after(store)
while items:
    store.append(items[:3])
    del items[:3]
    print(read_to(store), flush=True)
os._exit(0)
"""


def start_appending(directory: Path, messages: int, max_bytes: int, *, checkpoint: bool) -> subprocess.Popen[str]:
    """
    Start the process; after each append it prints a line with the last sequence number in the store.

    Args:
        messages: Length of the log.
        max_bytes: Size of a file, bytes, at which the store starts a new one.
        checkpoint: Let DuckDB write its WAL back often.
    """
    arguments = [str(directory), str(max_bytes), str(messages), "x" if checkpoint else ""]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests")])},
    )
