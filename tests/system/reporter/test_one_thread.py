"""All reporters of a process share one thread, disturb each other in nothing, and leave nothing behind."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import HttpEndpoint, ignore_ungreeted_connections
from kit.pipeline import free_port
from kit.programs import assert_ended, run_program
from kit.raw_stream import read_raw, span_names
from tokentrace import Reporter

pytestmark = ignore_ungreeted_connections

_LEFT = """
import gc
def left():
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith('tokentrace')]
    return names, len(os.listdir('/proc/self/fd'))
def until(expected):
    deadline = time.monotonic() + 20
    while (found := left()) != expected:
        assert time.monotonic() < deadline, (found, expected)
        gc.collect()
        time.sleep(0.02)
Reporter('warm', url).close()
import tokentrace.client.reporter.over_nats, tokentrace.client.reporter.over_http
before = left()
assert before[0] == []
"""


def test_fifty_reporters_share_one_thread_and_leave_no_descriptor_when_they_are_forgotten(url: str) -> None:
    done = run_program(
        _LEFT + "reporters = [Reporter(f'r{number}', url) for number in range(50)]\n"
        "for number, reporter in enumerate(reporters):\n"
        "    reporter.report(Span(name=f'n{number}', kind='custom'))\n"
        "assert all(reporter.flush(15) for reporter in reporters)\n"
        "assert left()[0] == ['tokentrace-reporter'], left()\n"
        "del reporter, reporters\n"
        "until(before)\n",
        url,
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter(f"n{number}" for number in range(50))


@pytest.mark.parametrize("carrier", ["nats", "http"])
def test_reporters_that_are_made_and_forgotten_in_turn_send_all_and_leave_nothing(url: str, carrier: str) -> None:
    with HttpEndpoint() as endpoint:
        done = run_program(
            _LEFT + "for number in range(30):\n"
            "    Reporter('r', url).report(Span(name=f'n{number}', kind='custom'))\n"
            "until(before)\n",
            url if carrier == "nats" else endpoint.url,
        )
        assert_ended(done)
        if carrier == "http":
            assert len(endpoint.bodies) == 30
            return
    assert span_names(read_raw(url)) == Counter(f"n{number}" for number in range(30))


def test_a_reporter_is_used_again_after_all_others_were_closed(url: str) -> None:
    done = run_program(
        _LEFT + "for number in range(5):\n"
        "    with Reporter('r', url) as reporter:\n"
        "        reporter.report(Span(name=f'n{number}', kind='custom'))\n"
        "    del reporter\n"
        "    until(before)\n",
        url,
    )
    assert_ended(done)
    assert span_names(read_raw(url)).total() == 5


def test_a_forgotten_reporter_sends_its_spans_once_the_server_is_back(url: str, broker: Broker) -> None:
    broker.kill()
    done = run_program(
        _LEFT + "import subprocess\n"
        "Reporter('forgotten', url).report(Span(name='late', kind='custom'))\n"
        "gc.collect()\n"
        "time.sleep(1)\n"
        "print('ready', flush=True)\n"
        "broker = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "until(before)\n"
        "broker.terminate()\n"
        "broker.wait()\n",
        url,
        *broker.command,
    )
    assert_ended(done)
    broker.start()
    assert span_names(read_raw(url)) == Counter(["late"])


def test_reporters_that_wait_for_a_server_hold_no_other_up(
    url: str, close_later: Callable[[Reporter], Reporter]
) -> None:
    """Neither a server that says nothing, nor one that is not there, nor a name that is looked up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for bad in (f"http://127.0.0.1:{port}", f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"):
            close_later(Reporter("bad", bad)).report(make_span())
        with Reporter("good", url) as good:
            for number in range(20):
                good.report(make_span(name=f"n{number}"))
                # A silent server would hold a request for ten seconds.
                assert good.flush(8)
    assert span_names(read_raw(url)).total() == 20


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.5])
def test_a_fault_in_the_thread_lets_every_reporter_start_again(url: str, pause_s: float) -> None:
    """With a short pause, the second fault comes while the first one is handled."""
    done = run_program(
        "import ctypes\n"
        "reporters = [Reporter(f'r{number}', url) for number in range(5)]\n"
        "def report(text):\n"
        "    for number, reporter in enumerate(reporters):\n"
        "        reporter.report(Span(name=f'{text}{number}', kind='custom'))\n"
        "report('a')\n"
        "assert all(reporter.flush(15) for reporter in reporters)\n"
        "for _ in range(3):\n"
        "    for thread in threading.enumerate():\n"
        "        if thread.name == 'tokentrace-reporter':\n"
        "            identity = ctypes.c_ulong(thread.ident)\n"
        "            ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(RuntimeError))\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "report('b')\n"
        "assert all(reporter.flush(15) for reporter in reporters), [each.stats() for each in reporters]\n"
        "assert all(reporter.stats().acked == 2 for reporter in reporters), [each.stats() for each in reporters]\n",
        url,
        str(pause_s),
    )
    assert done.returncode == 0, done.stderr
    assert "starts again" in done.stderr
    stored = {message.id: message for message in read_raw(url)}
    assert span_names(list(stored.values())) == Counter(f"{text}{number}" for text in "ab" for number in range(5))
