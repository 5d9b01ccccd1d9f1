"""Messages that ingest did not write are skipped and counted in the log, and stop no reader and no aggregator."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.cases import check_all
from kit.json_spans import fresh
from kit.nats_client import RAW, SPANS, on_nats, publish
from kit.pipeline import Pipeline
from kit.reported_spans import assert_exact, counted, encode_batch, reported_span
from tokentrace.metrics import Query
from tokentrace.records import Span, encode_batches

REJECTED = ("tokentrace_aggregator_rejected", "tokentrace_api_rejected_messages")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("log"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def rejected_messages(pipeline: Pipeline) -> list[float]:
    """Return how many messages the aggregator and the api have rejected."""
    text = pipeline.get("/internal/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return [float(sum(sample.value for sample in families[name].samples)) for name in REJECTED]


def nested_extension() -> bytes:
    return encode_batch(reported_span("direct", attributes={"a": [msgspec.msgpack.Ext(5, b"x")]}))


def deep_attributes(levels: int) -> bytes:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    return encode_batch(reported_span("direct", attributes={"a": nested}))


#: Messages that cannot be decoded.
UNDECODABLE = {
    "empty": b"",
    "noise": random.Random(5).randbytes(300),
    "JSON": b'{"model": "gpt-4o", "prompt_tokens": 5}',
    "nil": b"\xc0",
    "deep": b"\x91" * 100_000,
    "invalid UTF-8": b"\x91\x92\xa2\xff\xfe\x01",
    "invalid UTF-8 inside": encode_batch(reported_span("direct", model="BROKEN")).replace(
        b"BROKEN", b"\xff\xfe\xfd\xfc\xfb\xfa"
    ),
    "negative tokens": encode_batch(reported_span("direct", prompt_tokens=-1)),
    "2**63 tokens": encode_batch(reported_span("direct", prompt_tokens=2**63)),
    "text for a number": msgspec.msgpack.encode([["x", "1"]]),
}
#: Messages that can be decoded, but that ingest would not have written.
NEVER_WRITTEN = {
    "extension": encode_batch(reported_span("direct", attributes={"a": msgspec.msgpack.Ext(5, b"x")})),
    "nested extension": nested_extension(),
    "bytes": encode_batch(reported_span("direct", attributes={"a": b"\xff"})),
    "nil key": encode_batch(reported_span("direct", attributes={"a": {None: 1}})),
    "number key": encode_batch(reported_span("direct", attributes={"a": {1: 1}})),
    "array key": encode_batch(reported_span("direct", attributes={"a": {(1, 2): 1}})),
    "NaN": encode_batch(reported_span("direct", attributes={"a": float("nan")})),
    "deep 300": deep_attributes(300),
    "deep 700": deep_attributes(700),
    "no ids": encode_batch(Span()),
    "no batches": encode_batches([]),
    "no spans": encode_batch(),
    "odd id": encode_batch(reported_span("direct"), id="\x00\n\u2028"),
    "highest sequence": encode_batch(reported_span("direct"), sequence=2**63 - 1, part=2**20),
    "NUL": encode_batch(reported_span("\x00", model="\x00", name="\x00", trace_id="\x00")),
    "end before start": encode_batch(reported_span("direct", started_ns=4 * 10**18, ended_ns=10**18)),
    "the largest numbers": encode_batch(
        *(
            reported_span("direct", prompt_tokens=2**40, latency_ns=2_592_000 * 10**9, cost_nusd=10**15)
            for _ in range(300)
        )
    ),
}


def test_an_undecodable_message_of_the_log_is_skipped_and_counted(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in UNDECODABLE}
    last = fresh("caller")

    def check(name: str) -> None:
        expected = [count + 1 for count in rejected_messages(pipeline)]
        publish(pipeline, (RAW, encode_batch(reported_span(callers[name]))), (SPANS, UNDECODABLE[name]))
        pipeline.until(lambda: rejected_messages(pipeline) == expected, "counted as rejected once", 20)

    before = rejected_messages(pipeline)
    check_all({name: name for name in UNDECODABLE}, check)
    publish(pipeline, (RAW, encode_batch(reported_span(last))))
    assert_exact(pipeline, dict.fromkeys([*callers.values(), last], 1))
    assert rejected_messages(pipeline) == [count + len(UNDECODABLE) for count in before]


def test_a_message_that_ingest_never_writes_stops_no_reader(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in NEVER_WRITTEN}
    last = fresh("caller")

    def check(name: str) -> None:
        publish(pipeline, (RAW, encode_batch(reported_span(callers[name]))), (SPANS, NEVER_WRITTEN[name]))
        pipeline.until(lambda: counted(pipeline, callers[name]) == 1, "counted", 20)
        for path in ("/metrics?window=30d&kind=all", "/stats", "/traces?limit=200", "/traces/recent", "/health"):
            assert pipeline.get(path).status == 200, path

    check_all({name: name for name in NEVER_WRITTEN}, check)
    publish(pipeline, (RAW, encode_batch(reported_span(last))))
    assert_exact(pipeline, dict.fromkeys([*callers.values(), last], 1))
    for path in ("/metrics?window=30d&kind=all", "/stats", "/traces?limit=200", "/traces/recent", "/health"):
        assert pipeline.get(path).status == 200, path


def test_undecodable_messages_in_the_log_do_not_prevent_a_start(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        messages = [(SPANS, payload) for payload in UNDECODABLE.values()]
        publish(serving, (RAW, encode_batch(reported_span("caller"))), *messages)
        serving.until(lambda: counted(serving, "caller") == 1, "counted", 20)
        serving.kill()
        serving.start()
        assert_exact(serving, {"caller": 1})
    finally:
        serving.stop()


def encode_query(**fields: Any) -> bytes:
    """Return a query over an hour, with *fields* replaced."""
    now_s = 1_795_000_000
    hour = {"from_s": now_s - 3600, "to_s": now_s, "now_s": now_s}
    return msgspec.msgpack.encode(Query(**{**hour, **fields}))


INVALID_QUERIES = {
    "empty": b"",
    "noise": random.Random(6).randbytes(200),
    "invalid UTF-8": b"\x91\xa2\xff\xfe",
    "deep": b"\x91" * 100_000,
    "JSON": b'{"what": "window"}',
    "unknown dimension": encode_query(groupby="nonsense"),
    "a name of Python": encode_query(groupby="__class__"),
    "unknown filter": encode_query(filters={"nonsense": "x"}),
    "unknown field": encode_query(fields=["nonsense"]),
    "end before start": encode_query(from_s=10, to_s=5),
    "all of time": encode_query(from_s=-(2**62), to_s=2**62),
    "far future": encode_query(from_s=2**61, to_s=2**62, now_s=2**61),
    "no interval": encode_query(from_s=0, to_s=0, now_s=0),
    "2**64": encode_query(to_s=2**64 - 1),
}


def test_an_invalid_query_stops_no_aggregator(pipeline: Pipeline) -> None:
    def check(payload: bytes) -> None:
        async def ask(client: Any) -> None:
            await client.publish("tokentrace.query.metrics", payload)
            await client.publish("tokentrace.query.metrics", payload, reply="tokentrace.test.absent")
            with contextlib.suppress(nats.errors.TimeoutError):
                await client.request("tokentrace.query.metrics", payload, timeout=0.2)

        on_nats(pipeline, ask)
        answer = pipeline.get("/metrics?window=30d")
        assert answer.status == 200
        assert "incomplete" not in answer.json()

    check_all(INVALID_QUERIES, check)
    assert_exact(pipeline, {})


def test_invalid_answers_of_another_client_are_ignored_by_the_api(pipeline: Pipeline) -> None:
    async def impersonate(client: Any) -> list[int]:
        async def answer(message: Any) -> None:
            for payload in (b"", b"\x91\xa2\xff\xfe", b"noise", b"\x91" * 5000, struct.pack(">I", 7)):
                await client.publish(message.reply, payload)

        await client.subscribe("tokentrace.query.metrics", cb=answer)
        await client.flush()
        answers = [await asyncio.to_thread(pipeline.get, path) for path in ("/metrics", "/stats", "/health")]
        return [shown.status for shown in answers]

    assert on_nats(pipeline, impersonate) == [200, 200, 200]
    assert_exact(pipeline, {})
