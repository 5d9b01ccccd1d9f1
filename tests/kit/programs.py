"""Small Python programs that use a reporter, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

_HEAD = """
import faulthandler, os, sys, threading, time
from tokentrace import Reporter, Span
url = sys.argv[1]
"""


def run_program(text: str, *arguments: str, forks: bool = False) -> subprocess.CompletedProcess[str]:
    """
    Run the Python program *text*, in which ``Reporter``, ``Span`` and ``url`` (the first argument) are defined.

    After 25 s the program prints the stacks of its threads and ends; after 40 s its process group is killed.

    Args:
        forks: The program forks. It has no limit of 25 s, because a forked child would wait at its end for a thread
            that exists only in the parent.
    """
    limit = "" if forks else "faulthandler.dump_traceback_later(25, exit=True)\n"
    program = subprocess.Popen(
        [sys.executable, "-c", _HEAD + limit + text, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = program.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        output, errors = program.communicate()
        errors += "\nkilled after 40 s"
    return subprocess.CompletedProcess(program.args, program.returncode, output, errors)


def assert_ended(done: subprocess.CompletedProcess[str], code: int = 0) -> None:
    """Check that the program ended with exit code *code* and wrote nothing to stderr."""
    assert (done.returncode, done.stderr) == (code, "")
