"""Batches are sent again until they are accepted or refused: no span is lost, and a repeated batch keeps its id."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from functools import partial

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import CuttingProxy, HttpEndpoint, ignore_ungreeted_connections
from kit.raw_stream import read_raw, span_names
from kit.reporting import WAIT_S, until
from tokentrace import Reporter, Stats

pytestmark = ignore_ungreeted_connections


def test_eight_threads_lose_no_span_when_the_broker_is_killed(url: str, broker: Broker) -> None:
    each, threads = 3000, 8
    with Reporter("threads", url) as reporter:

        def work(number: int) -> None:
            for index in range(each):
                reporter.report(make_span(name=f"{number}-{index}"))
                if index % 100 == 0:
                    time.sleep(0.02)

        working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in working:
            thread.start()
        for wanted in (1000, 6000, 12000):
            until(partial(lambda least: reporter.stats().acked >= least, wanted), f"{wanted} accepted")
            broker.kill()
            broker.start()
        for thread in working:
            thread.join()
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(24000, 24000, 0, 0, 0)
    stored = read_raw(url)
    seen = {message.id: message for message in stored}
    assert span_names(list(seen.values())) == Counter(
        f"{number}-{index}" for number in range(threads) for index in range(each)
    )
    assert all(seen[message.id].payload == message.payload for message in stored)


def test_a_retry_carries_the_same_id_and_is_stored_once(url: str, broker: Broker) -> None:
    with CuttingProxy(broker.port) as proxy:
        # The broker stores the batch, and the proxy discards two of its replies.
        proxy.cut = lambda data: b'"stream":"TT_RAW"' in data and proxy.cuts < 2
        with Reporter("retry", f"nats://127.0.0.1:{proxy.port}") as reporter:
            for index in range(10):
                reporter.report(make_span(name=f"n{index}"))
            assert reporter.flush(WAIT_S)
            assert reporter.stats().acked == 10
    assert proxy.cuts == 2
    published = Counter(re.findall(rb"Nats-Msg-Id: ?([^\r]+)\r", bytes(proxy.sent)))
    assert max(published.values()) >= 2
    stored = read_raw(url)
    assert {message.id.encode() for message in stored} == set(published)
    assert span_names(stored) == Counter(f"n{index}" for index in range(10))


def test_an_http_retry_posts_the_same_bytes() -> None:
    with HttpEndpoint(503, 429, 500, 408, body=b"x" * 5000) as endpoint:
        with Reporter("retry", endpoint.url) as reporter:
            reporter.report(make_span())
            assert reporter.flush(WAIT_S)
            assert reporter.stats() == Stats(1, 1, 0, 0, 0)
        assert len(endpoint.bodies) >= 5
        assert len(set(endpoint.bodies)) == 1
        assert {headers["path"] for headers in endpoint.headers} == {"/spans"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_batch_refused_for_good_counts_as_failed_and_is_not_sent_again(status: int) -> None:
    with HttpEndpoint(status) as endpoint:
        with Reporter("refused", endpoint.url) as reporter:
            reporter.report(make_span())
            assert reporter.flush(WAIT_S)
            assert reporter.stats() == Stats(1, 0, 0, 1, 0)
            assert reporter.dropped == 1
            reporter.report(make_span())
            assert reporter.flush(WAIT_S)
            assert reporter.stats() == Stats(2, 1, 0, 1, 0)
        assert len(endpoint.bodies) == 2
