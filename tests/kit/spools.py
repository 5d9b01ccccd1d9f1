"""Spools that processes left when they were killed, and the ports of servers that are away."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kit.programs import run_program
from kit.reporting import until
from tokentrace.client.spool import Header, Record, SpoolFile, read_file
from tokentrace.client.spool.files import SUFFIX, Writer
from tokentrace.records import Batch, Span, encode_batches

#: What a killed process reported earlier than this before its end was on disk, seconds in which the process ran.
PROMISED_S = 1.5
#: Of a longer time between two spans only this part counts: the process was waiting for a processor.
_LONGEST_STEP_S = 0.05

#: Reports a span each 5 ms, and writes when it did so.
_KILLED = """
import sys, time
from tokentrace import Reporter, Span
reporter = Reporter("killed", sys.argv[1], spool=sys.argv[2])
number = 0
while True:
    reporter.report(Span(name=f"{sys.argv[3]}-{number}", kind="custom"))
    print(number, time.monotonic(), flush=True)
    number += 1
    time.sleep(0.005)
"""


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port of 127.0.0.1 that refuses connections during the block: it is bound, so no other process takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def files(spool: Path) -> list[Path]:
    """Return the files of all directories of *spool*, in the order of their paths."""
    found: list[Path] = []
    for directory in sorted(spool.glob("*")):
        # Another process removes a directory once it has sent its files.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found += (path for path in sorted(directory.iterdir()) if path.name.endswith(SUFFIX))
    return found


def is_empty(spool: Path) -> bool:
    """Return True if no directory of *spool* has a file."""
    return not files(spool)


def readable(path: Path) -> SpoolFile:
    """Return the content of a file whose head is whole."""
    file = read_file(path)
    assert file is not None
    return file


def kill_while_away(url: str, spool: Path, name: str, seconds: float) -> tuple[set[str], set[str]]:
    """
    Run a program until *seconds* after its first spans are on disk, kill it, and return what it reported.

    Returns:
        The names of all spans that it reported, and the names of those that must be on disk.
    """
    before = set(files(spool))
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, url, str(spool), name], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        output: list[str] = []
        reading = threading.Thread(target=output.extend, args=(program.stdout,))
        reading.start()
        try:
            until(lambda: any(_has_records(path) for path in files(spool) if path not in before), "spans on disk")
            time.sleep(seconds)
        finally:
            os.kill(program.pid, signal.SIGKILL)
            reading.join()
    lines = [line.split() for line in output if line.endswith("\n")]
    reported = [f"{name}-{number}" for number, _ in lines]
    instants = [float(at) for _, at in lines]
    steps = [min(after - at, _LONGEST_STEP_S) for at, after in itertools.pairwise(instants)]
    # How long the process ran after each of its spans.
    ran = [*itertools.accumulate(reversed(steps), initial=0.0)][::-1]
    return set(reported), {span for span, lived in zip(reported, ran, strict=True) if lived > PROMISED_S}


def _has_records(path: Path) -> bool:
    file = read_file(path)
    return file is not None and bool(file.records)


def left_behind(spool: Path, spans: int) -> Path:
    """Return the only file of a spool in which a killed process left *spans* batches of one span each."""
    program = (
        "reporter = Reporter('dead', url, spool=sys.argv[2])\n"
        "for number in range(int(sys.argv[3])):\n"
        "    reporter.report(Span(name=f'n{number}', kind='custom'))\n"
        "    while reporter.stats().spooled <= number:\n"
        "        time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with refusing_port() as port:
        done = run_program(program, f"nats://127.0.0.1:{port}", str(spool), str(spans))
    assert done.returncode == -signal.SIGKILL, done.stderr
    (path,) = files(spool)
    return path


def written(spool: Path, reporter: str, *names: str, first: int = 1, age_ns: int = 0, note: str = "") -> Path:
    """
    Write a file as a reporter that died would have left it, with one batch for each of *names*.

    Args:
        reporter: The id of the reporter; its files differ by *first*.
        first: The number of the first batch.
        age_ns: How long ago the batches were written.
        note: An attribute of each span, to make it large.
    """
    directory = spool / reporter
    directory.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    writer = Writer(directory / f"{first:020}{SUFFIX}", Header("default", "dead", reporter, now - age_ns, "1"))
    attributes = {"note": note} if note else {}
    for sequence, name in enumerate(names, first):
        span = Span(name=name, kind="custom", ended_ns=now, attributes=attributes)
        payload = encode_batches([Batch(id=reporter, sequence=sequence, source="dead", spans=[span])])
        writer.append(Record(sequence, now - age_ns, payload), sync=False)
    writer.close()
    os.utime(writer.path, ns=(now - age_ns, now - age_ns))
    return writer.path
