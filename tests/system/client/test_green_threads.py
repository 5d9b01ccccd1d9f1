"""In a program that gevent or eventlet has patched, the sender is a thread of the system and sends by itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kit.peers import ignore_ungreeted_connections
from kit.pipeline import Pipeline
from kit.reported_spans import counted
from kit.spools import refusing_port

pytestmark = ignore_ungreeted_connections

_PATCHES = {
    "none": "def spawn(function): threading.Thread(target=function, daemon=True).start()\n",
    "gevent": "import gevent, gevent.monkey; gevent.monkey.patch_all()\nspawn = gevent.spawn\n",
    "eventlet": (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import eventlet; eventlet.monkey_patch()\nspawn = eventlet.spawn\n"
    ),
}
_HEAD = """
import faulthandler, os, sys, threading, time
faulthandler.dump_traceback_later(60, exit=True)
from tokentrace import Reporter, Span
def span(name):
    return Span(name=name, kind="custom")
"""

#: Reports and then computes, without giving another green thread a turn, until the spans are accepted.
_BLOCKS = """
reporter = Reporter(sys.argv[1], sys.argv[2])
for number in range(1000):
    reporter.report(span(f"n{number}"))
deadline = time.monotonic() + 40
while reporter.stats().acked < 1000 and time.monotonic() < deadline:
    sum(range(10_000))
assert reporter.stats().acked == 1000, reporter.stats()
"""

#: Reports from an asyncio loop, which runs in the main thread.
_ASYNCIO = """
import asyncio
async def main():
    reporter = Reporter(sys.argv[1], sys.argv[2])
    for number in range(1000):
        reporter.report(span(f"n{number}"))
    deadline = time.monotonic() + 40
    while reporter.stats().acked < 1000 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert reporter.stats().acked == 1000, reporter.stats()
asyncio.run(main())
"""

#: Reports from many green threads, and leaves it to the end of the program to send.
_EXITS = """
reporter = Reporter(sys.argv[1], sys.argv[2])
ended = []
def work(index):
    for number in range(50):
        reporter.report(span(f"n{index}-{number}"))
        time.sleep(0)
    ended.append(index)
for index in range(20):
    spawn(lambda index=index: work(index))
while len(ended) < 20:
    time.sleep(0.01)
"""

#: While ``flush`` and ``close`` wait for a server that is away, other green threads go on.
_WAITS = """
turns = []
def count():
    while True:
        turns.append(None)
        time.sleep(0.001)
spawn(count)
reporter = Reporter(sys.argv[1], sys.argv[2])
reporter.report(span("lost"))
assert not reporter.flush(0.5)
flushed = len(turns)
assert flushed > 3, flushed
reporter.close(0.5)
assert len(turns) > flushed + 3, (flushed, len(turns))
assert reporter.stats().dropped == 1, reporter.stats()
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Start a pipeline."""
    serving = Pipeline(tmp_path_factory.mktemp("serve"))
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture(params=list(_PATCHES))
def library(request: pytest.FixtureRequest) -> str:
    """Return what patches the program."""
    name = str(request.param)
    if name != "none" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed here: run make setup")
    return name


def run(library: str, text: str, source: str, url: str) -> str:
    """Run a program that *library* patches; return what it logged."""
    program = "import threading\n" * (library == "none") + _PATCHES[library] + _HEAD + text
    done = subprocess.run([sys.executable, "-c", program, source, url], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("way", ["nats", "http"])
@pytest.mark.parametrize("text", [_BLOCKS, _ASYNCIO, _EXITS], ids=["blocks its hub", "runs asyncio", "ends"])
def test_all_spans_of_a_patched_program_arrive(pipeline: Pipeline, library: str, way: str, text: str) -> None:
    source = f"{library}-{way}-{[_BLOCKS, _ASYNCIO, _EXITS].index(text)}"
    assert run(library, text, source, pipeline.nats_url if way == "nats" else pipeline.url) == ""
    pipeline.until(lambda: counted(pipeline, source) == 1000, "all counted")


def test_waiting_for_the_sender_lets_other_green_threads_run(library: str) -> None:
    with refusing_port() as port:
        assert "spans lost: 1" in run(library, _WAITS, "waits", f"nats://127.0.0.1:{port}")
