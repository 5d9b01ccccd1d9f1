"""A reporter that loses spans says so once, and once when it works again; whatever fails in it, it goes on."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import HttpEndpoint, ignore_ungreeted_connections
from kit.programs import run_program
from kit.raw_stream import create_streams, read_raw, span_names
from kit.reporting import WAIT_S, until
from tokentrace import Reporter, Span, Stats
from tokentrace.redact import RedactionCounts, Redactor

pytestmark = ignore_ungreeted_connections


def lines(caplog: pytest.LogCaptureFixture, level: int, part: str) -> list[str]:
    """Return the log lines of *level* of reporters that contain *part*."""
    texts = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "tokentrace.reporter"]
    return [text for levelno, text in texts if levelno == level and part in text]


def test_a_reporter_says_once_that_nothing_is_accepted_and_once_that_it_works_again(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    create_streams(broker.url)
    broker.kill()
    with caplog.at_level(logging.INFO, "tokentrace.reporter"), Reporter("silent", broker.url) as reporter:
        for _ in range(10):
            reporter.report(make_span())
        until(lambda: bool(lines(caplog, logging.WARNING, "no span was accepted")), "a warning")
        (warning,) = lines(caplog, logging.WARNING, "no span was accepted")
        assert "silent" in warning
        assert "10 wait" in warning
        assert "no NATS server" in warning
        broker.start()
        assert reporter.flush(WAIT_S)
        until(lambda: bool(lines(caplog, logging.INFO, "accepted again")), "a line that it works again")
    assert len(lines(caplog, logging.WARNING, "")) == 1
    assert len(lines(caplog, logging.INFO, "")) == 1


def test_a_reporter_says_when_it_first_drops_and_how_much_was_lost(
    unreachable_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tokentrace.reporter"):
        reporter = Reporter("lossy", unreachable_url, max_queue_spans=10)
        for _ in range(1000):
            reporter.report(make_span())
        assert len(lines(caplog, logging.WARNING, "dropped from now on")) == 1
        reporter.close(0)
        reporter.close(0)
        assert len(lines(caplog, logging.WARNING, "spans lost: 1000 (1000 dropped")) == 1


def test_a_program_that_ends_before_anything_was_accepted_says_why(unreachable_url: str) -> None:
    done = run_program(
        "reporter = Reporter('short', url)\n"
        "reporter.report(Span(name='x', kind='custom'))\n"
        "reporter.flush(1)\n"
        "reporter.close(0.1)\n",
        unreachable_url,
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    port = unreachable_url.rpartition(":")[2]
    assert line.startswith("reporter short: spans lost: 1 (1 dropped")
    assert f":{port}" in line.partition("not accepted: ")[2]


def test_a_wrong_token_is_an_error_that_says_so() -> None:
    with HttpEndpoint(401) as endpoint:
        done = run_program("Reporter('short', url).report(Span(name='x', kind='custom'))\n", endpoint.url)
    first, last = done.stderr.splitlines()
    assert "401" in first
    assert "spans lost: 1 (0 dropped, 1 in refused batches" in last


def test_without_a_url_and_without_the_variable_the_reporter_says_that_it_ignores_spans(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENTRACE_URL", raising=False)
    Reporter("nowhere").close()
    Reporter("off", "").close()
    monkeypatch.setenv("TOKENTRACE_URL", "")
    Reporter("off").close()
    (warning,) = lines(caplog, logging.WARNING, "")
    assert "nowhere" in warning
    assert "TOKENTRACE_URL" in warning


def test_a_refused_batch_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with HttpEndpoint(*[403] * 20) as endpoint, Reporter("refused", endpoint.url) as reporter:
        for _ in range(20):
            reporter.report(make_span())
            assert reporter.flush(WAIT_S)
        assert reporter.stats().failed == 20
        (line,) = lines(caplog, logging.ERROR, "")
        assert "403" in line


def test_a_reporter_for_which_no_thread_can_be_started_tries_again_at_the_next_span(url: str) -> None:
    done = run_program(
        "import resource\n"
        "reporter = Reporter('thread', url)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))\n"
        "threading.stack_size(2**30)\n"
        "for index in range(5):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n"
        "assert reporter.stats().queue_depth == 5, reporter.stats()\n"
        "threading.stack_size(0)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "reporter.report(Span(name='n5', kind='custom'))\n"
        "assert reporter.flush(15), reporter.stats()\n",
        url,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no thread can be started") == 1
    assert span_names(read_raw(url)).total() == 6


def test_a_reporter_that_can_start_no_thread_drops_its_spans_at_the_end_and_says_so(url: str) -> None:
    done = run_program(
        "import resource\n"
        "reporter = Reporter('thread', url)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))\n"
        "threading.stack_size(2**30)\n"
        "reporter.report(Span(name='lost', kind='custom'))\n",
        url,
    )
    assert done.returncode == 0, done.stderr
    assert "spans lost: 1 (1 dropped" in done.stderr


def test_batches_in_flight_are_sent_again_when_the_sender_fails(url: str, broker: Broker) -> None:
    """An exception is raised in the sender thread, wherever it is, while the broker answers nothing."""
    assert broker.process is not None
    done = run_program(
        "import ctypes, signal\n"
        "broker = int(sys.argv[2])\n"
        "reporter = Reporter('fault', url)\n"
        "reporter.report(Span(name='first', kind='custom'))\n"
        "assert reporter.flush(15)\n"
        "os.kill(broker, signal.SIGSTOP)\n"
        "for index in range(600):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n"
        "while reporter.stats().sent < 601:\n"
        "    time.sleep(0.05)\n"
        "for _ in range(3):\n"
        "    (thread,) = [each for each in threading.enumerate() if each.name == 'tokentrace-reporter']\n"
        "    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(RuntimeError))\n"
        "    time.sleep(1.5)\n"
        "os.kill(broker, signal.SIGCONT)\n"
        "assert reporter.flush(15), reporter.stats()\n"
        "assert reporter.stats()[:2] == (601, 601) and not any(reporter.stats()[2:]), reporter.stats()\n",
        url,
        str(broker.process.pid),
    )
    assert done.returncode == 0, done.stderr
    assert "starts again" in done.stderr
    stored = {message.id: message for message in read_raw(url)}
    assert span_names(list(stored.values())) == Counter(["first", *(f"n{index}" for index in range(600))])


def test_a_redactor_that_fails_on_one_span_loses_that_span_alone(url: str) -> None:
    class Failing(Redactor):
        def span(self, span: Span, redactions: RedactionCounts | None = None) -> Span:
            if span.name == "bad":
                raise RuntimeError("a defect")
            return super().span(span, redactions)

    with Reporter("redactor", url, redactor=Failing()) as reporter:
        for name in ("before", "bad", "after"):
            reporter.report(make_span(name=name))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(3, 2, 0, 0, 0, rejected=1)
    assert span_names(read_raw(url)) == Counter(["before", "after"])


def test_a_sender_that_fails_starts_again_and_loses_no_span(url: str) -> None:
    """Without a free file descriptor the sender cannot even make its event loop."""
    done = run_program(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "reporter = Reporter('files', url)\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        held.append(open('/dev/null'))\n"
        "except OSError:\n"
        "    pass\n"
        "for index in range(5):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n"
        "assert not reporter.flush(0.5)\n"
        "for file in held:\n"
        "    file.close()\n"
        "assert reporter.flush(15), reporter.stats()\n"
        "assert reporter.stats().acked == 5\n",
        url,
    )
    assert done.returncode == 0, done.stderr
    assert "starts again" in done.stderr
    assert span_names(read_raw(url)).total() == 5
