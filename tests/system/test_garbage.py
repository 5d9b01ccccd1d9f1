"""Garbage at every way in: it is refused and told, its valid neighbours are counted, the process lives."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.environment import plain_environment
from kit.pipeline import Answer, Pipeline
from tokentrace.metrics import Query
from tokentrace.records import Batch, Span, encode_batches

MIB = 1024 * 1024
RAW, SPANS = "tokentrace.raw.default.0", "tokentrace.spans.default.0"
SECRET = "S3CR3T-hunter2-S3CR3T"
BATCH_TYPE = "application/vnd.tokentrace.batches+msgpack"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pipeline]]:
    """The pipeline under fire; the last of the list, for a dead one is replaced."""
    serving = [Pipeline(tmp_path_factory.mktemp("garbage"))]
    serving[0].start()
    yield serving
    for one in serving:
        one.stop()


@pytest.fixture
def pipeline(kept: list[Pipeline], tmp_path: Path) -> Pipeline:
    """One pipeline for all tests; after one that ended or jammed it, another on an empty directory."""
    serving = kept[-1]
    assert serving.process is not None
    jammed = serving.process.poll() is not None or serving.get("/readyz").status != 200
    if jammed or getattr(serving, "poisoned", False):
        serving.stop()
        serving = Pipeline(tmp_path / "again")
        kept.append(serving)
        serving.start()
    # Cleared by ``lives``: a test that fails leaves a message behind that would be delivered to the next one.
    serving.poisoned = True  # type: ignore[attr-defined]
    return serving


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


def make(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 5, "comp_tokens": 1, **fields}


def span(caller: str, **fields: Any) -> Span:
    """A valid record of a reporter, unless *fields* say otherwise."""
    return Span(
        **{
            "trace_id": fresh("trace"),
            "span_id": fresh("span"),
            "caller": caller,
            "model": "gpt-4o",
            "provider": "openai",
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 6,
            **fields,
        }
    )


def batch(*spans: Span, **fields: Any) -> bytes:
    """A reporter's message of one batch."""
    known = {"id": f"default.test.{uuid.uuid4().hex}", "sequence": 1, "spans": spans}
    return encode_batches([Batch(**{**known, **fields})])


def refused(answer: Answer, *statuses: int) -> str:
    assert answer.status in (statuses or (400,)), (answer.status, answer.body[:300])
    assert list(answer.json()) == ["error"]
    error = str(answer.json()["error"])
    assert 0 < len(error) < 1000
    return error


def counted(serving: Pipeline, caller: str) -> int:
    return int(serving.get(f"/metrics?window=30d&kind=all&caller={caller}").json()["span_count"])


def lives(serving: Pipeline, caller: str, spans: int) -> None:
    """A last valid neighbour gets through, then exactly *spans* of *caller* are in metrics and traces."""
    mark = fresh("mark")
    answer = serving.post("/spans", make(caller=mark, trace_id=mark))
    assert answer.status == 202, answer.body
    serving.until(lambda: counted(serving, mark) == 1, "neighbour counted", 10)
    if spans:
        serving.until(lambda: serving.get(f"/traces/{mark}").json()["span_count"] == 1, "neighbour stored", 10)
        serving.until(lambda: counted(serving, caller) >= spans, f"{spans} neighbours counted", 10)
        serving.until(lambda: stored(serving, caller) >= spans, f"{spans} neighbours stored", 10)
        assert stored(serving, caller) == spans
    assert counted(serving, caller) == spans
    assert serving.get("/healthz").status == 200
    assert serving.get("/readyz").status == 200
    serving.poisoned = False  # type: ignore[attr-defined]


def stored(serving: Pipeline, caller: str) -> int:
    """Spans of *caller* in traces that hold no other caller's spans."""
    page = serving.get(f"/traces?caller={caller}&limit=200").json()
    assert page["total"] <= 200
    return sum(int(trace["span_count"]) for trace in page["traces"])


def memory(serving: Pipeline, what: str) -> int:
    """``VmRSS`` or ``VmHWM``, the highest it ever was, in bytes."""
    assert serving.process is not None
    lines = Path(f"/proc/{serving.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


# -- HTTP: bodies


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A gigabyte of zeros as gzip: one block of 16 MiB, 64 times."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(16 * MIB)
    first = pack.compress(zeros) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(zeros) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + again * 63


@pytest.mark.parametrize("path", ["/spans", "/mist"])
def test_a_gzip_bomb_is_413_and_takes_no_memory(pipeline: Pipeline, bomb: bytes, path: str) -> None:
    before = memory(pipeline, "VmRSS")
    error = refused(pipeline.post(path, bomb, {"Content-Encoding": "gzip"}), 413)
    assert "decompress" in error
    assert memory(pipeline, "VmHWM") - before < 200 * MIB
    lives(pipeline, fresh("absent"), 0)


def send_declared(serving: Pipeline, size: int) -> Answer:
    """POST /spans of *size* zeros, announced; the answer may come before the end."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/spans")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(size // MIB):
                connection.send(bytes(MIB))
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def send_chunked(serving: Pipeline, chunk: bytes, count: int, head: bytes = b"", **headers: str) -> Answer:
    """POST /spans of *count* times *chunk*, of a length not told beforehand; the answer may come before the end."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/spans")
        for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in [head] * bool(head) + [chunk] * count:
                connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            connection.send(b"0\r\n\r\n")
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def test_a_body_of_100_mb_is_413_whether_it_says_so_or_not(pipeline: Pipeline) -> None:
    before = memory(pipeline, "VmRSS")
    refused(send_declared(pipeline, 100 * MIB), 413)
    refused(send_chunked(pipeline, b" " * MIB, 100), 413)
    assert memory(pipeline, "VmHWM") - before < 200 * MIB
    lives(pipeline, fresh("absent"), 0)


def test_a_body_that_lies_about_its_length_is_refused(pipeline: Pipeline) -> None:
    for length in ("99999999999999999999", "8388609"):
        connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/spans")
            connection.putheader("Content-Length", length)
            connection.endheaders(b"{}")
            response = connection.getresponse()
            assert response.status in (400, 413)
            response.read()
    lives(pipeline, fresh("absent"), 0)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = json.dumps(make(caller=caller)).encode()
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/spans")
            connection.putheader("Content-Length", str(len(body) + 10))
            connection.endheaders(body)
    lives(pipeline, caller, 0)


