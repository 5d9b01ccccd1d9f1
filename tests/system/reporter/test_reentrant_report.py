"""``report`` may be called again while it runs: by a finalizer, a signal handler or a log handler."""

from __future__ import annotations

from collections import Counter

from kit.programs import assert_ended, run_program
from kit.raw_stream import read_raw, span_names


def test_a_finalizer_may_report_while_report_runs(url: str) -> None:
    """An object may report a span when it is garbage-collected, which can happen at any allocation of memory."""
    done = run_program(
        "import gc\n"
        "reporter = Reporter('gc', url)\n"
        "class Stream:\n"
        "    def __init__(self):\n"
        "        self.me = self\n"
        "    def __del__(self):\n"
        "        reporter.report(Span(name='abandoned', kind='custom'))\n"
        "for index in range(3000):\n"
        "    gc.set_threshold(5 + index % 97)\n"
        "    Stream()\n"
        "    reporter.report(Span(name='reported', kind='custom', attributes={'index': index}))\n"
        "gc.collect()\n"
        "assert reporter.flush(15), reporter.stats()\n"
        "print(*reporter.stats()[:5])\n",
        url,
    )
    assert_ended(done)
    assert done.stdout == "6000 6000 0 0 0\n"
    assert span_names(read_raw(url)) == Counter({"abandoned": 3000, "reported": 3000})


def test_a_signal_handler_may_report_while_report_runs(url: str) -> None:
    done = run_program(
        "import signal\n"
        "reporter = Reporter('signal', url)\n"
        "handled = 0\n"
        "def handle(*_):\n"
        "    global handled\n"
        "    handled += 1\n"
        "    reporter.report(Span(name='handled', kind='custom'))\n"
        "    reporter.stats()\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.0005)\n"
        "signal.signal(signal.SIGALRM, handle)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0005)\n"
        "for index in range(30000):\n"
        "    reporter.report(Span(name='reported', kind='custom'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "assert reporter.flush(15), reporter.stats()\n"
        "assert handled\n"
        "wanted = (30000 + handled, 30000 + handled, 0, 0, 0, 0)\n"
        "assert reporter.stats()[:6] == wanted, (handled, reporter.stats())\n",
        url,
    )
    assert_ended(done)


def test_a_log_handler_may_report_while_report_logs(url: str) -> None:
    done = run_program(
        "import logging\n"
        "reporter = Reporter('log', url)\n"
        "class Handler(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        reporter.report(Span(name='logged', kind='custom'))\n"
        "logging.getLogger('tokentrace').addHandler(Handler())\n"
        "logging.getLogger('tokentrace').setLevel('WARNING')\n"
        "reporter.report(Span(name='bad', kind='custom', attributes={'x': object()}))\n"
        "assert reporter.flush(15)\n"
        "assert reporter.stats()[:6] == (2, 1, 0, 0, 0, 1)\n",
        url,
    )
    assert_ended(done)
