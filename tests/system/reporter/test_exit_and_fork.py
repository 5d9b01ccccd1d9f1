"""Programs that end or fork: spans are sent before the program ends, and a forked child sends only its own spans."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from kit.broker import Broker
from kit.pipeline import free_port
from kit.programs import assert_ended, run_program
from kit.raw_stream import read_raw, span_names


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_program_that_just_ends_sends_its_spans_first(url: str, broker: Broker, host: str) -> None:
    done = run_program(
        "reporter = Reporter('exit', url)\n"
        "for index in range(3):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n",
        f"nats://{host}:{broker.port}",
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter(["n0", "n1", "n2"])


def test_a_program_of_many_threads_that_calls_sys_exit_sends_its_spans_first(url: str) -> None:
    done = run_program(
        "reporter = Reporter('exit', url)\n"
        "def work(number):\n"
        "    for index in range(50):\n"
        "        reporter.report(Span(name=f'{number}-{index}', kind='custom'))\n"
        "        time.sleep(0.001)\n"
        "for number in range(8):\n"
        "    threading.Thread(target=work, args=(number,)).start()\n"
        "for _ in range(8):\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "sys.exit(3)\n",
        url,
    )
    assert_ended(done, 3)
    assert span_names(read_raw(url)) == Counter(f"{number}-{index}" for number in range(8) for index in range(50))


def test_an_async_program_that_fails_sends_its_spans_first(url: str) -> None:
    done = run_program(
        "import asyncio\n"
        "reporter = Reporter('exit', url)\n"
        "async def main():\n"
        "    reporter.report(Span(name='before', kind='custom'))\n"
        "    await asyncio.sleep(0)\n"
        "    raise SystemExit(5)\n"
        "asyncio.run(main())\n",
        url,
    )
    assert_ended(done, 5)
    assert span_names(read_raw(url)) == Counter(["before"])


def test_a_reporter_created_while_atexit_runs_sends_its_span(url: str) -> None:
    done = run_program(
        "import atexit\n"
        "def last():\n"
        "    with Reporter('late', url) as reporter:\n"
        "        reporter.report(Span(name='late', kind='custom'))\n"
        "atexit.register(last)\n",
        url,
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter(["late"])


def test_a_program_ends_although_an_unreferenced_reporter_cannot_send_its_spans() -> None:
    done = run_program(
        "Reporter('garbage', url).report(Span(name='x', kind='custom'))\nprint('end')\n",
        f"nats://127.0.0.1:{free_port()}",
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "garbage: spans lost: 1 (1 dropped" in done.stderr


def test_a_forked_child_has_its_own_id_and_never_sends_its_parents_spans(url: str, broker: Broker) -> None:
    broker.kill()  # so that spans wait in the parent's queue when it forks
    starting = threading.Timer(1.0, broker.start)
    starting.start()
    done = run_program(
        "reporter = Reporter('forker', url)\n"
        "for index in range(300):\n"
        "    reporter.report(Span(name=f'parent-{index}', kind='custom'))\n"
        "mine = reporter.id\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert reporter.id != mine\n"
        "    assert set(reporter.stats()) == {0}\n"
        "    for index in range(50):\n"
        "        reporter.report(Span(name=f'child-{index}', kind='custom'))\n"
        "    assert reporter.flush(20)\n"
        "    reporter.close()\n"
        "    assert reporter.stats().acked == 50\n"
        "    os._exit(0)\n"
        "for index in range(300, 400):\n"
        "    reporter.report(Span(name=f'parent-{index}', kind='custom'))\n"
        "_, status = os.waitpid(pid, 0)\n"
        "assert status == 0, status\n"
        "assert reporter.flush(20)\n"
        "assert reporter.stats().acked == 400\n",
        url,
        forks=True,
    )
    starting.join()
    assert_ended(done)
    stored = read_raw(url)
    assert span_names(stored) == Counter(
        [*(f"parent-{index}" for index in range(400)), *(f"child-{index}" for index in range(50))]
    )
    for message in stored:
        assert len({span.name.partition("-")[0] for span in message.batch.spans}) == 1
    assert len({message.batch.id for message in stored}) == 2


def test_children_forked_while_threads_report_end_and_send_their_spans(url: str) -> None:
    done = run_program(
        "reporter = Reporter('forker', url)\n"
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        reporter.report(Span(name='parent', kind='custom'))\n"
        "        time.sleep(0.0001)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for thread in threads:\n"
        "    thread.start()\n"
        "for child in range(12):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        for index in range(5):\n"
        "            reporter.report(Span(name=f'child-{child}-{index}', kind='custom'))\n"
        "        sys.exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "stop.set()\n"
        "for thread in threads:\n"
        "    thread.join()\n"
        "assert reporter.flush(20)\n"
        "print(reporter.stats().acked)\n",
        url,
        forks=True,
    )
    assert_ended(done)
    found = span_names(read_raw(url))
    assert found.pop("parent") == int(done.stdout.split()[-1])
    assert found == Counter(f"child-{child}-{index}" for child in range(12) for index in range(5))


def test_a_multiprocessing_child_sends_its_spans_before_it_ends(url: str) -> None:
    done = run_program(
        "import multiprocessing\n"
        "reporter = Reporter('worker', url)\n"
        "reporter.report(Span(name='parent', kind='custom'))\n"
        "def work():\n"
        "    reporter.report(Span(name='child', kind='custom'))\n"
        "child = multiprocessing.get_context('fork').Process(target=work)\n"
        "child.start()\n"
        "child.join(20)\n"
        "assert child.exitcode == 0\n",
        url,
        forks=True,
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter(["parent", "child"])
