"""A transport may be sent spans while it is sent spans: by a finalizer, a signal handler or a log handler."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kit.programs import assert_ended, run_program
from kit.receiver import Receiver, Reply

_HEAD = """
import gc, json, logging, signal
from tokentrace import FileTransport, HttpTransport, StdoutTransport
transport = eval(url)
def send(name, **fields):
    transport.send([Span(name=name, kind='custom', **fields)])
"""


@pytest.mark.parametrize("transport", ["FileTransport('{path}', buffer_kb=1)", "HttpTransport('{url}', batch_size=10)"])
def test_finalizers_and_signal_handlers_may_send(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    with Receiver(lambda sent: Reply(202)) as server:
        done = run_program(
            _HEAD + "class Stream:\n"
            "    def __init__(self):\n"
            "        self.me = self\n"
            "    def __del__(self):\n"
            "        send('abandoned')\n"
            "handled = 0\n"
            "def handle(*_):\n"
            "    global handled\n"
            "    handled += 1\n"
            "    send('handled')\n"
            "    transport.stats()\n"
            "    signal.setitimer(signal.ITIMER_REAL, 0.002)\n"
            "signal.signal(signal.SIGALRM, handle)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.002)\n"
            "for index in range(2000):\n"
            "    gc.set_threshold(5 + index % 97)\n"
            "    Stream()\n"
            "    send('sent')\n"
            "signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
            "gc.set_threshold(700)\n"
            "gc.collect()\n"
            "assert transport.flush(20), transport.stats()\n"
            "assert handled\n"
            "print(handled, *transport.stats())\n",
            transport.format(path=path, url=server.url),
        )
        assert_ended(done)
        handled, sent, acked, *others = map(int, done.stdout.split())
        assert (sent, acked) == (4000 + handled, 4000 + handled)
        assert not any(others), done.stdout
        if "File" in transport:
            found = Counter(json.loads(line)["name"] for line in path.read_bytes().splitlines())
        else:
            found = Counter(span["name"] for request in server.sent for span in request.json())
    assert found == Counter(sent=2000, abandoned=2000, handled=handled)


@pytest.mark.parametrize("transport", ["FileTransport('{path}')", "StdoutTransport()"])
def test_a_log_handler_may_send(transport: str, tmp_path: Path) -> None:
    done = run_program(
        _HEAD + "class Handler(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        send('logged')\n"
        "logging.getLogger('tokentrace').addHandler(Handler())\n"
        "def work():\n"
        "    for _ in range(50):\n"
        "        send('bad', trace_id='\\n')\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for thread in threads:\n"
        "    thread.start()\n"
        "for thread in threads:\n"
        "    thread.join()\n"
        "assert transport.flush(20)\n"
        "stats = transport.stats()\n"
        "assert stats.acked >= 1 and stats.queue_depth == 0, stats\n",
        transport.format(path=tmp_path / "traces.jsonl"),
    )
    assert_ended(done)