def test_bytes_behind_a_gzip_body_are_not_passed_over_in_silence(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    packed = gzip.compress(json.dumps(make(caller=caller)).encode())
    refused(pipeline.post("/spans", packed + b"rubbish", {"Content-Encoding": "gzip"}), 400)
    refused(send_chunked(pipeline, bytes(MIB), 16, packed, Content_Encoding="gzip"), 400, 413)
    lives(pipeline, caller, 0)


def deep(levels: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
    return left * levels + right * levels


GOOD = json.dumps(make()).encode()
BODIES = {
    "empty": b"",
    "null": b"null",
    "true": b"true",
    "number": b"42",
    "string": b'"span"',
    "NaN": b"NaN",
    "spaces": b"   ",
    "NaN cost": GOOD[:-1] + b', "cost_usd": NaN}',
    "infinite cost": GOOD[:-1] + b', "cost_usd": Infinity}',
    "1e400 cost": GOOD[:-1] + b', "cost_usd": 1e400}',
    "1e300 cost": GOOD[:-1] + b', "cost_usd": 1e300}',
    "negative cost": GOOD[:-1] + b', "cost_usd": -0.01}',
    "1e400 latency": GOOD[:-1] + b', "latency_ms": 1e400}',
    "1e300 ttft": GOOD[:-1] + b', "ttft_ms": 1e300}',
    "1e400 attribute": GOOD[:-1] + b', "attributes": {"a": 1e400}}',
    "NaN attribute": GOOD[:-1] + b', "attributes": {"a": NaN}}',
    "2**70 attribute": GOOD[:-1] + b', "attributes": {"a": %d}}' % 2**70,
    "-2**70 attribute": GOOD[:-1] + b', "attributes": {"a": -%d}}' % 2**70,
    "5000 digits": GOOD[:-1] + b', "attributes": {"a": ' + b"9" * 5000 + b"}}",
    "2**70 tokens": json.dumps(make(prompt_tokens=2**70)).encode(),
    "2**63 tokens": json.dumps(make(prompt_tokens=2**63)).encode(),
    "2**41 tokens": json.dumps(make(prompt_tokens=2**41)).encode(),
    "negative tokens": json.dumps(make(comp_tokens=-1)).encode(),
    "deep array": deep(100_000),
    "deep array, open": b"[" * 100_000,
    "deep object": deep(100_000, b'{"a":', b"}"),
    "deep attribute": GOOD[:-1] + b', "attributes": {"a": ' + deep(100_000) + b"}}",
    "deep unknown field": GOOD[:-1] + b', "zzz": ' + deep(100_000) + b"}",
    "invalid UTF-8": b'{"model": "\xff\xfe", "prompt_tokens": 1}',
    "invalid UTF-8 key": b'{"model": "m", "\xc3\x28": 1, "prompt_tokens": 1}',
    "UTF-16": json.dumps(make()).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "lone surrogate": GOOD[:-1] + rb', "name": "\ud800"}',
    "lone surrogate key": GOOD[:-1] + rb', "attributes": {"\udfff": 1}}',
    "129 attributes": json.dumps(make(attributes={f"k{n}": n for n in range(129)})).encode(),
    "100,000 attributes": json.dumps(make(attributes={f"k{n}": n for n in range(100_000)})).encode(),
    "huge key": json.dumps(make(attributes={"k" * 257: 1})).encode(),
    "huge key of 5 MB": json.dumps(make(attributes={"k" * 5_000_000: 1})).encode(),
    "huge value": json.dumps(make(attributes={"k": "v" * (32 * 1024 + 1)})).encode(),
    "huge value of 5 MB": json.dumps(make(attributes={"k": "v" * 5_000_000})).encode(),
    "huge model": json.dumps(make(model="m" * 257)).encode(),
    "unknown field": json.dumps(make(surprise=1)).encode(),
    "huge unknown field": json.dumps(make(**{"x" * 100_000: 1})).encode(),
    "huge enum value": json.dumps(make(status="x" * 100_000)).encode(),
    "enum value with quotes": json.dumps(make(status="it's " * 10_000)).encode(),
    "huge trace id": json.dumps(make(trace_id="t" * 257)).encode(),
    "nested attribute": json.dumps(make(attributes={"a": {"b": 1}})).encode(),
    "year 9999": json.dumps(make(started_at="9999-12-31T23:59:59Z")).encode(),
    "year 2150": json.dumps(make(ended_at="2150-01-01T00:00:00Z")).encode(),
    "year 1": json.dumps(make(started_at="0001-01-01T00:00:00Z")).encode(),
    "no such day": json.dumps(make(started_at="2026-02-30T00:00:00Z")).encode(),
    "31 days": json.dumps(make(latency_ms=31 * 86_400_000)).encode(),
    "array in array": b"[" + b"[" + GOOD + b"]]",
    "array of nulls": b"[null,null]",
    "two objects": GOOD + GOOD,
    "gzip without saying so": gzip.compress(GOOD),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_of_garbage_is_refused_between_two_good_ones(pipeline: Pipeline, body: bytes) -> None:
    caller = fresh("caller")
    assert pipeline.post("/spans", make(caller=caller)).status == 202
    refused(pipeline.post("/spans", body), 400, 413)
    assert pipeline.post("/spans", make(caller=caller)).status == 202
    lives(pipeline, caller, 2)


PACKED = {
    "truncated": gzip.compress(GOOD * 100)[:-9],
    "header only": gzip.compress(GOOD)[:10],
    "half a header": gzip.compress(GOOD)[:5],
    "no gzip": GOOD,
    "empty": b"",
    "bad checksum": gzip.compress(GOOD)[:-8] + bytes(8),
    "zlib": zlib.compress(GOOD),
    "random": random.Random(1).randbytes(5000),
    "gzip of garbage": gzip.compress(random.Random(2).randbytes(5000)),
    "gzip of gzip": gzip.compress(gzip.compress(GOOD)),
}


@pytest.mark.parametrize("body", PACKED.values(), ids=PACKED)
def test_broken_gzip_is_400(pipeline: Pipeline, body: bytes) -> None:
    refused(pipeline.post("/spans", body, {"Content-Encoding": "gzip"}), 400)
    refused(pipeline.post("/mist", body, {"Content-Encoding": "gzip"}), 400)
    lives(pipeline, fresh("absent"), 0)


TEXT_FIELDS = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "caller",
    "model",
    "provider",
    "cost_model",
    "status",
    "error",
    "error_stack",
    "started_at",
    "ended_at",
    "session_id",
    "user_id",
)
COUNT_FIELDS = (
    "prompt_tokens",
    "comp_tokens",
    "completion_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
NUMBER_FIELDS = ("cost_usd", "latency_ms", "ttft_ms")
WRONG: list[tuple[str, list[Any]]] = [
    *((field, [5, 1.5, True, [], {}, ["x"]]) for field in TEXT_FIELDS),
    *((field, ["5", "", 1.5, True, [], {}, -1, 2**64]) for field in COUNT_FIELDS),
    *((field, ["5", True, [], {}, -1, -1e-9, 1e18]) for field in NUMBER_FIELDS),
    ("attributes", ["x", 5, [], True, {"a": None}, {"a": []}, {"a": {}}]),
    ("usage", ["x", 5, [], True, {"a": "x"}, {"a": -1}, {"a": 1.5}]),
]


@pytest.mark.parametrize(("field", "values"), WRONG, ids=[field for field, _ in WRONG])
def test_a_value_of_the_wrong_type_is_400_naming_its_field(pipeline: Pipeline, field: str, values: list[Any]) -> None:
    caller = fresh("caller")
    for value in values:
        body = [make(caller=caller), {**make(caller=caller), field: value}]
        error = refused(pipeline.post("/spans", body), 400)
        assert field in error, (value, error)
        assert "span 1" in error, (value, error)
    lives(pipeline, caller, 0)


def mist(payload: bytes | Any, **fields: Any) -> bytes:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {"version": "1", "id": "x", "source": "garbage", "type": "trace.span", **fields}
    return json.dumps(head).encode()[:-1] + b', "payload": ' + raw + b"}"


def attrs(**values: Any) -> bytes:
    return mist({"operation": "infer", "status": "ok", "attrs": values})


ENVELOPES = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "no type": b"{}",
    "type number": mist({}, type=5),
    "no payload": b'{"type": "trace.span"}',
    "deep payload": mist(deep(100_000)),
    "deep attrs": mist(b'{"attrs": {"a": ' + deep(100_000) + b"}}"),
    "attrs 500 deep": mist(b'{"attrs": {"a": ' + deep(500, b'{"a":[', b"]}") + b"}}"),
    "invalid UTF-8": mist(b'{"operation": "\xff"}'),
    "lone surrogate": mist(rb'{"operation": "\ud800"}'),
    "NaN": mist(b'{"attrs": {"cost_usd": NaN}}'),
    "cost 1e300": attrs(cost_usd=1e300),
    "cost 1e308": attrs(cost_usd=1.7e308),
    "cost 2**2000": attrs(cost_usd=2**2000),
    "cost negative": attrs(cost_usd=-1),
    "tokens 1e300": attrs(tokens_in=1e300),
    "tokens 2**70": attrs(tokens_in=2**70),
    "tokens negative": attrs(tokens_out=-5),
    "ttft 1e305": attrs(ttft_ms=1e305),
    "empty key": attrs(**{"": 1}),
    "reserved key": attrs(**{"tt.x": 1}),
    "score 7": attrs(**{"eval.score": 7}),
    "129 attrs": attrs(**{f"k{n}": n for n in range(129)}),
    "huge value": attrs(k="v" * 40_000),
    "huge model": attrs(model="m" * 300),
    "40 days": mist({"start_ns": 1_763_683_200_000_000_000, "end_ns": 1_763_683_200_000_000_000 + 40 * 86_400 * 10**9}),
    "checksum text": mist({}, checksum="x"),
    "checksum 2**70": mist({}, checksum=2**70),
    "checksum negative": mist({}, checksum=-1),
    "huge type": mist({}, type="t" * 100_000),
    "huge version": mist({}, version="v" * 100_000),
    "type with a line end": mist({}, type="a\nb"),
}


@pytest.mark.parametrize("body", ENVELOPES.values(), ids=ENVELOPES)
def test_a_mist_message_of_garbage_is_400(pipeline: Pipeline, body: bytes) -> None:
    caller = fresh("caller")
    error = refused(pipeline.post("/mist", body), 400)
    assert "\n" not in error
    good = mist({"operation": "infer", "attrs": {"model": "m", "tokens_in": 1}}, source=caller)
    assert pipeline.post("/mist", good).status == 202
    lives(pipeline, caller, 1)


QUERIES = [
    "/traces?model=%00",
    "/traces?model=%FF%FE",
    "/traces?model=%ED%A0%80",
    "/traces?model=' OR 1=1 --".replace(" ", "%20"),
    "/traces?caller=" + "x" * 20_000,
    "/traces?limit=" + "9" * 5000,
    "/traces?offset=999999999999999999",
    "/traces?offset=" + "9" * 30,
    "/traces?limit=%D9%A1",
    "/traces?; DROP TABLE spans".replace(" ", "%20"),
    "/traces/%00",
    "/traces/%FF",
    "/traces/" + "x" * 20_000,
    "/traces/'%20OR%201=1",
    "/traces/%0A",
    "/traces/recent?limit=" + "9" * 5000,
    "/traces/recent?limit=%00",
    "/metrics?window=" + "9" * 5000 + "h",
    "/metrics?window=" + "1h" * 3000,
    "/metrics?window=%00",
    "/metrics?model=%00&caller=%FF",
    "/metrics?groupby=__class__",
    "/metrics?groupby=attr.",
    "/metrics?kind=%27",
    "/metrics/%00",
    "/metrics/" + "x" * 20_000,
    "/metrics/..%2F..%2Fetc%2Fpasswd",
    "/stats?x=1",
    "/%00",
]


@pytest.mark.parametrize("path", QUERIES, ids=[path[:50] for path in QUERIES])
def test_a_question_of_garbage_is_answered_or_refused(pipeline: Pipeline, path: str) -> None:
    answer = pipeline.get(path)
    assert answer.status in (200, 400, 404, 414), (answer.status, answer.body[:300])
    if answer.status >= 400:
        refused(answer, answer.status)
    lives(pipeline, fresh("absent"), 0)


@pytest.mark.parametrize("header", ["x" * 257, "x" * 20_000, "\xff\xfe", "'", "a b"])
def test_an_odd_idempotency_key_is_a_key_or_refused(pipeline: Pipeline, header: str) -> None:
    caller = fresh("caller")
    answers = [pipeline.post("/spans", make(caller=caller), {"Idempotency-Key": header + caller}) for _ in range(2)]
    taken = {answer.status for answer in answers}
    assert taken in ({202}, {400}), taken
    lives(pipeline, caller, 1 if taken == {202} else 0)


# -- HTTP: what is acknowledged is there, also where ingest makes a record larger than it came


EDGES = {
    "ends 2100 after its latency": {"started_at": "2099-12-31T00:00:00Z", "latency_ms": 29 * 86_400_000},
    "begins before 2000 by its latency": {"ended_at": "2000-01-02T00:00:00Z", "latency_ms": 29 * 86_400_000},
    "last day of 2099": {"ended_at": "2099-12-31T23:59:59.999Z"},
    "first day of 2000": {"started_at": "2000-01-01T00:00:00Z"},
    "an error of addresses": {"status": "error", "error": "a@b.io " * 4600},
    "a stack of addresses": {"status": "error", "error_stack": "a@b.io " * 4600},
    "an attribute of addresses": {"attributes": {"text": "a@b.io " * 4600}},
    "128 attributes of addresses": {"attributes": {f"k{n}": "a@b.io " * 400 for n in range(128)}},
    "as many tokens as there may be": {"prompt_tokens": 2**40, "comp_tokens": 2**40},
    "the longest names": {"model": "m" * 256, "provider": "p" * 256, "name": "n" * 256},
    "wide names": {"model": "é" * 256, "name": "\U0001f600" * 256},
    "an unknown unit of a long name": {"usage": {"u" * 600: 5}},
    "many unknown units": {"usage": {f"unit-{n}": 5 for n in range(300)}},
    "NUL in a name": {"name": "a\x00b", "model": "gpt\x00"},
    "a million dollars": {"cost_usd": 1_000_000},
    "a trillionth of a dollar": {"cost_usd": 1e-12},
    "ends before it starts": {"started_at": "2026-11-20T14:00:00Z", "ended_at": "2026-11-20T13:00:00Z"},
    "the largest numbers": {"attributes": {"a": 2**63 - 1, "b": -(2**63), "c": 1.7e308, "d": 5e-324}},
    "the same key twice": {"attributes": {"Key": 1, "key": 2}},
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_what_is_acknowledged_is_counted_and_shown_and_so_are_its_neighbours(
    pipeline: Pipeline, edge: dict[str, Any]
) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    mixed = [make(caller=caller), make(caller=caller, trace_id=trace, **edge), make(caller=caller)]
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(pipeline.post, "/spans", make(caller=caller)) for _ in range(4)]
        answer = pipeline.post("/spans", mixed)
        assert [neighbour.result().status for neighbour in neighbours] == [202] * 4
    if answer.status == 202:
        pipeline.until(lambda: pipeline.get(f"/traces/{trace}").json()["span_count"] == 1, "shown", 10)
        # Ended outside the 30 days that metrics know, it is counted for life and in no window.
        pipeline.until(lambda: stored(pipeline, caller) == 7, "stored", 10)
        pipeline.until(lambda: counted(pipeline, caller) in (6, 7), "counted", 10)
        assert "first day" in str(edge) or counted(pipeline, caller) == (6 if old(edge) else 7)
        pipeline.poisoned = False  # type: ignore[attr-defined]
    else:
        refused(answer, 400, 413)
        lives(pipeline, caller, 4)
    assert pipeline.get("/stats").json()["latency_avg_ms"] >= 0


def old(edge: dict[str, Any]) -> bool:
    return str(edge.get("ended_at") or edge.get("started_at") or "2026").startswith("2000")


# -- HTTP: the reporter's own form


def post_batches(serving: Pipeline, body: bytes) -> Answer:
    return serving.post("/spans", body, {"Content-Type": BATCH_TYPE})


def test_a_reporters_body_of_garbage_is_400(pipeline: Pipeline) -> None:
    dice = random.Random(7)
    bodies = [
        b"",
        b"\xc0",
        b"\x91\x91\xa2\xff\xfe",
        b"\x91" * 5000,
        b"\x91\x96\xa1x\x01\x00\x00\xa0\x91" + b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        GOOD,
        *(dice.randbytes(dice.randrange(1, 200)) for _ in range(40)),
        *(bytes([0x91, 0x90 + length]) + dice.randbytes(60) for length in range(16)),
    ]
    for body in bodies:
        refused(post_batches(pipeline, body), 400, 413)
    lives(pipeline, fresh("absent"), 0)


def test_an_arrival_that_a_client_claims_is_not_believed(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    for arrived_ns in (1, 4_000_000_000_000_000_000):
        assert post_batches(pipeline, batch(span(caller), arrived_ns=arrived_ns)).status == 202
    lives(pipeline, caller, 2)


def test_a_bad_span_over_http_is_a_dead_letter_and_its_neighbours_stay(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    nested: Any = 1
    for _ in range(300):
        nested = {"a": nested}
    bad = [
        span(caller, attributes={"": 1, "password": SECRET}),
        span(caller, attributes={"deep": nested}),
        span(caller, attributes={"odd": {1: {None: 2}}}),
        span(caller, model=""),
    ]
    answer = post_batches(pipeline, batch(span(caller), *bad, span(caller)))
    assert answer.status == 202, answer.body
    assert answer.json() == {"accepted": 2, "rejected": 4}
    lives(pipeline, caller, 2)
    new = letters(pipeline, before)
    assert len(new) == 4
    assert SECRET not in "".join(map(str, new))


# -- NATS: tokentrace.raw.>


def on_nats(serving: Pipeline, work: Callable[[Any], Any]) -> Any:
    """What *work* returns of a connection of its own."""

    async def run() -> Any:
        async def quiet(_: Exception) -> None:
            pass

        try:
            client = await nats.connect(
                serving.nats_url,
                error_cb=quiet,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,
            )
        except nats.errors.Error as exc:
            raise ConnectionError(f"NATS: {exc}") from exc
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def publish(serving: Pipeline, *messages: tuple[str, bytes]) -> None:
    """Publish to a stream, in order, each acknowledged."""

    async def work(client: Any) -> None:
        stream = client.jetstream()
        for subject, payload in messages:
            await stream.publish(subject, payload)

    on_nats(serving, work)


def letter_count(serving: Pipeline) -> int:
    """How many dead letters there are."""

    async def work(client: Any) -> int:
        return int((await client.jetstream().stream_info("TT_REJECTED")).state.messages)

    return int(on_nats(serving, work))


def letters(serving: Pipeline, before: int) -> list[dict[str, Any]]:
    """The dead letters behind the first *before*, in order."""

    async def work(client: Any) -> list[bytes]:
        stream = client.jetstream()
        state = (await stream.stream_info("TT_REJECTED")).state
        if not state.messages:
            return []
        new = range(state.first_seq + before, state.last_seq + 1)
        return [(await stream.get_msg("TT_REJECTED", seq)).data for seq in new]

    return [json.loads(data) for data in on_nats(serving, work)]


def waiting(serving: Pipeline) -> int:
    """Raw messages that ingest has not done with."""

    async def work(client: Any) -> int:
        return int((await client.jetstream().stream_info("TT_RAW")).state.messages)

    return int(on_nats(serving, work))


def rejected(serving: Pipeline, before: int, count: int) -> list[dict[str, Any]]:
    """The *count* letters that came after *before*, each with a reason."""
    serving.until(lambda: letter_count(serving) >= before + count, f"{count} dead letters", 10)
    serving.until(lambda: waiting(serving) == 0, "nothing waiting", 10)
    new = letters(serving, before)
    assert len(new) == count, new
    for letter in new:
        assert 0 < len(letter["reason"]) < 1000
    return new


def fingerprint(payload: bytes) -> dict[str, Any]:
    return {"size_bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


DICE = random.Random(20261121)
NOT_BATCHES = {
    "empty": b"",
    "nil": b"\xc0",
    "zeros": bytes(100),
    "0xff": b"\xff" * 100,
    "text": b"hello",
    "one byte 0x91": b"\x91",
    "deep arrays": b"\x91" * 100_000,
    "deep maps": b"\x81\xa1a" * 50_000,
    "array of four billion": b"\xdd\xff\xff\xff\xff",
    "text of four billion": b"\xdb\xff\xff\xff\xff",
    "map of batches": msgspec.msgpack.encode({"id": "x", "spans": []}),
    "a batch without an array": msgspec.msgpack.encode(Batch(id="x")),
    "empty id": msgspec.msgpack.encode([["", 1]]),
    "id with a line end": msgspec.msgpack.encode([["a\nb", 1]]),
    "invalid UTF-8 id": b"\x91\x92\xa2\xff\xfe\x01",
    "negative sequence": msgspec.msgpack.encode([["x", -1]]),
    "spans are text": msgspec.msgpack.encode([["x", 1, 0, 0, "", "spans"]]),
    "extension": msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"x")),
    "JSON null": b"null",
    "JSON text": b'"x"',
    "JSON half": b'{"model": "m"',
    "JSON object without fields": b"{}",
    "JSON of another kind": b'{"hello": "world"}',
    "JSON NaN": b'{"model": "m", "prompt_tokens": NaN}',
    "JSON 1e400": b'{"model": "m", "prompt_tokens": 1e400}',
    "JSON invalid UTF-8": b'{"model": "\xff\xfe", "prompt_tokens": 1}',
    "JSON deep": deep(100_000, b'{"a":', b"}"),
    "JSON deep array": deep(100_000),
    "spaces": b"   ",
    "gzip": gzip.compress(GOOD),
    "a megabyte of noise": random.Random(3).randbytes(MIB),
    **{f"noise {number}": DICE.randbytes(DICE.randrange(1, 300)) for number in range(6)},
}


@pytest.mark.parametrize("payload", NOT_BATCHES.values(), ids=NOT_BATCHES)
def test_what_is_no_batch_becomes_a_dead_letter_without_its_bytes(pipeline: Pipeline, payload: bytes) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    publish(pipeline, (RAW, batch(span(caller))), (RAW, payload), (RAW, batch(span(caller))))
    (letter,) = rejected(pipeline, before, 1)
    assert {key: letter[key] for key in ("size_bytes", "sha256")} == fingerprint(payload)
    if len(payload) > 20:
        assert payload not in json.dumps(letter).encode()
    lives(pipeline, caller, 2)


def scribble(dice: random.Random, depth: int = 0) -> Any:
    """Something msgpack and JSON can carry, and hardly ever a batch."""
    kind = dice.randrange(8 if depth < 4 else 6)
    if kind < 6:
        choices: list[Any] = [None, True, dice.randrange(-(2**63), 2**63), dice.random() * 1e300, "x" * 20, SECRET]
        return dice.choice(choices)
    if kind == 6:
        return [scribble(dice, depth + 1) for _ in range(dice.randrange(6))]
    return {f"k{number}": scribble(dice, depth + 1) for number in range(dice.randrange(6))}


@pytest.mark.parametrize("encode", [msgspec.msgpack.encode, msgspec.json.encode], ids=["msgpack", "json"])
def test_random_structures_are_dead_letters_or_nothing_at_all(
    pipeline: Pipeline, encode: Callable[[Any], bytes]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    caller = fresh("caller")
    before = letter_count(pipeline)
    # An object or an array with one thing in it: an empty array is a message of no batches, which is no fault.
    payloads = [encode(dice.choice([[scribble(dice), 1], {"x": scribble(dice)}])) for _ in range(60)]
    publish(pipeline, *((RAW, payload) for payload in payloads), (RAW, batch(span(caller))))
    lives(pipeline, caller, 1)
    pipeline.until(lambda: waiting(pipeline) == 0, "nothing waiting", 10)
    new = letters(pipeline, before)
    assert len({letter["batch"] for letter in new}) == len(payloads)
    assert SECRET not in json.dumps(new)


BAD_SPANS: dict[str, tuple[dict[str, Any], str]] = {
    "negative tokens": ({"prompt_tokens": -5}, "prompt_tokens"),
    "2**41 tokens": ({"prompt_tokens": 2**41}, "prompt_tokens"),
    "2**63 tokens": ({"prompt_tokens": 2**63}, "prompt_tokens"),
    "tokens are text": ({"prompt_tokens": "5"}, "prompt_tokens"),
    "NaN tokens": ({"prompt_tokens": float("nan")}, "prompt_tokens"),
    "no model": ({"model": ""}, "model"),
    "no tokens": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "tokens"),
    "status": ({"status": "banana"}, "status"),
    "kind": ({"kind": "banana"}, "kind"),
    "year 1970": ({"ended_ns": 1}, "ended_at"),
    "year 2200": ({"ended_ns": 7_258_118_400_000_000_000}, "ended"),
    "negative cost": ({"cost_nusd": -1}, "cost"),
    "score 2": ({"score": 2 * 10**9}, "score"),
    "line end in id": ({"trace_id": "a\nb"}, "trace_id"),
    "huge name": ({"name": "n" * 300}, "name"),
    "empty attribute key": ({"attributes": {"": 1}}, "attributes"),
    "reserved attribute": ({"attributes": {"tt.x": 1}}, "tt.x"),
    "score attribute": ({"attributes": {"eval.score": 2}}, "eval.score"),
    "NaN attribute": ({"attributes": {"a": float("nan")}}, "a"),
    "bytes attribute": ({"attributes": {"a": b"raw"}}, "a"),
    "nested bytes": ({"attributes": {"a": {"b": [b"raw"]}}}, "a"),
    "extension attribute": ({"attributes": {"a": msgspec.msgpack.Ext(5, b"x")}}, "a"),
    "nested extension": ({"attributes": {"a": [msgspec.msgpack.Ext(5, b"x")]}}, "a"),
    "nested number key": ({"attributes": {"a": {1: 2}}}, "a"),
    "nested nil key": ({"attributes": {"a": {None: 2}}}, "a"),
    "nested array key": ({"attributes": {"a": {(1, 2): 2}}}, "a"),
    "mixed keys": ({"attributes": {"a": {1: 2, "b": 3}}}, "a"),
    "attributes are an array": ({"attributes": [1]}, "attributes"),
    "attributes have a number key": ({"attributes": {1: 2}}, "attributes"),
    "129 attributes": ({"attributes": {f"k{n}": n for n in range(129)}}, "attributes"),
    "huge attribute": ({"attributes": {"a": "v" * 40_000}}, "a"),
    "huge binary text": ({"attributes": {"a": "\x01" * 2_000_000}}, "a"),
}


def bad_span(caller: str, **fields: Any) -> Span:
    attributes = fields.pop("attributes", {})
    if isinstance(attributes, dict):
        attributes = {**attributes, "password": SECRET, "deeper": {"api_key": SECRET}, "note": f"token={SECRET}"}
    return span(caller, attributes=attributes, error=f"password: {SECRET}", **fields)


@pytest.mark.parametrize(("fields", "named"), BAD_SPANS.values(), ids=BAD_SPANS)
def test_one_bad_span_among_good_ones_becomes_a_letter_without_its_secrets(
    pipeline: Pipeline, fields: dict[str, Any], named: str
) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    publish(
        pipeline,
        (RAW, batch(span(caller))),
        (RAW, batch(span(caller), bad_span(caller, **fields), span(caller))),
        (RAW, batch(span(caller))),
    )
    (letter,) = rejected(pipeline, before, 1)
    assert letter["index"] == 1
    assert named in letter["reason"]
    assert SECRET not in json.dumps(letter)
    lives(pipeline, caller, 4)


@pytest.mark.parametrize("levels", [20, 150, 400, 700])
def test_attributes_nested_too_deep_are_a_letter(pipeline: Pipeline, levels: int) -> None:
    nested: Any = SECRET
    for _ in range(levels):
        nested = {"password": nested}
    caller = fresh("caller")
    before = letter_count(pipeline)
    publish(pipeline, (RAW, batch(span(caller), span(caller, attributes={"a": nested}), span(caller))))
    (letter,) = rejected(pipeline, before, 1)
    assert SECRET not in json.dumps(letter)
    lives(pipeline, caller, 2)


def test_text_that_is_not_utf_8_is_a_letter_and_its_neighbours_stay(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    for field in ("model", "name", "trace_id", "error", "session_id"):
        payload = batch(span(caller), span(caller, **{field: "BROKEN"}), span(caller))
        publish(pipeline, (RAW, payload.replace(b"BROKEN", b"\xff\xfe\xfd\xfc\xfb\xfa")))
    payload = batch(span(caller, attributes={"k": "BROKEN"}), span(caller))
    publish(pipeline, (RAW, payload.replace(b"BROKEN", b"\xed\xa0\x80\xff\xfe\xff")))
    rejected(pipeline, before, 6)
    lives(pipeline, caller, 11)


@pytest.mark.parametrize("field", ["status", "kind", "cost_source"])
def test_a_reason_quotes_no_long_value(pipeline: Pipeline, field: str) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    values = ["x" * 50 + SECRET, "it's " * 20 + SECRET, 'say "no" ' * 20 + SECRET]
    publish(pipeline, (RAW, batch(span(caller), *(span(caller, **{field: value}) for value in values))))
    for letter in rejected(pipeline, before, 3):
        assert SECRET not in json.dumps(letter)
        assert len(letter["reason"]) < 200
    lives(pipeline, caller, 1)


def test_json_on_nats_loses_only_its_bad_items(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    items = [make(caller=caller), make(caller=caller, model="", attributes={"password": SECRET}), make(caller=caller)]
    mixed = json.dumps([*items, 5, None, "x", [1], {}, make(caller=caller)]).encode()
    broken = b"[%s, %s]" % (
        json.dumps(make(caller=caller)).encode(),
        b'{"model": "\xff\xfe", "prompt_tokens": 1, "attributes": {"password": "%s"}}' % SECRET.encode(),
    )
    publish(pipeline, (RAW, mixed), (RAW, json.dumps(make(caller=caller)).encode()))
    new = rejected(pipeline, before, 6)
    assert [letter["index"] for letter in new] == [1, 3, 4, 5, 6, 7]
    assert "model" in new[0]["reason"]
    publish(pipeline, (RAW, broken))
    new += rejected(pipeline, before + 6, 1)
    assert SECRET not in json.dumps(new)
    lives(pipeline, caller, 5)


def test_an_array_inside_an_array_is_a_bad_item(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = letter_count(pipeline)
    publish(pipeline, (RAW, json.dumps([make(caller=caller), [make(caller=caller)], []]).encode()))
    assert [letter["index"] for letter in rejected(pipeline, before, 2)] == [1, 2]
    lives(pipeline, caller, 1)


def test_json_on_nats_with_a_secret_in_an_enum_keeps_it_out_of_the_letter(pipeline: Pipeline) -> None:
    before = letter_count(pipeline)
    values = ["x" * 50 + SECRET, "it's " * 20 + SECRET]
    for value in values:
        publish(pipeline, (RAW, json.dumps(make(status=value)).encode()))
    new = rejected(pipeline, before, 2)
    assert SECRET not in json.dumps(new)
    lives(pipeline, fresh("absent"), 0)


SUBJECTS = [
    "tokentrace.raw.default",
    "tokentrace.raw.default.banana",
    "tokentrace.raw.default.-1",
    "tokentrace.raw.default.99999999999999999999999",
    "tokentrace.raw.default.0.1.2.3",
    "tokentrace.raw.=.0",
    "tokentrace.raw.=FF=FE.0",
    "tokentrace.raw.=zz.0",
    "tokentrace.raw.=2E=2A=3E.0",
    "tokentrace.raw.ünï✓.٣",
    "tokentrace.raw.a$b%c.0",
    "tokentrace.raw.TT_SPANS.0",
    "tokentrace.raw." + "p" * 1000 + ".0",
    "tokentrace.raw." + "é" * 500 + ".0",
    "tokentrace.raw." + "é" * 1500 + ".0",
    "tokentrace.raw." + ".".join("x" * 500) + ".0",
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=[subject[:40] for subject in SUBJECTS])
def test_an_odd_subject_delays_no_other_message(pipeline: Pipeline, subject: str) -> None:
    caller, odd = fresh("caller"), fresh("odd")
    before = letter_count(pipeline)
    publish(
        pipeline,
        (RAW, batch(span(caller))),
        (subject, batch(span(odd), span(odd, prompt_tokens=-1))),
        (subject, b"garbage"),
        (RAW, batch(span(caller))),
    )
    lives(pipeline, caller, 2)
    pipeline.until(lambda: waiting(pipeline) == 0, "nothing waiting", 10)
    # Taken in or dead-lettered whole: either way every record is accounted for.
    good = counted(pipeline, odd)
    assert good in (0, 1)
    assert letter_count(pipeline) - before >= 2


# -- NATS: tokentrace.spans.>, past ingest


def internal(serving: Pipeline, family: str) -> float:
    text = serving.get("/internal/metrics").body.decode()
    families = {found.name: found for found in text_string_to_metric_families(text)}
    return float(sum(sample.value for sample in families[family].samples))


def nested_extension() -> bytes:
    return batch(span("direct", attributes={"a": [msgspec.msgpack.Ext(5, b"x")]}))


def deep_attributes(levels: int) -> bytes:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    return batch(span("direct", attributes={"a": nested}))


#: What no reader can fold; each message is counted as rejected by the aggregator and the api.
UNREADABLE = {
    "empty": b"",
    "noise": random.Random(5).randbytes(300),
    "JSON": GOOD,
    "nil": b"\xc0",
    "deep": b"\x91" * 100_000,
    "invalid UTF-8": b"\x91\x92\xa2\xff\xfe\x01",
    "invalid UTF-8 inside": batch(span("direct", model="BROKEN")).replace(b"BROKEN", b"\xff\xfe\xfd\xfc\xfb\xfa"),
    "negative tokens": batch(span("direct", prompt_tokens=-1)),
    "2**63 tokens": batch(span("direct", prompt_tokens=2**63)),
    "text for a number": msgspec.msgpack.encode([["x", "1"]]),
}
#: What can be read and is not what ingest would have written: folded or skipped, but survived.
UNWASHED = {
    "extension": batch(span("direct", attributes={"a": msgspec.msgpack.Ext(5, b"x")})),
    "nested extension": nested_extension(),
    "bytes": batch(span("direct", attributes={"a": b"\xff"})),
    "nil key": batch(span("direct", attributes={"a": {None: 1}})),
    "number key": batch(span("direct", attributes={"a": {1: 1}})),
    "array key": batch(span("direct", attributes={"a": {(1, 2): 1}})),
    "NaN": batch(span("direct", attributes={"a": float("nan")})),
    "deep 300": deep_attributes(300),
    "deep 700": deep_attributes(700),
    "no ids": batch(Span()),
    "no batches": encode_batches([]),
    "no spans": batch(),
    "odd id": batch(span("direct"), id="\x00\n\u2028"),
    "highest sequence": batch(span("direct"), sequence=2**63 - 1, part=2**20),
    "NUL": batch(span("\x00", model="\x00", name="\x00", trace_id="\x00")),
    "times turned round": batch(span("direct", started_ns=4 * 10**18, ended_ns=10**18)),
    "everything largest": batch(
        *(span("direct", prompt_tokens=2**40, latency_ns=2_592_000 * 10**9, cost_nusd=10**15) for _ in range(300))
    ),
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
def test_what_no_reader_can_read_is_skipped_and_counted(pipeline: Pipeline, payload: bytes) -> None:
    caller = fresh("caller")
    names = ("tokentrace_aggregator_rejected", "tokentrace_api_rejected_messages")
    before = [internal(pipeline, name) for name in names]
    publish(pipeline, (RAW, batch(span(caller))), (SPANS, payload), (RAW, batch(span(caller))))
    lives(pipeline, caller, 2)
    assert [internal(pipeline, name) for name in names] == [count + 1 for count in before]


@pytest.mark.parametrize("payload", UNWASHED.values(), ids=UNWASHED)
def test_what_ingest_never_wrote_stops_no_reader(pipeline: Pipeline, payload: bytes) -> None:
    caller = fresh("caller")
    publish(pipeline, (RAW, batch(span(caller))), (SPANS, payload), (RAW, batch(span(caller))))
    lives(pipeline, caller, 2)
    for path in ("/metrics?window=30d&kind=all", "/stats", "/traces?limit=200", "/traces/recent", "/health"):
        assert pipeline.get(path).status == 200, path


def test_garbage_in_the_log_does_not_stop_a_start(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        publish(serving, (RAW, batch(span("caller"))), *((SPANS, payload) for payload in UNREADABLE.values()))
        serving.until(lambda: counted(serving, "caller") == 1, "counted", 10)
        serving.kill()
        serving.start()
        lives(serving, "caller", 1)
    finally:
        serving.stop()


# -- NATS: tokentrace.query.metrics


def query(**fields: Any) -> bytes:
    now_s = 1_795_000_000
    base = {"from_s": now_s - 3600, "to_s": now_s, "now_s": now_s}
    return msgspec.msgpack.encode(Query(**{**base, **fields}))


QUESTIONS = {
    "empty": b"",
    "noise": random.Random(6).randbytes(200),
    "invalid UTF-8": b"\x91\xa2\xff\xfe",
    "deep": b"\x91" * 100_000,
    "JSON": b'{"what": "window"}',
    "unknown dimension": query(groupby="nonsense"),
    "a dunder": query(groupby="__class__"),
    "unknown filter": query(filters={"nonsense": "x"}),
    "unknown field": query(fields=["nonsense"]),
    "turned round": query(from_s=10, to_s=5),
    "all of time": query(from_s=-(2**62), to_s=2**62),
    "far future": query(from_s=2**61, to_s=2**62, now_s=2**61),
    "no interval": query(from_s=0, to_s=0, now_s=0),
    "2**64": query(to_s=2**64 - 1),
}


@pytest.mark.parametrize("payload", QUESTIONS.values(), ids=QUESTIONS)
def test_a_query_of_garbage_stops_no_aggregator(pipeline: Pipeline, payload: bytes) -> None:
    async def ask(client: Any) -> None:
        await client.publish("tokentrace.query.metrics", payload)
        await client.publish("tokentrace.query.metrics", payload, reply="tokentrace.test.absent")
        with contextlib.suppress(nats.errors.TimeoutError):
            await client.request("tokentrace.query.metrics", payload, timeout=0.2)

    on_nats(pipeline, ask)
    answer = pipeline.get("/metrics?window=30d")
    assert answer.status == 200
    assert "incomplete" not in answer.json()
    lives(pipeline, fresh("absent"), 0)


def test_garbage_answers_to_the_api_are_no_answers(pipeline: Pipeline) -> None:
    async def impersonate(client: Any) -> list[int]:
        async def answer(message: Any) -> None:
            for payload in (b"", b"\x91\xa2\xff\xfe", b"noise", b"\x91" * 5000, struct.pack(">I", 7)):
                await client.publish(message.reply, payload)

        await client.subscribe("tokentrace.query.metrics", cb=answer)
        await client.flush()
        answers = [await asyncio.to_thread(pipeline.get, path) for path in ("/metrics", "/stats", "/health")]
        return [found.status for found in answers]

    assert on_nats(pipeline, impersonate) == [200, 200, 200]
    lives(pipeline, fresh("absent"), 0)


# -- configuration


CONFIGURATIONS: dict[str, tuple[str, str]] = {
    **{
        f"unknown key in {section}": (f"{section}:\n  banana: 1\n", "banana")
        for section in ("http_server", "retention", "pricing", "nats", "storage", "redaction", "mist", "transport")
    },
    "unknown section": ("banana: 1\n", "banana"),
    "unknown key of a transport's file": ("transport: {file: {banana: 1}}", "banana"),
    "unknown key of an alert": (
        "alerts: [{name: a, metric: cost, op: gt, threshold: 1, window: 1h, banana: 1}]",
        "banana",
    ),
    "unknown key of a custom metric": ("custom_metrics: [{name: a, type: sum, banana: 1}]", "banana"),
    "unknown key of a price": (
        "pricing: {models: {m: {prompt_per_1m: 1, completion_per_1m: 1, banana: 1}}}",
        "banana",
    ),
    "another project's dialect": ("sources: []\n", "sources"),
    "a section that is a number": ("nats: 5\n", "nats"),
    "a section that is text": ("storage: here\n", "storage"),
    "a section that is a list": ("retention: [1]\n", "retention"),
    "text for a number": ("http_server: {max_batch_size: many}", "http_server.max_batch_size"),
    "zero spans": ("http_server: {max_batch_size: 0}", "http_server.max_batch_size"),
    "a list for text": ("nats: {url: [a]}", "nats.url"),
    "no duration": ("storage: {snapshot_interval: soon}", "storage.snapshot_interval"),
    "a duration without a unit": ("http_server: {read_timeout: 5}", "http_server.read_timeout"),
    "a negative duration": ("nats: {duplicate_window: -5s}", "nats.duplicate_window"),
    "no shards": ("nats: {shards: 0}", "nats.shards"),
    "too many shards": ("nats: {shards: 100000}", "nats.shards"),
    "a shard that is not there": ("nats: {own_shards: '7'}", "nats.own_shards"),
    "a redaction mode": ("redaction: {mode: maybe}", "redaction.mode"),
    "keys are a text": ("redaction: {keys: password}", "redaction.keys"),
    "a rule without a name": ("alerts: [{metric: cost, op: gt, threshold: 1, window: 1h}]", "alerts"),
    "a negative limit": ("retention: {max_spans: -1}", "retention.max_spans"),
    "a path without a slash": ("http_server: {ingest_path: spans}", "http_server.ingest_path"),
    "a price that is text": (
        "pricing: {models: {m: {prompt_per_1m: cheap, completion_per_1m: 1}}}",
        "prompt_per_1m",
    ),
    "a negative price": ("pricing: {models: {m: {prompt_per_1m: -1, completion_per_1m: 1}}}", "prompt_per_1m"),
    "a price that is no number": (
        "pricing: {models: {m: {prompt_per_1m: .nan, completion_per_1m: 1}}}",
        "prompt_per_1m",
    ),
    "a negative body limit": ("http_server: {max_body_bytes: -1}", "http_server.max_body_bytes"),
    "a variable that must be set": ("http_server: {auth_token: '${TT_NOT_SET:?set it}'}", "http_server.auth_token"),
    "not YAML": ("a: [", "tokentrace.yml"),
    "a list": ("- a\n- b\n", "tokentrace.yml"),
    "deep YAML": ("[" * 5000, "tokentrace.yml"),
    "binary": ("\x00\x01\x02", "tokentrace.yml"),
}


#: ``tokentrace serve`` in each of the directories given, a process each. They are forked when everything is loaded:
#: nearly all that a program does that ends like this is to load.
FORKED = """
import os, signal, sys
import tokentrace_standalone.cli, tokentrace_standalone.pipeline
from tokentrace_standalone.__main__ import main

addr, *directories = sys.argv[1:]
for directory in directories:
    child = os.fork()
    if not child:
        signal.alarm(30)
        os.chdir(directory)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
        sys.exit(main(["serve", "--addr", addr, "--also", "none", "--data-dir", "data"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How ``serve`` ended with each of the configurations, and what it said; none gets further than its taken port."""
    environment = plain_environment()
    directories = [tmp_path_factory.mktemp("configuration") for _ in CONFIGURATIONS]
    for directory, (text, _) in zip(directories, CONFIGURATIONS.values(), strict=True):
        (directory / "tokentrace.yml").write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addr = f"127.0.0.1:{taken.getsockname()[1]}"
        words = [sys.executable, "-c", FORKED, addr, *map(str, directories)]
        codes = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout
    said = [(directory / "said").read_text() for directory in directories]
    return dict(zip(CONFIGURATIONS, zip(map(int, codes.split()), said, strict=True), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_wrong_configuration_exits_2_naming_the_key(ended: dict[str, tuple[int, str]], name: str) -> None:
    (code, said), (_, key) = ended[name], CONFIGURATIONS[name]
    assert "Traceback" not in said
    assert code == 2, said
    assert key in said


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    # Everything below a key commented out is how a section is left empty in YAML.
    serving = Pipeline(tmp_path)
    (tmp_path / "tokentrace.yml").write_text("storage:\n  # dir: ./here\nnats:\nhttp_server:\nalerts:\n")
    try:
        serving.start()
        assert serving.get("/healthz").status == 200
    finally:
        serving.stop()


@pytest.mark.parametrize("key", ["metrics_path", "prometheus_path", "ingest_path", "health_path"])
def test_a_path_that_is_only_a_slash_is_served_or_refused_by_name(tmp_path: Path, key: str) -> None:
    serving = Pipeline(tmp_path)
    (tmp_path / "tokentrace.yml").write_text(f"http_server: {{{key}: /}}")
    serving.start(wait=False)
    assert serving.process is not None
    try:
        while serving.process.poll() is None:
            with contextlib.suppress(OSError):
                if serving.get("/readyz").status == 200:
                    return
            time.sleep(0.05)
        assert serving.process.returncode == 2
        assert key in serving.log.read_text()
    finally:
        serving.stop()


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("TOKENTRACE_SHARD_COUNT", "many", "nats.shards"),
        ("TOKENTRACE_MAX_SPANS", "-1", "retention.max_spans"),
        ("TOKENTRACE_DUPLICATE_WINDOW", "soon", "nats.duplicate_window"),
        ("TOKENTRACE_ALERT_ALLOW_HOSTS", "localhost,https://x", "alert_delivery.allow_hosts[1]"),
        ("TOKENTRACE_LOG_LEVEL", "loud", "TOKENTRACE_LOG_LEVEL"),
    ],
)
def test_a_wrong_environment_exits_2_naming_the_key(tmp_path: Path, variable: str, value: str, key: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tokentrace_standalone", "serve", "--addr", "127.0.0.1:0", "--also", "none"],
        cwd=tmp_path,
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr
