"""The transport that posts to a server of the documented API: batches, attempts, losses, and what it logs."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import pytest

from kit.builders import make_span
from kit.pipeline import free_port
from kit.receiver import Receiver, Reply, Sent
from kit.reporting import accounted, until
from tokentrace import Stats
from tokentrace.client.transports import HttpTransport
from tokentrace.dialect.docs import decode_spans
from tokentrace.errors import ConfigError

Open = Callable[..., HttpTransport]


@pytest.fixture
def server() -> Iterator[Receiver]:
    """Yield a server that accepts everything until a test changes its answer."""
    with Receiver(lambda sent: Reply(202, body=b'{"accepted": 1}')) as receiver:
        yield receiver


@pytest.fixture
def opened() -> Iterator[Open]:
    """Yield a function that makes a transport without long pauses and closes it after the test."""
    made: list[HttpTransport] = []

    def make(server: Receiver, **options: object) -> HttpTransport:
        settings = {"flush_interval": 0.05, "retry_backoff": 0.01, **options}
        made.append(HttpTransport(f"{server.url}/spans", **settings))  # type: ignore[arg-type]  # options of the test
        return made[-1]

    yield make
    for transport in made:
        transport.close(0)


def names(sent: Sent) -> list[str]:
    """Return the names of the spans of a request, as our own ingest reads them."""
    body = gzip.decompress(sent.body) if sent.header("Content-Encoding") == "gzip" else sent.body
    return [span.name for span in decode_spans(body)]


def answers(*replies: Reply) -> Callable[[Sent], Reply]:
    """Return a function that gives *replies* in turn, and accepts everything after the last one."""
    turn = itertools.chain(replies, itertools.repeat(Reply(202)))
    return lambda sent: next(turn)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_are_posted_in_batches_of_the_given_size(server: Receiver, opened: Open, compression: str) -> None:
    transport = opened(server, batch_size=10, compression=compression, headers={"Authorization": "Bearer word"})
    transport.send([make_span(name=f"{number}", attributes={"password": "geheim"}) for number in range(25)])
    assert transport.flush(30)
    assert [len(names(sent)) for sent in server.sent] == [10, 10, 5]
    assert [name for sent in server.sent for name in names(sent)] == [f"{number}" for number in range(25)]
    assert transport.stats() == Stats(sent=25, acked=25, dropped=0, failed=0, queue_depth=0)
    for sent in server.sent:
        assert sent.path == "/spans"
        assert sent.header("Content-Type") == "application/json"
        assert sent.header("Authorization") == "Bearer word"
        assert sent.header("Content-Encoding") == (None if compression == "none" else "gzip")
        assert b"geheim" not in (sent.body if compression == "none" else gzip.decompress(sent.body))
    assert len({sent.key for sent in server.sent}) == 3


def test_spans_are_posted_after_the_interval_without_a_flush(server: Receiver, opened: Open) -> None:
    transport = opened(server)
    transport.send([make_span(name="a")])
    until(lambda: transport.stats().acked == 1, "accepted")
    assert names(server.sent[0]) == ["a"]


def test_one_connection_serves_many_batches_and_a_closed_one_is_replaced(opened: Open) -> None:
    ports: list[int] = []

    def answer(sent: Sent) -> Reply:
        return Reply(202, {"Connection": "close"} if len(ports) == 3 else {})

    class Watching(Receiver):
        def _take(self, handler) -> None:  # type: ignore[no-untyped-def]  # the handler is a class of a function
            ports.append(handler.client_address[1])
            super()._take(handler)

    with Watching(answer) as server:
        transport = opened(server, batch_size=1)
        for number in range(6):
            transport.send([make_span(name=f"{number}")])
            assert transport.flush(30)
        transport.close()
    assert ports[0] == ports[1] == ports[2]
    assert ports[3] == ports[4] == ports[5] != ports[0]


def test_a_connection_that_the_server_closed_while_it_was_idle_costs_no_attempt() -> None:
    class Closing(Receiver):
        def _take(self, handler) -> None:  # type: ignore[no-untyped-def]  # the handler is a class of a function
            super()._take(handler)
            handler.close_connection = True

    with Closing(lambda sent: Reply(202)) as server:
        transport = HttpTransport(server.url, batch_size=1, max_retries=0)
        for _ in range(5):
            transport.send([make_span()])
            assert transport.flush(30)
        transport.close()
    assert transport.stats() == Stats(sent=5, acked=5, dropped=0, failed=0, queue_depth=0)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429, 0])
def test_what_may_succeed_later_is_posted_again_with_the_same_key_and_body(
    server: Receiver, opened: Open, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = answers(Reply(status), Reply(status))
    transport = opened(server)
    with caplog.at_level("INFO", "tokentrace.transport"):
        transport.send([make_span(), make_span()])
        assert transport.flush(30)
    assert transport.stats() == Stats(sent=2, acked=2, dropped=0, failed=0, queue_depth=0)
    assert len(server.sent) == 3
    assert len({(sent.key, sent.body) for sent in server.sent}) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "spans wait, because they cannot be delivered: POST to http://127.0.0.1:" in caplog.messages[0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 301, 308])
def test_any_other_refusal_is_final(
    server: Receiver, opened: Open, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = answers(Reply(status, body=b'{"error": "no"}'))
    transport = opened(server)
    transport.send([make_span(), make_span()])
    assert transport.flush(30)
    assert transport.stats() == Stats(sent=2, acked=0, dropped=0, failed=2, queue_depth=0)
    assert len(server.sent) == 1
    assert f": {status} " in caplog.text
    transport.send([make_span()])
    assert transport.flush(30)
    assert transport.stats().acked == 1


def test_the_pauses_double_and_a_batch_is_given_up_after_the_last_attempt(server: Receiver, opened: Open) -> None:
    server.answer = answers(*[Reply(500)] * 4)
    transport = opened(server, retry_backoff=0.1, max_retries=3)
    transport.send([make_span()])
    assert transport.flush(30)
    assert transport.stats() == Stats(sent=1, acked=0, dropped=0, failed=1, queue_depth=0)
    assert len(server.sent) == 4
    pauses = [later.at - earlier.at for earlier, later in itertools.pairwise(server.sent)]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert pause >= least


@pytest.mark.parametrize("form", ["seconds", "instant"])
def test_a_server_that_says_when_to_come_back_is_obeyed(server: Receiver, opened: Open, form: str) -> None:
    # An instant has whole seconds, so the wait may be up to one second shorter.
    after, least = ("2", 2.0) if form == "seconds" else (formatdate(time.time() + 3, usegmt=True), 1.0)
    server.answer = answers(Reply(429, {"Retry-After": after}))
    transport = opened(server)
    transport.send([make_span()])
    assert transport.flush(60)
    first, second = server.sent
    assert second.at - first.at >= least
    assert transport.stats().acked == 1


@pytest.mark.parametrize("after", ["soon", "-5", "", "٣", "Thu, 99 Foo 2026 99:99:99 GMT", "1e9"])
def test_an_unreadable_retry_after_is_ignored(server: Receiver, opened: Open, after: str) -> None:
    server.answer = answers(Reply(503, {"Retry-After": after} if after.isascii() else {}))
    transport = opened(server)
    transport.send([make_span()])
    assert transport.flush(30)
    assert transport.stats().acked == 1


def test_without_idempotence_no_key_is_sent(server: Receiver, opened: Open) -> None:
    transport = opened(server, idempotent=False)
    transport.send([make_span()])
    assert transport.flush(30)
    assert server.sent[0].header("Idempotency-Key") is None


def test_what_a_server_refuses_of_a_batch_counts_as_rejected(
    server: Receiver, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    refused = {"accepted": 2, "rejected": [{"index": 1, "error": "model: unknown"}]}
    server.answer = answers(Reply(202, body=json.dumps(refused).encode()))
    transport = opened(server)
    transport.send([make_span(), make_span(), make_span()])
    assert transport.flush(30)
    assert transport.stats() == Stats(sent=3, acked=2, dropped=0, failed=0, queue_depth=0, rejected=1)
    assert "1 spans are not valid and not delivered: model: unknown" in caplog.text


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b'{"rejected": 7}', b'{"rejected": [1, 2, 3, 4]}', b"\xff"])
def test_any_answer_of_success_is_taken(server: Receiver, opened: Open, body: bytes) -> None:
    server.answer = answers(Reply(200, body=body))
    transport = opened(server)
    transport.send([make_span(), make_span()])
    assert transport.flush(30)
    assert accounted(transport.stats()) == 2
    assert transport.stats().failed == 0


def test_a_full_queue_drops_and_counts_and_says_so_once(
    server: Receiver, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    held = threading.Event()

    def answer(sent: Sent) -> Reply:
        held.wait(60)
        return Reply(202)

    server.answer = answer
    transport = opened(server, max_queue_size=20, batch_size=5)
    for _ in range(10):
        transport.send([make_span() for _ in range(10)])
    assert transport.stats().dropped == 80
    held.set()
    assert transport.flush(60)
    assert transport.stats() == Stats(sent=20, acked=20, dropped=80, failed=0, queue_depth=0)
    assert sum("dropped from now on" in text for text in caplog.messages) == 1


def test_a_server_that_is_away_makes_few_lines_in_the_log(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    transport = HttpTransport(f"http://127.0.0.1:{free_port()}/spans", batch_size=1, retry_backoff=0.001, max_retries=2)
    transport.send([make_span() for _ in range(100)])
    assert transport.flush(60)
    transport.close()
    assert transport.stats() == Stats(sent=100, acked=0, dropped=0, failed=100, queue_depth=0)
    # One when it begins, one for the first lost batch, one at the end, and one more for each 10 s on a busy machine.
    assert 3 <= len(caplog.records) <= 8
    assert "ConnectionRefusedError" in caplog.messages[0]
    assert "spans lost: 100 (0 dropped, 100 failed, 0 not valid)" in caplog.messages[-1]


def test_close_ends_in_time_although_the_server_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = HttpTransport(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=600)
        transport.send([make_span() for _ in range(7)])
        transport.flush(0.2)
        transport.close(0.2)  # the test would run into the limit of 600 s
    assert transport.stats() == Stats(sent=7, acked=0, dropped=7, failed=0, queue_depth=0)
    assert sum("spans lost: 7" in text for text in caplog.messages) == 1


def test_an_answer_that_comes_too_late_is_a_failed_attempt(server: Receiver, opened: Open) -> None:
    server.answer = answers(Reply(202, after_s=1.5))
    transport = opened(server, timeout=0.3)
    transport.send([make_span()])
    assert transport.flush(30)
    assert len(server.sent) == 2
    assert transport.stats().acked == 1


@pytest.mark.parametrize(
    ("endpoint", "path"), [("", "/spans"), ("/", "/spans"), ("/v1/traces?x=1", "/v1/traces?x=1"), ("/a/", "/a/")]
)
def test_the_path_of_the_endpoint_is_used_as_it_is(server: Receiver, endpoint: str, path: str) -> None:
    transport = HttpTransport(server.url + endpoint)
    transport.send([make_span()])
    transport.close(30)
    assert [sent.path for sent in server.sent] == [path]


def test_an_invalid_span_does_not_keep_the_others_from_the_server(
    server: Receiver, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    transport = opened(server)
    transport.send(
        [make_span(name="a"), make_span(model=""), make_span(attributes={"x": object()}), make_span(name="d")]
    )
    assert transport.flush(30)
    assert [name for sent in server.sent for name in names(sent)] == ["a", "d"]
    assert transport.stats() == Stats(sent=3, acked=2, dropped=0, failed=0, queue_depth=0, rejected=2)
    assert "model: required when kind is llm" in caplog.text


def test_a_batch_of_invalid_spans_alone_is_not_posted(server: Receiver, opened: Open) -> None:
    transport = opened(server)
    transport.send([make_span(model="")])
    assert transport.flush(30)
    assert server.sent == []
    assert transport.stats().rejected == 1


@pytest.mark.parametrize(
    ("endpoint", "options", "error"),
    [
        ("ftp://host/x", {}, "must start with http:// or https://"),
        ("http://", {}, "must start with http:// or https://"),
        ("http://host:0/", {}, "names port 0"),
        ("http://host:geheim/", {}, "the host or port of the URL cannot be read"),
        ("http://me:geheim@host/", {}, "must not contain a user or a password"),
        ("http://host/a b", {}, "must be percent-encoded"),
        ("http://host/", {"headers": {"X\n": "1"}}, "the name of a header is not a token"),
        ("http://host/", {"headers": {"X": "geheim\r\nY: 1"}}, "the header X contains characters"),
        ("http://host/", {"batch_size": 0}, "batch_size: 0 is not a number of at least 1"),
        ("http://host/", {"timeout": 0}, "timeout: 0 is not a number of at least 0.001"),
        ("http://host/", {"max_retries": -1}, "max_retries: -1 is not a number of at least 0"),
        ("http://host/", {"flush_interval": float("inf")}, "flush_interval: inf is not a number of at least 0"),
        ("http://host/", {"compression": "br"}, "compression br is neither none nor gzip"),
    ],
)
def test_an_endpoint_or_an_option_that_cannot_be_used_is_an_error(
    endpoint: str, options: dict[str, object], error: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        HttpTransport(endpoint, **options)  # type: ignore[arg-type]  # wrong on purpose
    assert error in str(raised.value)
    assert "geheim" not in str(raised.value)
