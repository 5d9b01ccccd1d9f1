"""The reporter against real brokers and pipelines: it never holds up its program, and what it accepts arrives once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import nats
import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.pipeline import Pipeline, free_port
from tokentrace.bus import jetstream, subjects
from tokentrace.client.reporter import BATCH_BYTES, BATCH_SPANS, Reporter, Stats
from tokentrace.errors import ConfigError
from tokentrace.records import Batch, Span, decode_batches
from tokentrace.redact import REDACTED

# A connection that is accepted and never greeted is dropped unclosed, and which test is running when the collector
# finds it is chance: test_a_peer_that_never_greets_leaves_nothing_open makes it certain, the others look away.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)

NOTHING = Stats(sent=0, acked=0, dropped=0, failed=0, queue_depth=0)
SOON = 40.0


class Stored(NamedTuple):
    """A message of ``TT_RAW``."""

    subject: str
    id: str
    payload: bytes

    @property
    def batch(self) -> Batch:
        (batch,) = decode_batches(self.payload)
        return batch


def until(condition: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    """Wait for *condition*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(0.02)


def provision(url: str) -> None:
    async def make() -> None:
        async with jetstream.connect(url, name="test") as bus:
            for stream in subjects.streams():
                await bus.ensure(stream)

    asyncio.run(make())


def raw(url: str) -> list[Stored]:
    """Everything in ``TT_RAW``: nobody consumes it here."""

    async def read() -> list[Stored]:
        client = await nats.connect(url)
        stream = client.jetstream()
        state = (await stream.stream_info(subjects.RAW)).state
        found = []
        for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
            message = await stream.get_msg(subjects.RAW, sequence)
            found.append(Stored(message.subject, (message.headers or {})["Nats-Msg-Id"], message.data or b""))
        await client.close()
        return found

    return asyncio.run(read())


def names(messages: list[Stored]) -> Counter[str]:
    return Counter(span.name for message in messages for span in message.batch.spans)


def total(stats: Stats) -> int:
    return stats.acked + stats.dropped + stats.failed + stats.queue_depth


@pytest.fixture
def url(broker: Broker) -> str:
    """A broker with all streams, and no ingest that would empty ``TT_RAW``."""
    provision(broker.url)
    return broker.url


@pytest.fixture(params=["nats", "http"])
def nowhere(request: pytest.FixtureRequest) -> str:
    """A URL where nobody listens."""
    return f"{request.param}://127.0.0.1:{free_port()}"


