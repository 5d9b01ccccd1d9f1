"""``report`` never waits for the pipeline: the queue is limited, and each span ends as acked, dropped or failed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import ignore_ungreeted_connections
from kit.raw_stream import create_streams, read_raw
from kit.reporting import WAIT_S, accounted, until
from tokentrace import Reporter, Stats

pytestmark = ignore_ungreeted_connections


@pytest.mark.parametrize("limit", [{"max_queue_spans": 100}, {"max_queue_bytes": 4000}])
def test_a_full_queue_drops_and_counts_instead_of_waiting(
    unreachable_url: str, limit: dict[str, Any], close_later: Callable[[Reporter], Reporter]
) -> None:
    reporter = close_later(Reporter("unreachable", unreachable_url, **limit))

    def work() -> None:
        for _ in range(1000):
            reporter.report(make_span())

    reporting = threading.Thread(target=work, daemon=True)
    reporting.start()
    reporting.join(WAIT_S)
    assert not reporting.is_alive()
    stats = reporter.stats()
    assert accounted(stats) == 1000
    assert stats.acked == stats.failed == 0
    assert 0 < stats.queue_depth <= 100
    assert reporter.dropped == stats.dropped == 1000 - stats.queue_depth


def test_the_queue_limit_includes_batches_in_flight(url: str, broker: Broker) -> None:
    with Reporter("frozen", url, max_queue_spans=500) as reporter:
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        assert broker.process is not None
        os.kill(broker.process.pid, signal.SIGSTOP)
        try:
            for _ in range(5000):
                reporter.report(make_span())
            until(lambda: reporter.stats().sent > 1, "a batch in flight")
            for _ in range(5000):
                reporter.report(make_span())
            assert reporter.stats().queue_depth == 500
            assert reporter.stats().dropped == 9500
        finally:
            os.kill(broker.process.pid, signal.SIGCONT)
        assert reporter.flush(WAIT_S)
    assert sum(len(message.batch.spans) for message in read_raw(url)) == 501


def test_flush_is_false_while_the_broker_is_down_and_true_once_all_spans_are_accepted(broker: Broker) -> None:
    create_streams(broker.url)
    broker.kill()
    with Reporter("flusher", broker.url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(0.2) is False
        assert reporter.stats().queue_depth == 1
        broker.start()
        assert reporter.flush(WAIT_S) is True
        assert reporter.stats() == Stats(sent=1, acked=1, dropped=0, failed=0, queue_depth=0)
    assert len(read_raw(broker.url)) == 1


def test_flush_of_an_idle_reporter_is_true(unreachable_url: str) -> None:
    with Reporter("idle", unreachable_url) as reporter:
        assert reporter.flush(0) is True
    assert reporter.flush(0) is True


def test_the_counters_add_up_after_each_report(url: str) -> None:
    with Reporter("sums", url, max_queue_spans=200) as reporter:
        for number in range(1, 5001):
            bad = number % 10 == 0
            reporter.report(make_span(attributes={"x": {1, object()}} if bad else {"n": number}))
            stats = reporter.stats()
            assert accounted(stats) == number
            assert min(stats) >= 0
            assert stats.sent >= stats.acked + stats.rejected
        assert reporter.flush(WAIT_S)
        stats = reporter.stats()
        assert accounted(stats) == 5000
        assert stats.rejected + stats.dropped >= 500
        assert stats.sent == stats.acked + stats.rejected
        assert reporter.dropped == stats.dropped + stats.rejected
    assert sum(len(message.batch.spans) for message in read_raw(url)) == stats.acked
