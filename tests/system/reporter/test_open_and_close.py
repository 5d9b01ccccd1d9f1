"""How a reporter is configured and closed, also when the pipeline is unreachable."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import CuttingProxy, HttpEndpoint, ignore_ungreeted_connections
from kit.programs import assert_ended, run_program
from kit.raw_stream import create_streams, read_raw, span_names
from kit.reporting import NOTHING, WAIT_S, accounted, until
from tokentrace import ConfigError, Reporter, Stats

pytestmark = ignore_ungreeted_connections


def test_a_reporter_with_an_empty_url_does_nothing() -> None:
    threads = threading.active_count()
    with Reporter("none", "") as reporter:
        for _ in range(10):
            reporter.report(make_span(attributes={"x": object()}))
        assert reporter.stats() == NOTHING
        assert reporter.dropped == 0
        assert reporter.flush(0) is True
        assert threading.active_count() == threads
    assert reporter.stats() == NOTHING


def test_the_url_comes_from_the_environment_unless_it_is_passed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENTRACE_URL", raising=False)
    with Reporter("none") as reporter:
        reporter.report(make_span())
        assert reporter.stats() == NOTHING
    monkeypatch.setenv("TOKENTRACE_URL", url)
    with Reporter("environment") as reporter, Reporter("silenced", "") as silenced:
        reporter.report(make_span(name="there"))
        silenced.report(make_span(name="nowhere"))
        assert reporter.flush(WAIT_S)
    assert span_names(read_raw(url)) == Counter(["there"])


@pytest.mark.parametrize("bad", ["localhost:4222", "ftp://host", "nat://host", "udp://x", "://", "nats", "NATS//x"])
def test_an_unknown_scheme_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError, match="nats://"):
        Reporter("scheme", bad)


@pytest.mark.parametrize(
    "bad", ["nats://127.0.0.1:port", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http:///spans"]
)
def test_a_url_without_a_usable_port_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError):
        Reporter("port", bad)


@pytest.mark.parametrize("token", ["s3cret\n", "gehe\u0131m"])
def test_a_token_that_no_header_can_carry_never_leaves_spans_waiting(token: str) -> None:
    """The token may be refused or stripped, or the span may fail. A token from a file often ends in a newline."""
    with HttpEndpoint() as endpoint:
        try:
            reporter = Reporter("token", endpoint.url, token=token)
        except ConfigError:
            return
        with reporter:
            reporter.report(make_span())
            assert reporter.flush(15)
            stats = reporter.stats()
            assert stats.queue_depth == 0
            assert accounted(stats) == 1


def test_tls_means_tls_or_no_connection(url: str, broker: Broker) -> None:
    """To a server without TLS, neither the password nor a span leaves the process."""
    with CuttingProxy(broker.port) as proxy:
        reporter = Reporter("tls", f"tls://user:s3cret@127.0.0.1:{proxy.port}")
        reporter.report(make_span(name="private"))
        assert not reporter.flush(2)
        reporter.close(0)
        assert bytes(proxy.sent) == b""
    assert read_raw(url) == []


def test_close_sends_the_waiting_spans_and_drops_later_ones(url: str) -> None:
    reporter = Reporter("close", url)
    for _ in range(700):
        reporter.report(make_span())
    reporter.close()
    assert reporter.stats() == Stats(700, 700, 0, 0, 0)
    reporter.report(make_span())
    assert reporter.stats() == Stats(700, 700, 1, 0, 0)
    reporter.close()
    assert reporter.flush(0)
    assert sum(len(message.batch.spans) for message in read_raw(url)) == 700


def test_closing_a_reporter_that_reported_nothing_starts_no_thread(unreachable_url: str) -> None:
    threads = threading.active_count()
    reporter = Reporter("nothing", unreachable_url)
    reporter.close()
    reporter.close()
    assert threading.active_count() == threads
    assert reporter.stats() == NOTHING


def sender_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tokentrace-reporter"}


def test_the_thread_ends_with_close(url: str) -> None:
    before = sender_threads()
    with Reporter("thread", url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        assert len(sender_threads() - before) == 1
    assert sender_threads() <= before


def test_close_drops_all_spans_if_the_pipeline_is_unreachable(unreachable_url: str) -> None:
    reporter = Reporter("unreachable", unreachable_url)
    for _ in range(3):
        reporter.report(make_span())
    # Give the sender time to try to connect once.
    time.sleep(0.2)
    reporter.close(1)
    assert (reporter.dropped, reporter.stats().queue_depth) == (3, 0)


def test_close_drops_all_spans_if_the_server_never_answers(silent_url: str) -> None:
    reporter = Reporter("silent", silent_url)
    reporter.report(make_span())
    time.sleep(0.2)
    reporter.close(0.5)
    assert (reporter.dropped, reporter.stats().queue_depth) == (1, 0)


def test_a_failed_connection_to_a_silent_server_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = run_program(
            "import asyncio, gc, warnings\n"
            "warnings.simplefilter('always')\n"
            "from tokentrace.bus import jetstream\n"
            "from tokentrace.errors import Unavailable\n"
            "async def main():\n"
            "    try:\n"
            "        async with jetstream.connect(url, name='x', wait_s=0.5):\n"
            "            pass\n"
            "    except Unavailable:\n"
            "        print('unavailable')\n"
            "asyncio.run(main())\n"
            "gc.collect()\n",
            f"nats://127.0.0.1:{server.getsockname()[1]}",
        )
    assert_ended(done)
    assert done.stdout == "unavailable\n"


def test_flush_returns_when_close_drops_the_spans(unreachable_url: str) -> None:
    reporter = Reporter("both", unreachable_url)
    reporter.report(make_span())
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(reporter.flush()), daemon=True)
    waiting.start()
    reporter.close(0.3)
    waiting.join(WAIT_S)
    assert results == [True]
    assert reporter.dropped == 1


async def test_spans_of_an_async_program_arrive_while_its_event_loop_runs(broker: Broker) -> None:
    await asyncio.to_thread(create_streams, broker.url)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    async with Reporter("async", broker.url) as reporter:

        async def call(number: int) -> None:
            for index in range(20):
                reporter.report(make_span(name=f"{number}-{index}"))
                await asyncio.sleep(0)

        await asyncio.gather(*(call(number) for number in range(20)))
        before = turns
        assert await reporter.aflush(WAIT_S)
        assert turns > before
        assert reporter.stats().acked == 400
        reporter.report(make_span(name="last"))
    turning.cancel()
    stored = await asyncio.to_thread(read_raw, broker.url)
    assert span_names(stored) == Counter([*(f"{a}-{b}" for a in range(20) for b in range(20)), "last"])


def test_a_reporter_that_is_garbage_collected_still_sends_its_spans(url: str) -> None:
    """Runs in its own process, because the thread of a collected reporter ends only with its process."""
    program = (
        "import gc, sys, weakref\n"
        "from tokentrace import Reporter, Span\n"
        "reporter = Reporter('garbage', sys.argv[1])\n"
        "for index in range(10):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n"
        "reference = weakref.ref(reporter)\n"
        "del reporter\n"
        "gc.collect()\n"
        "print('collected' if reference() is None else 'alive', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, url]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "collected\n"
        # The program still waits for its standard input, so the spans were not sent by its exit handler.
        until(lambda: sum(span_names(read_raw(url)).values()) == 10, "all sent")
        assert running.poll() is None
    assert running.returncode == 0