@pytest.fixture(params=["nats", "http"])
def silent(request: pytest.FixtureRequest) -> Iterator[str]:
    """A URL where somebody accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"{request.param}://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closing() -> Iterator[Callable[[Reporter], Reporter]]:
    """Closes reporters whose pipeline is away without waiting for it."""
    made: list[Reporter] = []

    def keep(reporter: Reporter) -> Reporter:
        made.append(reporter)
        return reporter

    yield keep
    for reporter in made:
        reporter.close(0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("serve"), env={"TOKENTRACE_AUTH_TOKEN": "s3cret"})
    # Requests of the tests themselves carry the token.
    serving.start(wait=False)
    serving.wait_ready()
    yield serving
    serving.stop()


def counted(pipeline: Pipeline) -> dict[str, int]:
    """Spans and tokens in /metrics."""
    from kit.pipeline import http as ask

    body = ask("GET", f"{pipeline.url}/metrics?window=30d", headers={"Authorization": "Bearer s3cret"}).json()
    return {"spans": body["span_count"], "prompt": body["tokens"]["prompt_total"]}


class Proxy:
    """Passes TCP bytes on to *port*; while ``cut`` says so of what comes back, it drops that and the connection."""

    def __init__(self, port: int) -> None:
        self.sent = bytearray()
        self.cut: Callable[[bytes], bool] = lambda data: False
        self.cuts = 0
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as target:
                    target.settimeout(None)
                    back = threading.Thread(target=outer._back, args=(target, self.request))
                    back.start()
                    try:
                        while data := self.request.recv(65536):
                            outer.sent += data
                            target.sendall(data)
                    except OSError:
                        pass
                    finally:
                        with contextlib.suppress(OSError):
                            target.shutdown(socket.SHUT_RDWR)
                        back.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def _back(self, target: socket.socket, client: socket.socket) -> None:
        try:
            while data := target.recv(65536):
                if self.cut(data):
                    self.cuts += 1
                    break
                client.sendall(data)
        except OSError:
            pass
        for end in (client, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Endpoint:
    """An HTTP endpoint that answers with the next of *statuses*, then 202, and remembers what it was sent."""

    def __init__(self, *statuses: int, body: bytes = b"{}") -> None:
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers.append({**self.headers, "path": self.path})
                status = outer.statuses.pop(0) if outer.statuses else 202
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> Endpoint:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def script(text: str, *arguments: str, watched: bool = True) -> subprocess.CompletedProcess[str]:
    """A program of its own; one that hangs says where and is ended, children included."""
    # A forked child would wait at its end for the watchdog thread, which it does not have.
    head = (
        "import faulthandler, os, sys, threading, time\n"
        f"{'' if watched else '# '}faulthandler.dump_traceback_later(25, exit=True)\n"
        "from tokentrace.client.reporter import Reporter\n"
        "from tokentrace.records import Span\n"
        "url = sys.argv[1]\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", head + text, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = program.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        output, errors = program.communicate()
        errors += "\nended after 40 s"
    return subprocess.CompletedProcess(program.args, program.returncode, output, errors)


def assert_well(done: subprocess.CompletedProcess[str], code: int = 0) -> None:
    assert (done.returncode, done.stderr) == (code, "")


# -- the caller is never held up


@pytest.mark.parametrize("limit", [{"max_queue_spans": 100}, {"max_queue_bytes": 4000}])
def test_a_full_queue_drops_and_counts_instead_of_waiting(
    nowhere: str, limit: dict[str, int], closing: Callable[[Reporter], Reporter]
) -> None:
    reporter = closing(Reporter("away", nowhere, **limit))
    reporting = threading.Thread(target=lambda: [reporter.report(make_span()) for _ in range(1000)], daemon=True)
    reporting.start()
    reporting.join(SOON)
    assert not reporting.is_alive()
    stats = reporter.stats()
    assert total(stats) == 1000
    assert stats.acked == stats.failed == 0
    assert 0 < stats.queue_depth <= 100
    assert reporter.dropped == stats.dropped == 1000 - stats.queue_depth


def test_the_queue_limit_covers_what_is_under_way_too(url: str, broker: Broker) -> None:
    with Reporter("frozen", url, max_queue_spans=500) as reporter:
        reporter.report(make_span())
        assert reporter.flush(SOON)
        assert broker.process is not None
        os.kill(broker.process.pid, signal.SIGSTOP)
        try:
            for _ in range(5000):
                reporter.report(make_span())
            until(lambda: reporter.stats().sent > 1, "something under way")
            for _ in range(5000):
                reporter.report(make_span())
            assert reporter.stats().queue_depth == 500
            assert reporter.stats().dropped == 9500
        finally:
            os.kill(broker.process.pid, signal.SIGCONT)
        assert reporter.flush(SOON)
    assert sum(len(message.batch.spans) for message in raw(url)) == 501


def test_flush_is_false_while_the_pipeline_is_away_and_true_once_all_is_accepted(broker: Broker) -> None:
    provision(broker.url)
    broker.kill()
    with Reporter("flusher", broker.url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(0.2) is False
        assert reporter.stats().queue_depth == 1
        broker.start()
        assert reporter.flush(SOON) is True
        assert reporter.stats() == Stats(sent=1, acked=1, dropped=0, failed=0, queue_depth=0)
    assert len(raw(broker.url)) == 1


def test_flush_of_an_idle_reporter_is_true(nowhere: str) -> None:
    with Reporter("idle", nowhere) as reporter:
        assert reporter.flush(0) is True
    assert reporter.flush(0) is True


# -- nothing lost, nothing twice


def test_eight_threads_lose_nothing_over_a_kill_of_the_broker(url: str, broker: Broker) -> None:
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
            until(lambda wanted=wanted: reporter.stats().acked >= wanted, f"{wanted} accepted")
            broker.kill()
            broker.start()
        for thread in working:
            thread.join()
        assert reporter.flush(SOON)
        assert reporter.stats() == Stats(24000, 24000, 0, 0, 0)
    stored = raw(url)
    seen = {message.id: message for message in stored}
    assert names(list(seen.values())) == Counter(
        f"{number}-{index}" for number in range(threads) for index in range(each)
    )
    assert all(seen[message.id].payload == message.payload for message in stored)


def test_a_retry_carries_the_same_id_and_the_same_bytes(url: str, broker: Broker) -> None:
    proxy = Proxy(broker.port)
    try:
        proxy.cut = lambda data: b'"stream":"TT_RAW"' in data and proxy.cuts < 2
        with Reporter("retry", f"nats://127.0.0.1:{proxy.port}") as reporter:
            for index in range(10):
                reporter.report(make_span(name=f"n{index}"))
            assert reporter.flush(SOON)
            assert reporter.stats().acked == 10
    finally:
        proxy.close()
    assert proxy.cuts == 2
    published = Counter(re.findall(rb"Nats-Msg-Id: ?([^\r]+)\r", bytes(proxy.sent)))
    assert max(published.values()) >= 2
    stored = raw(url)
    assert {message.id.encode() for message in stored} == set(published)
    assert names(stored) == Counter(f"n{index}" for index in range(10))


def test_an_http_retry_posts_the_same_bytes() -> None:
    with Endpoint(503, 429, 500, 408, body=b"x" * 5000) as endpoint:
        with Reporter("retry", endpoint.url) as reporter:
            reporter.report(make_span())
            assert reporter.flush(SOON)
            assert reporter.stats() == Stats(1, 1, 0, 0, 0)
        assert len(endpoint.bodies) >= 5
        assert len(set(endpoint.bodies)) == 1
        assert {headers["path"] for headers in endpoint.headers} == {"/spans"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_an_endpoint_refuses_for_good_counts_as_failed_and_is_not_sent_again(status: int) -> None:
    with Endpoint(status) as endpoint:
        with Reporter("refused", endpoint.url) as reporter:
            reporter.report(make_span())
            assert reporter.flush(SOON)
            assert reporter.stats() == Stats(1, 0, 0, 1, 0)
            assert reporter.dropped == 1
            reporter.report(make_span())
            assert reporter.flush(SOON)
            assert reporter.stats() == Stats(2, 1, 0, 1, 0)
        assert len(endpoint.bodies) == 2


# -- batches


def test_every_reporter_numbers_its_batches_from_one_under_an_id_of_its_own(url: str) -> None:
    with Reporter("a b", url, project="shop.eu", shards=4) as one, Reporter("a b", url) as two:
        assert one.id != two.id
        for _ in range(1000):
            one.report(make_span())
        two.report(make_span())
        assert one.flush(SOON)
        assert two.flush(SOON)
    stored = raw(url)
    mine = [message for message in stored if message.batch.id == one.id]
    assert sorted(message.batch.sequence for message in mine) == list(range(1, len(mine) + 1))
    assert {message.id for message in mine} == {f"{one.id}:{number}" for number in range(1, len(mine) + 1)}
    assert {message.subject for message in mine} == {
        subjects.raw("shop.eu", number % 4) for number in range(1, len(mine) + 1)
    }
    assert {message.batch.source for message in stored} == {"a b"}
    assert [message.batch.id for message in stored if message not in mine] == [two.id]


def test_a_burst_travels_in_batches_of_at_most_256_spans(url: str) -> None:
    with Reporter("burst", url) as reporter:
        for index in range(5000):
            reporter.report(make_span(name=f"n{index}"))
        assert reporter.flush(SOON)
    stored = sorted(raw(url), key=lambda message: message.batch.sequence)
    sizes = [len(message.batch.spans) for message in stored]
    assert max(sizes) == BATCH_SPANS == 256
    assert sum(sizes) == 5000
    # Order is kept, and a burst is not torn into crumbs.
    assert [span.name for message in stored for span in message.batch.spans] == [f"n{index}" for index in range(5000)]
    assert len(stored) < 500


def test_large_spans_travel_in_batches_of_at_most_512_kib(url: str) -> None:
    with Reporter("large", url) as reporter:
        for size in (200_000, 200_000, 200_000, 700_000, 10, 10, 300_000, 300_000):
            reporter.report(make_span(attributes={"text": "x" * size}))
        assert reporter.flush(SOON)
    batches = [message.batch for message in raw(url)]
    assert sum(len(batch.spans) for batch in batches) == 8
    for batch in batches:
        assert len(batch.spans) == 1 or sum(len(msgspec.msgpack.encode(span)) for span in batch.spans) <= BATCH_BYTES


def test_a_span_that_no_message_can_carry_counts_as_failed_and_its_neighbours_arrive(url: str) -> None:
    with Reporter("huge", url) as reporter:
        reporter.report(make_span(name="before"))
        reporter.report(make_span(name="huge", attributes={"text": "x" * 9_000_000}))
        reporter.report(make_span(name="after"))
        assert reporter.flush(SOON)
        assert reporter.stats() == Stats(3, 2, 0, 1, 0)
    assert names(raw(url)) == Counter(["before", "after"])


def test_a_lone_span_leaves_by_itself(url: str) -> None:
    with Reporter("lone", url) as reporter:
        for number in range(1, 4):
            reporter.report(make_span())
            until(lambda number=number: reporter.stats().acked == number, f"span {number} accepted without flush")
    assert len(raw(url)) == 3


def test_spans_reported_one_after_the_other_share_a_batch(url: str) -> None:
    with Reporter("shared", url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(SOON)
        for _ in range(200):
            reporter.report(make_span())
        until(lambda: reporter.stats().acked == 201, "all accepted")
    assert len(raw(url)) <= 10


def test_each_batch_carries_its_reporters_account(url: str) -> None:
    with Reporter("account", url, max_queue_spans=300) as reporter:
        for _ in range(2000):
            reporter.report(make_span())
        reporter.report(make_span(attributes={"x": object()}))
        assert reporter.flush(SOON)
        reporter.report(make_span())
        assert reporter.flush(SOON)
        final = reporter.stats()
    sent = 0
    batches = sorted((message.batch for message in raw(url)), key=lambda batch: batch.sequence)
    for batch in batches:
        sent += len(batch.spans)
        account = batch.reporter
        assert account is not None
        assert account.sent == sent
        assert account.acked <= sent - len(batch.spans)
        assert account.queue_depth >= len(batch.spans)
    assert batches[-1].reporter is not None
    assert batches[-1].reporter.dropped == final.dropped > 0
    assert batches[-1].reporter.failed == final.failed == 1
    assert (final.sent, final.acked) == (sent, sent)


def test_a_very_long_source_and_project_still_make_batches_that_can_be_read(url: str) -> None:
    with Reporter("поставка-" * 40, url, project="проект" * 10) as reporter:
        reporter.report(make_span(name="there"))
        assert reporter.flush(SOON)
    assert names(raw(url)) == Counter(["there"])


# -- the account


def test_the_account_adds_up_after_every_single_report(url: str) -> None:
    with Reporter("sums", url, max_queue_spans=200) as reporter:
        for number in range(1, 5001):
            bad = number % 10 == 0
            reporter.report(make_span(attributes={"x": {1, object()}} if bad else {"n": number}))
            stats = reporter.stats()
            assert total(stats) == number
            assert min(stats) >= 0
            assert stats.sent >= stats.acked
        assert reporter.flush(SOON)
        stats = reporter.stats()
        assert total(stats) == 5000
        assert stats.failed == 500
        assert stats.sent == stats.acked
        assert reporter.dropped == stats.dropped + stats.failed
    assert sum(len(message.batch.spans) for message in raw(url)) == stats.acked


@pytest.mark.parametrize(
    "attributes",
    [
        {"x": object()},
        {"x": 2**70},
        {"x": "\ud800"},
        {"x": {"y": {"z": lambda: None}}},
        {(1, object()): "x"},
        ["not a mapping", object()],
    ],
)
def test_what_cannot_be_encoded_counts_as_failed_and_does_not_raise(url: str, attributes: Any) -> None:
    with Reporter("odd", url) as reporter:
        reporter.report(make_span(attributes=attributes))
        reporter.report(make_span(name="good"))
        assert reporter.flush(SOON)
        assert reporter.stats() == Stats(1, 1, 0, 1, 0)
    assert names(raw(url)) == Counter(["good"])


def test_attributes_that_contain_themselves_count_as_failed(url: str) -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    with Reporter("ring", url) as reporter:
        reporter.report(make_span(attributes=ring))
        assert reporter.stats() == Stats(0, 0, 0, 1, 0)


def _nested(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({"retries": {1: "timeout", 2: "timeout"}}, id="integer keys inside"),
        pytest.param({1: "timeout"}, id="integer keys"),
        pytest.param({"deep": _nested(300)}, id="300 levels"),
        pytest.param({"deep": _nested(600)}, id="600 levels"),
        pytest.param({"deep": _nested(850)}, id="850 levels"),
        pytest.param({"many": {"when": [b"bytes", {1.5: None}]}}, id="bytes and float keys"),
    ],
)
def test_an_odd_attribute_never_takes_its_neighbours_or_the_reporter_along(url: str, attributes: Any) -> None:
    """Whatever becomes of the odd one, it is accounted for, and the others of its batch arrive."""
    with Reporter("odd", url) as reporter:
        reporter.report(make_span(name="before"))
        reporter.report(make_span(name="odd", attributes=attributes))
        reporter.report(make_span(name="after"))
        assert reporter.flush(15)
        reporter.report(make_span(name="later"))
        assert reporter.flush(15)
        stats = reporter.stats()
        assert stats.acked >= 3
        assert total(stats) == 4
    payloads = b"".join(message.payload for message in raw(url))
    assert all(name in payloads for name in (b"before", b"after", b"later"))


@pytest.mark.parametrize("thing", [None, {"name": "not a span"}, "text", 7])
def test_what_is_no_span_does_not_raise(url: str, thing: Any) -> None:
    with Reporter("wrong", url) as reporter:
        reporter.report(thing)
        reporter.report(make_span(name="good"))
        assert reporter.flush(SOON)
        assert reporter.stats().acked == 1


def test_changing_attributes_after_report_changes_nothing_that_is_sent(broker: Broker) -> None:
    provision(broker.url)
    broker.kill()
    attributes: dict[str, Any] = {"kept": "yes", "deep": {"list": [1, 2]}}
    with Reporter("copy", broker.url) as reporter:
        reporter.report(make_span(attributes=attributes))
        attributes["deep"]["list"].append("later")
        attributes["later"] = "later"
        del attributes["kept"]
        broker.start()
        assert reporter.flush(SOON)
    (message,) = raw(broker.url)
    assert message.batch.spans[0].attributes == {"kept": "yes", "deep": {"list": [1, 2]}}
    assert b"later" not in message.payload


def test_a_span_without_an_end_ends_when_it_is_reported(url: str) -> None:
    before = time.time_ns()
    with Reporter("end", url) as reporter:
        reporter.report(Span(name="now", kind="custom"))
        reporter.report(make_span(ended_ns=1_800_000_000_000_000_000))
        after = time.time_ns()
        assert reporter.flush(SOON)
    ends = [span.ended_ns for message in raw(url) for span in message.batch.spans]
    assert before <= ends[0] <= after
    assert ends[1] == 1_800_000_000_000_000_000


# -- secrets


def test_secrets_are_gone_from_the_bytes_of_the_raw_stream(url: str) -> None:
    with Reporter("secrets", url) as reporter:
        reporter.report(
            make_span(
                attributes={
                    "password": "hunter2",
                    "deep": {"api_key": "sk-verysecret", "list": ["write to jane@example.com"]},
                    "header": "Authorization: Bearer abcdef123456",
                    "kept": "plain",
                },
                status="error",
                error="no mail for jane@example.com, password=hunter2",
                error_stack="File x.py: token=hunter2",
            )
        )
        assert reporter.flush(SOON)
    (message,) = raw(url)
    for secret in (b"hunter2", b"sk-verysecret", b"jane@example.com", b"abcdef123456"):
        assert secret not in message.payload
    (span,) = message.batch.spans
    assert span.attributes["password"] == REDACTED
    assert span.attributes["kept"] == "plain"
    assert "no mail for" in span.error


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"prompt_tokens": -1, "total_tokens": 1, "attributes": {"password": "hunter2"}}, id="bad tokens"),
        pytest.param({"name": "n" * 300, "attributes": {"password": "hunter2"}}, id="long name"),
        pytest.param({"error": "password=hunter2 " + "x" * 40_000, "status": "error"}, id="long error"),
        pytest.param({"attributes": {1: "x", "password": "hunter2"}}, id="a key that is no string"),
        pytest.param({"attributes": {"password": b"hunter2"}}, id="bytes"),
        pytest.param({"attributes": {"password": ("hunter2", "hunter2")}}, id="tuple"),
    ],
)
def test_secrets_of_a_span_that_is_out_of_bounds_stay_in_the_process_too(url: str, fields: dict[str, Any]) -> None:
    with Reporter("secrets", url) as reporter:
        reporter.report(make_span(**fields))
        assert reporter.flush(15)
        assert total(reporter.stats()) == 1
    assert all(b"hunter2" not in message.payload for message in raw(url))


# -- lifecycle


def test_an_empty_url_is_a_silent_no_op() -> None:
    threads = threading.active_count()
    with Reporter("none", "") as reporter:
        for _ in range(10):
            reporter.report(make_span(attributes={"x": object()}))
        assert reporter.stats() == NOTHING
        assert reporter.dropped == 0
        assert reporter.flush(0) is True
        assert threading.active_count() == threads
    assert reporter.stats() == NOTHING


def test_the_url_comes_from_the_environment_unless_given(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENTRACE_URL", raising=False)
    with Reporter("none") as reporter:
        reporter.report(make_span())
        assert reporter.stats() == NOTHING
    monkeypatch.setenv("TOKENTRACE_URL", url)
    with Reporter("environment") as reporter, Reporter("silenced", "") as silenced:
        reporter.report(make_span(name="there"))
        silenced.report(make_span(name="nowhere"))
        assert reporter.flush(SOON)
    assert names(raw(url)) == Counter(["there"])


@pytest.mark.parametrize("bad", ["localhost:4222", "ftp://host", "nat://host", "udp://x", "://", "nats", "NATS//x"])
def test_another_scheme_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError, match="nats://"):
        Reporter("scheme", bad)


@pytest.mark.parametrize("bad", ["nats://127.0.0.1:port", "http://127.0.0.1:port", "http://127.0.0.1:99999"])
def test_a_url_without_a_usable_port_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError):
        Reporter("port", bad)


@pytest.mark.parametrize("token", ["s3cret\n", "gehe\u0131m"])
def test_a_token_that_no_header_can_carry_does_not_strand_spans(token: str) -> None:
    """A token read from a file ends with a newline: refused at once, mended, or counted; never a hang."""
    with Endpoint() as endpoint:
        try:
            reporter = Reporter("token", endpoint.url, token=token)
        except ConfigError:
            return
        with reporter:
            reporter.report(make_span())
            assert reporter.flush(15)
            stats = reporter.stats()
            assert stats.queue_depth == 0
            assert total(stats) == 1


def test_close_sends_what_is_left_and_later_spans_are_dropped(url: str) -> None:
    reporter = Reporter("close", url)
    for _ in range(700):
        reporter.report(make_span())
    reporter.close()
    assert reporter.stats() == Stats(700, 700, 0, 0, 0)
    reporter.report(make_span())
    assert reporter.stats() == Stats(700, 700, 1, 0, 0)
    reporter.close()
    assert reporter.flush(0)
    assert sum(len(message.batch.spans) for message in raw(url)) == 700


def test_closing_a_reporter_that_reported_nothing_starts_nothing(nowhere: str) -> None:
    threads = threading.active_count()
    reporter = Reporter("nothing", nowhere)
    reporter.close()
    reporter.close()
    assert threading.active_count() == threads
    assert reporter.stats() == NOTHING


def test_the_thread_ends_with_close(url: str) -> None:
    with Reporter("thread", url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(SOON)
        assert any(thread.name == "tokentrace-reporter" for thread in threading.enumerate())
    assert not any(thread is reporter._thread for thread in threading.enumerate())


def test_an_unreachable_pipeline_and_close_drop_every_span(nowhere: str) -> None:
    reporter = Reporter("unreachable", nowhere)
    for _ in range(3):
        reporter.report(make_span())
    # The sender has had its first look and found nobody.
    time.sleep(0.2)
    reporter.close(1)
    assert (reporter.dropped, reporter.stats().queue_depth) == (3, 0)


def test_close_gives_up_on_a_peer_that_never_answers(silent: str) -> None:
    reporter = Reporter("silent", silent)
    reporter.report(make_span())
    time.sleep(0.2)
    reporter.close(0.5)
    assert (reporter.dropped, reporter.stats().queue_depth) == (1, 0)


def test_a_peer_that_never_greets_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = script(
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
    assert_well(done)
    assert done.stdout == "unavailable\n"


def test_flush_returns_when_close_gives_up(nowhere: str) -> None:
    reporter = Reporter("both", nowhere)
    reporter.report(make_span())
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(reporter.flush()), daemon=True)
    waiting.start()
    reporter.close(0.3)
    waiting.join(SOON)
    assert results == [True]
    assert reporter.dropped == 1


async def test_spans_of_an_async_program_arrive_while_its_loop_turns(broker: Broker) -> None:
    await asyncio.to_thread(provision, broker.url)
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
        assert await reporter.aflush(SOON)
        assert turns > before
        assert reporter.stats().acked == 400
        reporter.report(make_span(name="last"))
    turning.cancel()
    stored = await asyncio.to_thread(raw, broker.url)
    assert names(stored) == Counter([*(f"{a}-{b}" for a in range(20) for b in range(20)), "last"])


def test_a_reporter_whose_last_reference_goes_still_sends_its_spans(url: str) -> None:
    reporter = Reporter("garbage", url)
    for index in range(10):
        reporter.report(make_span(name=f"n{index}"))
    gone = weakref.ref(reporter)
    del reporter
    gc.collect()
    until(lambda: sum(names(raw(url)).values()) == 10, "all sent")
    left = gone()
    if left is not None:
        left.close()


# -- the program's end


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_program_that_just_ends_sends_its_spans_first(url: str, broker: Broker, host: str) -> None:
    done = script(
        "reporter = Reporter('exit', url)\n"
        "for index in range(3):\n"
        "    reporter.report(Span(name=f'n{index}', kind='custom'))\n",
        f"nats://{host}:{broker.port}",
    )
    assert_well(done)
    assert names(raw(url)) == Counter(["n0", "n1", "n2"])


def test_a_program_of_many_threads_that_calls_sys_exit_sends_its_spans_first(url: str) -> None:
    done = script(
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
    assert_well(done, 3)
    assert names(raw(url)) == Counter(f"{number}-{index}" for number in range(8) for index in range(50))


def test_an_async_program_that_fails_sends_its_spans_first(url: str) -> None:
    done = script(
        "import asyncio\n"
        "reporter = Reporter('exit', url)\n"
        "async def main():\n"
        "    reporter.report(Span(name='before', kind='custom'))\n"
        "    await asyncio.sleep(0)\n"
        "    raise SystemExit(5)\n"
        "asyncio.run(main())\n",
        url,
    )
    assert_well(done, 5)
    assert names(raw(url)) == Counter(["before"])


def test_a_reporter_made_while_atexit_runs_sends_its_span(url: str) -> None:
    done = script(
        "import atexit\n"
        "def last():\n"
        "    with Reporter('late', url) as reporter:\n"
        "        reporter.report(Span(name='late', kind='custom'))\n"
        "atexit.register(last)\n",
        url,
    )
    assert_well(done)
    assert names(raw(url)) == Counter(["late"])


def test_a_program_ends_although_a_reporter_nobody_holds_has_spans_for_nobody() -> None:
    done = script(
        "Reporter('garbage', url).report(Span(name='x', kind='custom'))\nprint('end')\n",
        f"nats://127.0.0.1:{free_port()}",
    )
    assert_well(done)
    assert done.stdout == "end\n"


# -- fork


def test_a_forked_child_reports_under_an_id_of_its_own_and_never_its_parents_spans(url: str, broker: Broker) -> None:
    broker.kill()  # so that the parent's queue is full when it forks
    starting = threading.Timer(1.0, broker.start)
    starting.start()
    done = script(
        "reporter = Reporter('forker', url)\n"
        "for index in range(300):\n"
        "    reporter.report(Span(name=f'parent-{index}', kind='custom'))\n"
        "mine = reporter.id\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert reporter.id != mine\n"
        "    assert tuple(reporter.stats()) == (0, 0, 0, 0, 0)\n"
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
        watched=False,
    )
    starting.join()
    assert_well(done)
    stored = raw(url)
    assert names(stored) == Counter(
        [*(f"parent-{index}" for index in range(400)), *(f"child-{index}" for index in range(50))]
    )
    for message in stored:
        assert len({span.name.partition("-")[0] for span in message.batch.spans}) == 1
    assert len({message.batch.id for message in stored}) == 2


def test_children_forked_while_threads_report_end_and_send_their_spans(url: str) -> None:
    done = script(
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
        watched=False,
    )
    assert_well(done)
    found = names(raw(url))
    assert found.pop("parent") == int(done.stdout.split()[-1])
    assert found == Counter(f"child-{child}-{index}" for child in range(12) for index in range(5))


def test_a_multiprocessing_child_sends_its_spans_before_it_ends(url: str) -> None:
    done = script(
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
        watched=False,
    )
    assert_well(done)
    assert names(raw(url)) == Counter(["parent", "child"])


# -- report() inside report()


def test_a_finalizer_that_reports_may_run_in_the_middle_of_report(url: str) -> None:
    """An abandoned response stream reports its span when it is collected, and that is wherever memory is allotted."""
    done = script(
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
        "print(*reporter.stats())\n",
        url,
    )
    assert_well(done)
    assert done.stdout == "6000 6000 0 0 0\n"
    assert names(raw(url)) == Counter({"abandoned": 3000, "reported": 3000})


def test_a_signal_handler_that_reports_may_run_in_the_middle_of_report(url: str) -> None:
    done = script(
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
        "assert tuple(reporter.stats()) == (30000 + handled, 30000 + handled, 0, 0, 0), (handled, reporter.stats())\n",
        url,
    )
    assert_well(done)


def test_a_log_handler_that_reports_may_be_called_by_report(url: str) -> None:
    done = script(
        "import logging\n"
        "reporter = Reporter('log', url)\n"
        "class Handler(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        reporter.report(Span(name='logged', kind='custom'))\n"
        "logging.getLogger('tokentrace').addHandler(Handler())\n"
        "logging.getLogger('tokentrace').setLevel('WARNING')\n"
        "reporter.report(Span(name='bad', kind='custom', attributes={'x': object()}))\n"
        "assert reporter.flush(15)\n"
        "assert tuple(reporter.stats()) == (1, 1, 0, 1, 0)\n",
        url,
    )
    assert_well(done)


# -- a whole pipeline, over NATS and over HTTP


@pytest.mark.parametrize("way", ["nats", "http"])
def test_the_totals_are_the_same_whichever_way_spans_travel(pipeline: Pipeline, way: str) -> None:
    before = counted(pipeline)
    now = time.time_ns()
    with Reporter("ways", pipeline.nats_url if way == "nats" else pipeline.url, token="s3cret") as reporter:
        for index in range(1500):
            reporter.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now, prompt_tokens=index + 1))
        assert reporter.flush(SOON)
        assert reporter.stats() == Stats(1500, 1500, 0, 0, 0)
    wanted = {"spans": before["spans"] + 1500, "prompt": before["prompt"] + 1500 * 1501 // 2}
    pipeline.until(lambda: counted(pipeline) == wanted, f"{wanted}", SOON)


@pytest.mark.parametrize("way", ["nats", "http"])
def test_a_span_that_is_out_of_bounds_leaves_its_neighbours_whichever_way_it_travels(
    pipeline: Pipeline, way: str
) -> None:
    before = counted(pipeline)
    now = time.time_ns()
    with Reporter("bad", pipeline.nats_url if way == "nats" else pipeline.url, token="s3cret") as reporter:
        for tokens in (1, -1, 2, 2**50, 4):
            reporter.report(
                make_span(trace_id="", span_id="", started_ns=0, ended_ns=now, prompt_tokens=tokens, total_tokens=0)
            )
        reporter.report(make_span(trace_id="", span_id="", ended_ns=now, model="", prompt_tokens=8))
        assert reporter.flush(15)
    wanted = {"spans": before["spans"] + 3, "prompt": before["prompt"] + 7}
    pipeline.until(lambda: counted(pipeline) == wanted, f"{wanted}", 15)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_token_counts_as_failed(pipeline: Pipeline, token: str) -> None:
    before = counted(pipeline)
    with Reporter("stranger", pipeline.url, token=token) as reporter:
        for _ in range(5):
            reporter.report(make_span())
        assert reporter.flush(SOON)
        stats = reporter.stats()
        assert (stats.acked, stats.failed, reporter.dropped) == (0, 5, 5)
    assert counted(pipeline) == before


@pytest.mark.parametrize("way", ["nats", "http"])
def test_what_is_sent_again_after_a_restart_of_everything_counts_once(pipeline: Pipeline, way: str) -> None:
    """The answer is lost on the way back, the pipeline is killed, and the same batches come again."""
    before = counted(pipeline)
    now = time.time_ns()
    proxy = Proxy(pipeline.nats_port if way == "nats" else pipeline.port)
    away = True
    mark = b'"stream":"TT_RAW"' if way == "nats" else b"202 Accepted"
    proxy.cut = lambda data: away and mark in data
    wanted = {"spans": before["spans"] + 300, "prompt": before["prompt"] + 300 * 512}
    try:
        with Reporter("again", f"{way}://127.0.0.1:{proxy.port}", token="s3cret") as reporter:
            for _ in range(300):
                reporter.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now))
            pipeline.until(lambda: counted(pipeline) == wanted and proxy.cuts > 0, "counted, unknown to the reporter")
            assert reporter.stats().queue_depth > 0
            pipeline.kill()
            pipeline.start()
            away = False
            assert reporter.flush(SOON)
            assert reporter.stats() == Stats(300, 300, 0, 0, 0)
        with Reporter("mark", pipeline.nats_url) as marker:
            marker.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now))
        wanted = {"spans": wanted["spans"] + 1, "prompt": wanted["prompt"] + 512}
        pipeline.until(lambda: counted(pipeline)["spans"] >= wanted["spans"], "read to the end", SOON)
        assert counted(pipeline) == wanted
    finally:
        proxy.close()


def test_no_span_can_stop_the_pipeline(tmp_path: Path) -> None:
    """What nobody can read becomes a dead letter; the spans behind it are counted and the program goes on."""
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        now = time.time_ns()
        odd = {"odd": {1: "integer key", "b": b"bytes"}}
        batch = Batch(
            id="foreign", sequence=1, spans=[make_span(attributes=odd), make_span(ended_ns=now, started_ns=0)]
        )

        async def publish() -> None:
            client = await nats.connect(serving.nats_url)
            await client.jetstream().publish("tokentrace.raw.default.0", msgspec.msgpack.encode([batch]))
            await client.close()

        asyncio.run(publish())
        serving.until(lambda: serving.metrics()["span_count"] == 1, "the neighbour counted", 20)
        assert serving.get("/readyz").status == 200
    finally:
        serving.stop()
