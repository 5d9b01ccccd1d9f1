"""Sending on to other backends, on both buses: what arrives, what is tried again, and what is lost and counted."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from kit import otlp
from kit.environment import PATIENCE
from kit.forwarding import (
    HEADER_SECRET,
    KEY,
    URL_SECRET,
    Forwards,
    names_in,
    request_in,
    settings_of,
    signal_of,
    streams_of,
    without_mark,
)
from kit.otlp import LOGS, METRICS, TRACES
from kit.receiver import Receiver, Reply, Sent
from kit.rule_store import open_bus
from tokentrace.bus import Bus, Stream, subjects
from tokentrace.config import Settings
from tokentrace.dialect.otlp import map_spans
from tokentrace.dialect.otlp.messages import Signal, read_request
from tokentrace.dialect.otlp.protobuf_wire import decode_traces
from tokentrace.errors import ConfigError
from tokentrace.records import Batch, Span
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace_ingest.forward.targets import Forwarding

SIGNALS: dict[Signal, str] = {"traces": TRACES, "logs": LOGS, "metrics": METRICS}
NOW_NS = 1_767_225_600_000_000_000


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request, [subjects.bucket(subjects.META)]) as opened:
        yield opened


@contextlib.asynccontextmanager
async def forwards(bus: Bus, *targets: dict[str, Any], running: bool = True) -> AsyncIterator[Forwards]:
    """Make the streams of *targets*, which no test has made before, and yield a tee with a forwarder."""
    settings = settings_of(*targets)
    for stream in streams_of(settings):
        if stream.name.startswith(subjects.FORWARD):
            await bus.ensure(stream)
    made = Forwards(bus, settings)
    if not running:
        yield made
        return
    async with made.running():
        yield made


def target(receiver: Receiver, name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": receiver.url, **more}


def body_of(signal: Signal, name: str = "chat") -> bytes:
    """Return a request of *signal* in protobuf; *name* is that of its span."""
    span = otlp.call(name=name, attrs={"note": f"my key is {KEY}", "plan": "pro"})
    requests: dict[Signal, Any] = {
        "traces": otlp.traces([span]),
        "logs": otlp.logs([otlp.evaluation(span, "helpful", 0.5)]),
        "metrics": otlp.metrics(2),
    }
    return otlp.encoded(requests[signal], "protobuf", SIGNALS[signal])


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(15 * PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not {what}") from None


async def test_each_signal_arrives_once_at_the_path_of_its_signal(bus: Bus) -> None:
    with Receiver() as receiver:
        url = f"{receiver.url}/{URL_SECRET}/"
        async with forwards(bus, {"name": "all", "url": url, "headers": {"X-Key": HEADER_SECRET}}) as run:
            for signal in SIGNALS:
                for _ in range(2):
                    await run.tee.request(signal, "protobuf", BODIES[signal], signal)
            await run.sent_all("all")
            await until(lambda: run.forwarder.states()["all"].sent == 3, "counted")
        assert sorted(sent.path for sent in receiver.sent) == sorted(
            f"/{URL_SECRET}{path}" for path in SIGNALS.values()
        )
        assert {sent.header("X-Key") for sent in receiver.sent} == {HEADER_SECRET}
        for sent in receiver.sent:
            received = without_mark(request_in(sent)).SerializeToString()
            assert KEY.encode() not in received
            if signal_of(sent) != "traces":
                assert received in BODIES.values()
        shown = f"{run.forwarder.states()}{list(run.forwarder.samples())}{run.forwarder._lines[0].target}"
        assert URL_SECRET not in shown
        assert HEADER_SECRET not in shown


BODIES = {signal: body_of(signal) for signal in SIGNALS}


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_secrets_are_removed_by_default_and_nothing_but_a_mark_is_changed_without(
    bus: Bus, encoding: Any
) -> None:
    request = otlp.traces(
        [otlp.call(attrs={"note": f"my key is {KEY}"}, links=[{"traceId": "a" * 32, "spanId": "b" * 16}])]
    )
    body = otlp.encoded(request, encoding)
    with Receiver() as plain, Receiver() as clean:
        async with forwards(bus, target(plain, f"p-{encoding}", redact=False), target(clean, f"c-{encoding}")) as run:
            await run.tee.request("traces", encoding, body, encoding)
            await run.sent_all(f"p-{encoding}")
            await run.sent_all(f"c-{encoding}")
        [unchanged], [redacted] = plain.sent, clean.sent
    original = read_request("traces", encoding, body)
    assert without_mark(request_in(unchanged)) == original
    found = without_mark(request_in(redacted))
    assert KEY not in str(found)
    assert KEY in str(original)
    assert len(found.resource_spans[0].scope_spans[0].spans[0].links) == 1


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (Reply(429, {"Retry-After": "1"}), "HTTP 429, Retry-After 1 s"),
        (Reply(502), "HTTP 502"),
        (Reply(503), "HTTP 503"),
        (Reply(504), "HTTP 504"),
        (Reply(0), "no answer: RemoteProtocolError"),
    ],
    ids=["429", "502", "503", "504", "closed"],
)
async def test_a_request_waits_until_the_target_takes_it(bus: Bus, first: Reply, reason: str) -> None:
    up = False

    def answer(_: Sent) -> Reply:
        return Reply() if up else first

    name = f"later-{first.status}"
    with Receiver(answer) as receiver:
        async with forwards(bus, target(receiver, name)) as run:
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await until(lambda: run.forwarder.states()[name].failing != "", "failing")
            state = run.forwarder.states()[name]
            assert (state.failing, state.last_error, state.sent) == (reason, reason, 0)
            assert await run.waiting(name) == 1
            up = True
            await run.sent_all(name)
        state = run.forwarder.states()[name]
        assert (state.failing, state.last_error, state.sent, state.refused) == ("", reason, 1, 0)
        tries = [sent for sent in receiver.sent if sent.body == receiver.sent[0].body]
        assert len(tries) == len(receiver.sent) >= 2
        if first.status == 429:
            assert tries[1].at - tries[0].at >= 1.0, "Retry-After was obeyed"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500])
async def test_a_refused_request_is_counted_and_not_sent_again(bus: Bus, status: int) -> None:
    refuse = True

    def answer(_: Sent) -> Reply:
        return Reply(status, {"Location": "http://127.0.0.1:1/"}) if refuse else Reply()

    name = f"refuses-{status}"
    with Receiver(answer) as receiver:
        async with forwards(bus, target(receiver, name)) as run:
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await run.sent_all(name)
            refuse = False
            await run.tee.request("traces", "protobuf", BODIES["traces"], "b")
            await run.sent_all(name)
        state = run.forwarder.states()[name]
        assert (state.sent, state.refused, state.failing) == (1, 1, "")
        assert state.last_error == f"HTTP {status}, so a request of traces is not sent again"
        assert len(receiver.sent) == 2


async def test_a_request_that_is_too_large_for_the_target_arrives_in_halves(bus: Bus) -> None:
    spans = [otlp.call(name=f"call {number}") for number in range(5)]

    def answer(sent: Sent) -> Reply:
        return Reply(413) if len(names_in([sent])) > 2 or "call 4" in names_in([sent]) else Reply()

    with Receiver(answer) as receiver:
        async with forwards(bus, target(receiver, "small")) as run:
            await run.tee.request("traces", "protobuf", otlp.encoded(otlp.traces(spans), "protobuf"), "a")
            await until(lambda: run.forwarder.states()["small"].refused == 1, "one refused")
            await run.sent_all("small")
        taken = [sent for sent in receiver.sent if answer(sent).status == 200]
        assert names_in(taken) == [f"call {number}" for number in range(4)]
        assert run.forwarder.states()["small"].last_error.startswith("HTTP 413 for a single record")


@pytest.mark.parametrize("media", ["protobuf", "json"])
async def test_records_that_a_target_refuses_of_a_request_are_counted(bus: Bus, media: str) -> None:
    told = ExportTraceServiceResponse()
    told.partial_success.rejected_spans, told.partial_success.error_message = 3, f"no room for {KEY}"
    answers = {
        "protobuf": ("application/x-protobuf", told.SerializeToString()),
        "json": (
            "application/json",
            f'{{"partialSuccess":{{"rejectedSpans":"3","errorMessage":"no room for {KEY}"}}}}'.encode(),
        ),
    }
    kind, body = answers[media]
    name = f"partial-{media}"
    with Receiver(lambda sent: Reply(200, {"Content-Type": kind}, body)) as receiver:
        async with forwards(bus, target(receiver, name)) as run:
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await run.sent_all(name)
        state = run.forwarder.states()[name]
        assert (state.sent, state.refused, state.rejected_records) == (1, 0, 3)
        assert state.last_error.startswith("3 records of a request were refused: no room for ")
        assert KEY not in state.last_error


async def test_a_stopped_forwarder_gives_back_what_it_could_not_send(bus: Bus) -> None:
    with Receiver(lambda sent: Reply(503, {"Retry-After": "3600"})) as receiver:
        async with forwards(bus, target(receiver, "back")) as run:
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await until(lambda: run.forwarder.states()["back"].failing != "", "failing")
            await run.ended()
            assert await run.waiting("back") == 1
        receiver.answer = lambda sent: Reply()
        async with forwards(bus, target(receiver, "back")) as other:
            await other.sent_all("back")
        assert other.forwarder.states()["back"].sent == 1


async def test_several_forwarders_share_the_work(bus: Bus) -> None:
    with Receiver() as receiver:
        async with (
            forwards(bus, target(receiver, "shared")) as one,
            forwards(bus, target(receiver, "shared")) as other,
        ):
            for number in range(40):
                await one.tee.request("traces", "protobuf", body_of("traces", f"call {number:02d}"), str(number))
            await one.sent_all("shared")
            states = [run.forwarder.states()["shared"] for run in (one, other)]
        assert names_in(receiver.sent) == [f"call {number:02d}" for number in range(40)]
        assert sum(state.sent for state in states) == 40


async def test_a_full_stream_loses_the_oldest_and_counts_them_once(bus: Bus) -> None:
    with Receiver() as receiver:
        settings = settings_of(target(receiver, "full"))
        [stream] = [stream for stream in streams_of(settings) if stream.name == "TT_FORWARD_full"]
        bodies = [body_of("traces", f"call {number:02d} {'x' * 200}") for number in range(40)]
        await bus.ensure(replace(stream, max_bytes=12 * 1024))
        first = Forwards(bus, settings)
        async with first.running():
            # So that the consumer exists, as after any start.
            await first.tee.request("traces", "protobuf", BODIES["traces"], "first")
            await first.sent_all("full")
            await first.ended()
        receiver.sent.clear()
        for number, body in enumerate(bodies):
            await first.tee.request("traces", "protobuf", body, str(number))
        left = await first.waiting("full")
        assert 0 < left < 40
        runs = [Forwards(bus, settings) for _ in range(2)]
        async with runs[0].running(), runs[1].running():
            await runs[0].sent_all("full")
            await until(lambda: sum(run.forwarder.states()["full"].sent for run in runs) == left, "sent")
            await until(
                lambda: {run.forwarder.states()["full"].lost for run in runs} == {40 - left}, "lost ones counted"
            )
        assert len(receiver.sent) == left
        assert [name[:7] for name in names_in(receiver.sent)] == [
            f"call {number:02d}" for number in range(40 - left, 40)
        ]


async def test_a_large_request_arrives_in_several(bus: Bus) -> None:
    spans = [otlp.call(name=f"call {number:02d}", attrs={"text": f"{number} " + "x" * 200_000}) for number in range(16)]
    with Receiver() as receiver:
        async with forwards(bus, target(receiver, "large")) as run:
            await run.tee.request("traces", "protobuf", otlp.encoded(otlp.traces(spans), "protobuf"), "a")
            await run.sent_all("large")
        assert len(receiver.sent) >= 4
        assert names_in(receiver.sent) == [f"call {number:02d}" for number in range(16)]


async def test_what_this_pipeline_has_sent_on_is_not_sent_on_again(bus: Bus) -> None:
    with Receiver() as receiver:
        async with forwards(bus, target(receiver, "loop")) as run:
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await run.sent_all("loop")
            [sent] = receiver.sent
            await run.tee.request("traces", "protobuf", gzip.decompress(sent.body), "b")
            assert await run.waiting("loop") == 0
            looped = {sample.name: sample.value for sample in run.tee.samples()}
        assert looped["tokentrace_forward_looped_total"] == 1
        assert len(receiver.sent) == 1


async def test_spans_that_did_not_come_by_otlp_are_sent_as_stored_to_targets_that_want_them(bus: Bus) -> None:
    span = Span(
        trace_id="a" * 32,
        span_id="b" * 16,
        name="answer",
        model="gpt-4o",
        provider="openai",
        started_ns=NOW_NS,
        ended_ns=NOW_NS + 10**9,
        latency_ns=10**9,
        prompt_tokens=512,
        completion_tokens=128,
        total_tokens=640,
        cost_nusd=2_560_000,
        cost_source="priced",
        source="reporter",
    )
    batch = Batch(id="reporter.1", sequence=7, spans=[span])
    with Receiver() as wants, Receiver() as other:
        async with forwards(bus, target(wants, "wants", spans=True), target(other, "other")) as run:
            for _ in range(2):
                await run.tee.batches([batch])
            await run.sent_all("wants")
            assert await run.waiting("other") == 0
        [sent] = wants.sent
        assert other.sent == []
    mapped = map_spans(decode_traces(gzip.decompress(sent.body)))
    assert mapped.spans == [replace(span, source="otlp", cost_source="reported")]


async def test_a_message_that_is_of_no_signal_ends_no_forwarder(bus: Bus) -> None:
    with Receiver() as receiver:
        async with forwards(bus, target(receiver, "odd"), running=False) as run:
            await bus.publish("tokentrace.forward.odd.nonsense", b"\xff")
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            async with run.running():
                await run.sent_all("odd")
        assert len(receiver.sent) == 1
    assert bus.set_aside.totals == {"TT_FORWARD_odd": 1}


async def test_a_host_at_a_private_address_is_called_only_if_a_setting_lists_it(bus: Bus) -> None:
    with Receiver() as receiver:
        named = settings_of({"name": "hidden", "url": f"http://localhost:{receiver.port}"}, allow_hosts=["localhost"])
        for stream in streams_of(named):
            if stream.name.startswith(subjects.FORWARD):
                await bus.ensure(stream)
        unlisted = AllowedHosts.parse(None, "otlp.forward_allow_hosts", private=False)
        run = Forwards(bus, named, Forwarding(Forwarding.of(named).targets, unlisted))
        async with run.running():
            await run.tee.request("traces", "protobuf", BODIES["traces"], "a")
            await until(lambda: run.forwarder.states()["hidden"].failing != "", "failing")
            assert run.forwarder.states()["hidden"].failing == (
                "host 'localhost' has only private addresses, and otlp.forward_allow_hosts does not list it"
            )
        assert receiver.sent == []
        async with Forwards(bus, named).running() as other:
            await other.sent_all("hidden")
        assert len(receiver.sent) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "[::1]", "0x7f.1", "[64:ff9b::7f00:1]"])
def test_a_private_address_that_is_not_listed_is_refused_at_the_start(host: str) -> None:
    def settings(allow_hosts: list[str] | None) -> Settings:
        return settings_of({"name": "a", "url": f"http://{host}:4318/{URL_SECRET}"}, allow_hosts=allow_hosts)

    with pytest.raises(ConfigError, match=r"otlp\.forward\[0\]\.url: host .* is a private address") as caught:
        Forwarding.of(settings(None))
    assert URL_SECRET not in str(caught.value)
    assert Forwarding.of(settings([host])).targets[0].name == "a"
    with pytest.raises(ConfigError, match="link-local"):
        Forwarding.of(settings_of({"name": "a", "url": "http://169.254.169.254"}, allow_hosts=None))


def test_a_stream_of_a_target_is_a_queue_that_discards_its_oldest() -> None:
    settings = settings_of({"name": "a-1", "url": "https://example.com"})
    [stream] = streams_of(settings)[len(subjects.streams()) :]
    assert stream == Stream(
        name="TT_FORWARD_a-1",
        subjects=("tokentrace.forward.a-1.*",),
        work_queue=True,
        max_bytes=256 * 1024 * 1024,
        max_age_ns=86_400 * 10**9,
        evicts=True,
    )
    assert not stream.refuses
