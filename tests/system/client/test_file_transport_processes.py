"""Files that several processes write, that are killed, fork, rotate at the same time, or just end."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kit.environment import ROOT
from kit.examples import SEED
from kit.programs import assert_ended, run_program
from kit.reporting import until

_WRITER = """
import sys
from tokentrace import FileTransport, Span
path, name, count, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
transport = FileTransport(path, **options)
print("started", flush=True)
for index in range(count):
    transport.send([Span(name=f"{name}-{index}", kind="custom", error="x" * (index % 7 * 1000))])
    if index % 50 == 49:
        assert transport.flush(60)
transport.close(60)
assert transport.stats().acked == count, transport.stats()
"""

_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


def writer(path: Path, name: str, count: int, **options: object) -> subprocess.Popen[str]:
    """Start a process that writes *count* spans to *path*."""
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), name, str(count), repr(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def names(*files: Path) -> list[str]:
    """Return the names of the spans in *files*, of which every line must be a whole one."""
    found = []
    for file in files:
        data = file.read_bytes()
        assert data.endswith(b"\n") or not data, file
        found += [json.loads(line)["name"] for line in data.splitlines()]
    return found


def ended(*processes: subprocess.Popen[str]) -> None:
    """Wait until *processes* have ended well."""
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")


def test_four_processes_share_a_file_and_every_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    ended(*[writer(path, f"p{number}", 1000) for number in range(4)])
    assert Counter(names(path)) == Counter(f"p{number}-{index}" for number in range(4) for index in range(1000))


def test_processes_that_rotate_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    options = {"rotate": True, "max_size_mb": 0.05, "max_files": 10_000}
    ended(*[writer(path, f"p{number}", 1000, **options) for number in range(3)])
    files = [file for file in tmp_path.iterdir() if file != path]
    assert len(files) > 50
    assert all(file.name.startswith("traces.20") for file in files)
    assert Counter(names(path, *files)) == Counter(f"p{number}-{index}" for number in range(3) for index in range(1000))


@pytest.mark.story
def test_processes_that_are_killed_while_they_write_leave_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    dice = random.Random(SEED)
    written = 0
    for round_ in range(12):
        processes = [writer(path, f"r{round_}p{number}", 1_000_000, buffer_kb=1) for number in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
        size = path.stat().st_size if path.exists() else 0
        until(lambda size=size: path.exists() and path.stat().st_size > size, "written")  # type: ignore[misc]
        time.sleep(dice.random() * 0.2)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        # Only the very end may be unfinished, and the next process that writes removes it.
        *lines, last = path.read_bytes().split(b"\n")
        assert all(json.loads(line) for line in lines)
        assert b"\n" not in last
        written += 1
    ended(writer(path, "last", 1))
    assert written == 12
    found = names(path)
    assert found[-1] == "last-0"
    assert len(set(found)) == len(found)


def test_a_stopped_process_that_holds_the_lock_does_not_stop_the_end_of_another(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        done = run_program(
            "from tokentrace import FileTransport\n"
            "transport = FileTransport(url)\n"
            "transport.send([Span(name='a', kind='custom')])\n"
            "transport.close(0.5)\n"
            "assert transport.stats().dropped == 1, transport.stats()\n",
            str(path),
        )
    finally:
        holder.kill()
        holder.communicate()
    assert done.returncode == 0, done.stderr
    assert "spans lost: 1 (1 dropped" in done.stderr


@pytest.mark.parametrize("end", ["", "sys.exit(3)\n", "raise RuntimeError('end')\n"])
def test_a_program_that_just_ends_writes_its_spans_first(tmp_path: Path, end: str) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "transport = FileTransport(url)\n"
        "transport.send([Span(name=f'{index}', kind='custom') for index in range(500)])\n" + end,
        str(path),
    )
    assert "tokentrace" not in done.stderr
    assert names(path) == [f"{index}" for index in range(500)]


def test_spans_of_a_transport_that_is_no_longer_used_are_written(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "import gc\n"
        "FileTransport(url).send([Span(name='a', kind='custom')])\n"
        "gc.collect()\n",
        str(path),
    )
    assert_ended(done)
    assert names(path) == ["a"]


def test_a_forked_child_starts_empty_and_both_write_their_own_spans(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "transport = FileTransport(url)\n"
        "transport.send([Span(name='before', kind='custom')])\n"
        "assert transport.flush(30)\n"
        "transport.send([Span(name=f'parent-{index}', kind='custom') for index in range(300)])\n"
        "for child in range(8):\n"
        "    if os.fork() == 0:\n"
        "        assert not any(transport.stats()), transport.stats()\n"
        "        transport.send([Span(name=f'child-{child}-{index}', kind='custom') for index in range(50)])\n"
        "        sys.exit(0)\n"
        "for child in range(8):\n"
        "    assert os.wait()[1] == 0\n"
        "transport.send([Span(name='after', kind='custom')])\n"
        "assert transport.flush(30)\n"
        "assert transport.stats().acked == 302, transport.stats()\n",
        str(path),
        forks=True,
    )
    assert_ended(done)
    assert Counter(names(path)) == Counter(
        [
            "before",
            "after",
            *(f"parent-{index}" for index in range(300)),
            *(f"child-{child}-{index}" for child in range(8) for index in range(50)),
        ]
    )


def test_children_forked_while_threads_send_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "transport = FileTransport(url, buffer_kb=1)\n"
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        transport.send([Span(name='parent', kind='custom')])\n"
        "        time.sleep(0.0001)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for thread in threads:\n"
        "    thread.start()\n"
        "for child in range(12):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        transport.send([Span(name=f'child-{child}-{index}', kind='custom') for index in range(5)])\n"
        "        sys.exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "stop.set()\n"
        "for thread in threads:\n"
        "    thread.join()\n"
        "assert transport.flush(60)\n"
        "print(transport.stats().acked)\n",
        str(path),
        forks=True,
    )
    assert_ended(done)
    found = Counter(names(path))
    assert found.pop("parent") == int(done.stdout.split()[-1])
    assert found == Counter(f"child-{child}-{index}" for child in range(12) for index in range(5))


def test_a_multiprocessing_child_writes_its_spans_before_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "import multiprocessing\n"
        "from tokentrace import FileTransport\n"
        "transport = FileTransport(url)\n"
        "transport.send([Span(name='parent', kind='custom')])\n"
        "def work():\n"
        "    transport.send([Span(name='child', kind='custom')])\n"
        "child = multiprocessing.get_context('fork').Process(target=work)\n"
        "child.start()\n"
        "child.join(20)\n"
        "assert child.exitcode == 0\n",
        str(path),
        forks=True,
    )
    assert_ended(done)
    assert Counter(names(path)) == Counter(["parent", "child"])


def test_spans_are_written_although_no_thread_can_be_started(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "def refuse(self):\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = refuse\n"
        "transport = FileTransport(url)\n"
        "transport.send([Span(name='a', kind='custom')])\n"
        "assert transport.flush(20)\n"
        "transport.send([Span(name='b', kind='custom')])\n",
        str(path),
    )
    assert_ended(done)
    assert names(path) == ["a", "b"]


def test_a_thread_that_has_nothing_to_do_ends_and_the_next_span_starts_another(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    done = run_program(
        "from tokentrace import FileTransport\n"
        "from tokentrace.client.transports import background\n"
        "background._IDLE_S = 0.05\n"
        "transport = FileTransport(url)\n"
        "for index in range(5):\n"
        "    transport.send([Span(name=f'{index}', kind='custom')])\n"
        "    assert transport.flush(20)\n"
        "    while threading.active_count() > 1:\n"
        "        time.sleep(0.01)\n"
        "    files = [f'/proc/self/fd/{name}' for name in os.listdir('/proc/self/fd')]\n"
        "    assert not [file for file in files if os.path.exists(file) and os.path.samefile(file, url)]\n",
        str(path),
    )
    assert_ended(done)
    assert names(path) == [f"{index}" for index in range(5)]
