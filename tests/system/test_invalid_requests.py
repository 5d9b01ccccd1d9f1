"""Invalid requests are refused by name, extreme values are kept, and the valid spans beside them are counted."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kit.cases import check_all, numbered
from kit.http_errors import refused
from kit.json_spans import fresh, json_call
from kit.pipeline import Answer, Pipeline
from kit.reported_spans import assert_exact, counted, encode_batch, reported_span, stored

BATCH_TYPE = "application/vnd.tokentrace.batches+msgpack"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("invalid"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def nested(levels: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
    """Return JSON of *levels* arrays in one another, or of what *left* and *right* open and close."""
    return left * levels + right * levels


CALL = json.dumps(json_call()).encode()
INVALID_BODIES = {
    "empty": b"",
    "null": b"null",
    "true": b"true",
    "number": b"42",
    "string": b'"span"',
    "NaN": b"NaN",
    "spaces": b"   ",
    "NaN cost": CALL[:-1] + b', "cost_usd": NaN}',
    "infinite cost": CALL[:-1] + b', "cost_usd": Infinity}',
    "1e400 cost": CALL[:-1] + b', "cost_usd": 1e400}',
    "1e300 cost": CALL[:-1] + b', "cost_usd": 1e300}',
    "negative cost": CALL[:-1] + b', "cost_usd": -0.01}',
    "1e400 latency": CALL[:-1] + b', "latency_ms": 1e400}',
    "1e300 ttft": CALL[:-1] + b', "ttft_ms": 1e300}',
    "1e400 attribute": CALL[:-1] + b', "attributes": {"a": 1e400}}',
    "NaN attribute": CALL[:-1] + b', "attributes": {"a": NaN}}',
    "2**70 attribute": CALL[:-1] + b', "attributes": {"a": %d}}' % 2**70,
    "-2**70 attribute": CALL[:-1] + b', "attributes": {"a": -%d}}' % 2**70,
    "5000 digits": CALL[:-1] + b', "attributes": {"a": ' + b"9" * 5000 + b"}}",
    "2**70 tokens": json.dumps(json_call(prompt_tokens=2**70)).encode(),
    "2**63 tokens": json.dumps(json_call(prompt_tokens=2**63)).encode(),
    "2**41 tokens": json.dumps(json_call(prompt_tokens=2**41)).encode(),
    "negative tokens": json.dumps(json_call(comp_tokens=-1)).encode(),
    "deep array": nested(100_000),
    "deep array without an end": b"[" * 100_000,
    "deep object": nested(100_000, b'{"a":', b"}"),
    "deep attribute": CALL[:-1] + b', "attributes": {"a": ' + nested(100_000) + b"}}",
    "deep unknown field": CALL[:-1] + b', "zzz": ' + nested(100_000) + b"}",
    "invalid UTF-8": b'{"model": "\xff\xfe", "prompt_tokens": 1}',
    "invalid UTF-8 key": b'{"model": "m", "\xc3\x28": 1, "prompt_tokens": 1}',
    "UTF-16": json.dumps(json_call()).encode("utf-16"),
    "unknown field": json.dumps(json_call(surprise=1)).encode(),
    "huge unknown field": json.dumps(json_call(**{"x" * 100_000: 1})).encode(),
    "huge enum value": json.dumps(json_call(status="x" * 100_000)).encode(),
    "enum value with quotes": json.dumps(json_call(status="it's " * 10_000)).encode(),
    "huge trace id": json.dumps(json_call(trace_id="t" * 257)).encode(),
    "nested attribute": json.dumps(json_call(attributes={"a": {"b": 1}})).encode(),
    "year 9999": json.dumps(json_call(started_at="9999-12-31T23:59:59Z")).encode(),
    "year 2150": json.dumps(json_call(ended_at="2150-01-01T00:00:00Z")).encode(),
    "no such day": json.dumps(json_call(started_at="2026-02-30T00:00:00Z")).encode(),
    "31 days": json.dumps(json_call(latency_ms=31 * 86_400_000)).encode(),
    "array in array": b"[" + b"[" + CALL + b"]]",
    "array of nulls": b"[null,null]",
    "two objects": CALL + CALL,
    "gzip without Content-Encoding": gzip.compress(CALL),
}


#: Bodies that are too long somewhere, or that other languages write, with a call of one prompt token each.
TAKEN_BODIES = {
    "byte order mark": b"\xef\xbb\xbf" + CALL,
    "lone surrogate": CALL[:-1] + rb', "name": "\ud800"}',
    "lone surrogate key": CALL[:-1] + rb', "attributes": {"\udfff": 1}}',
    "129 attributes": json.dumps(json_call(attributes={f"k{n}": n for n in range(129)})).encode(),
    "100,000 attributes": json.dumps(json_call(attributes={f"k{n}": n for n in range(100_000)})).encode(),
    "huge key": json.dumps(json_call(attributes={"k" * 257: 1})).encode(),
    "huge key of 5 MB": json.dumps(json_call(attributes={"k" * 5_000_000: 1})).encode(),
    "huge value": json.dumps(json_call(attributes={"k": "v" * (32 * 1024 + 1)})).encode(),
    "huge value of 5 MB": json.dumps(json_call(attributes={"k": "v" * 5_000_000})).encode(),
    "huge model": json.dumps(json_call(model="m" * 257)).encode(),
    "year 1": json.dumps(json_call(started_at="0001-01-01T00:00:00Z")).encode(),
}


def test_a_body_that_is_long_or_written_differently_is_counted(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in TAKEN_BODIES}

    def check(name: str) -> None:
        caller = b', "caller": "%s"}' % callers[name].encode()
        answer = pipeline.post("/spans", TAKEN_BODIES[name][:-1] + caller)
        assert (answer.status, answer.json()) == (202, {"accepted": 1})

    check_all({name: name for name in TAKEN_BODIES}, check)
    assert_exact(pipeline, dict.fromkeys(callers.values(), 1))


def test_an_invalid_body_is_refused_and_the_spans_around_it_are_counted(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in INVALID_BODIES}
    last = fresh("caller")

    def check(name: str) -> None:
        assert pipeline.post("/spans", json_call(caller=callers[name])).status == 202
        refused(pipeline.post("/spans", INVALID_BODIES[name]), 400, 413)

    check_all({name: name for name in INVALID_BODIES}, check)
    assert pipeline.post("/spans", json_call(caller=last)).status == 202
    assert_exact(pipeline, dict.fromkeys([*callers.values(), last], 1))


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
#: (Field, values of a wrong type or out of range).
WRONG_VALUES: list[tuple[str, list[Any]]] = [
    *((field, [5, 1.5, True, [], {}, ["x"]]) for field in TEXT_FIELDS),
    *((field, ["5", "", 1.5, True, [], {}, -1, 2**64]) for field in COUNT_FIELDS),
    *((field, ["5", True, [], {}, -1, -1e-9, 1e18]) for field in NUMBER_FIELDS),
    ("attributes", ["x", 5, [], True, {"a": []}, {"a": {}}]),
    ("usage", ["x", 5, [], True, {"a": "x"}, {"a": -1}, {"a": 1.5}]),
]


def test_a_wrong_value_is_a_400_that_names_its_field_and_span(pipeline: Pipeline) -> None:
    caller = fresh("caller")

    def check(case: tuple[str, Any]) -> None:
        field, value = case
        error = refused(pipeline.post("/spans", [json_call(caller=caller), {**json_call(caller=caller), field: value}]))
        assert field in error
        assert "span 1" in error

    check_all(numbered((field, value) for field, values in WRONG_VALUES for value in values), check)
    assert_exact(pipeline, {caller: 0})


def message(payload: bytes | Any, **fields: Any) -> bytes:
    """Return a MIST message with *payload*, which is JSON already if it is bytes."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {"version": "1", "id": "x", "source": "garbage", "type": "trace.span", **fields}
    return json.dumps(head).encode()[:-1] + b', "payload": ' + raw + b"}"


def message_with(**attributes: Any) -> bytes:
    """Return a MIST message whose span has *attributes*."""
    return message({"operation": "infer", "status": "ok", "attrs": attributes})


INVALID_MESSAGES = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "no type": b"{}",
    "type number": message({}, type=5),
    "no payload": b'{"type": "trace.span"}',
    "deep payload": message(nested(100_000)),
    "deep attrs": message(b'{"attrs": {"a": ' + nested(100_000) + b"}}"),
    "attrs 500 deep": message(b'{"attrs": {"a": ' + nested(500, b'{"a":[', b"]}") + b"}}"),
    "invalid UTF-8": message(b'{"operation": "\xff"}'),
    "NaN": message(b'{"attrs": {"cost_usd": NaN}}'),
    "cost 1e300": message_with(cost_usd=1e300),
    "cost 1e308": message_with(cost_usd=1.7e308),
    "cost 2**2000": message_with(cost_usd=2**2000),
    "negative cost": message_with(cost_usd=-1),
    "tokens 1e300": message_with(tokens_in=1e300),
    "tokens 2**70": message_with(tokens_in=2**70),
    "negative tokens": message_with(tokens_out=-5),
    "ttft 1e305": message_with(ttft_ms=1e305),
    "empty key": message_with(**{"": 1}),
    "reserved key": message_with(**{"tt.x": 1}),
    "score 7": message_with(**{"eval.score": 7}),
    "40 days": message(
        {"start_ns": 1_763_683_200_000_000_000, "end_ns": 1_763_683_200_000_000_000 + 40 * 86_400 * 10**9}
    ),
    "checksum text": message({}, checksum="x"),
    "checksum 2**70": message({}, checksum=2**70),
    "negative checksum": message({}, checksum=-1),
    "huge type": message({}, type="t" * 100_000),
    "huge version": message({}, version="v" * 100_000),
    "type with a newline": message({}, type="a\nb"),
}


def test_an_invalid_mist_message_is_a_400_and_the_next_message_is_counted(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in INVALID_MESSAGES}

    def check(name: str) -> None:
        assert "\n" not in refused(pipeline.post("/mist", INVALID_MESSAGES[name]))
        valid = message({"operation": "infer", "attrs": {"model": "m", "tokens_in": 1}}, source=callers[name])
        assert pipeline.post("/mist", valid).status == 202

    check_all({name: name for name in INVALID_MESSAGES}, check)
    assert_exact(pipeline, dict.fromkeys(callers.values(), 1))


ODD_QUERIES = [
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


def test_an_odd_query_is_answered_or_refused(pipeline: Pipeline) -> None:
    def check(path: str) -> None:
        answer = pipeline.get(path)
        assert answer.status in (200, 400, 404, 414), (answer.status, answer.body[:300])
        if answer.status >= 400:
            refused(answer, answer.status)

    check_all(numbered(ODD_QUERIES), check)
    assert_exact(pipeline, {})


def test_an_odd_idempotency_key_is_accepted_or_refused(pipeline: Pipeline) -> None:
    expected: dict[str, int] = {}

    def check(start: str) -> None:
        caller = fresh("caller")
        header = {"Idempotency-Key": start + caller}
        statuses = {pipeline.post("/spans", json_call(caller=caller), header).status for _ in range(2)}
        assert statuses in ({202}, {400})
        expected[caller] = 1 if statuses == {202} else 0

    check_all(numbered(["x" * 257, "x" * 20_000, "\xff\xfe", "'", "a b"]), check)
    assert_exact(pipeline, expected)


def post_batches(pipeline: Pipeline, body: bytes) -> Answer:
    return pipeline.post("/spans", body, {"Content-Type": BATCH_TYPE})


def test_an_invalid_body_in_the_form_of_a_reporter_is_refused(pipeline: Pipeline) -> None:
    dice = random.Random(7)
    bodies = [
        b"",
        b"\xc0",
        b"\x91\x91\xa2\xff\xfe",
        b"\x91" * 5000,
        b"\x91\x96\xa1x\x01\x00\x00\xa0\x91" + b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        CALL,
        *(dice.randbytes(dice.randrange(1, 200)) for _ in range(40)),
        *(bytes([0x91, 0x90 + length]) + dice.randbytes(60) for length in range(16)),
    ]
    check_all(numbered(bodies), lambda body: refused(post_batches(pipeline, body), 400, 413))
    assert_exact(pipeline, {})


def test_the_arrival_time_in_a_batch_of_a_client_is_ignored(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    for arrived_ns in (1, 4_000_000_000_000_000_000):
        assert post_batches(pipeline, encode_batch(reported_span(caller), arrived_ns=arrived_ns)).status == 202
    assert_exact(pipeline, {caller: 2})


EXTREME_VALUES: dict[str, dict[str, Any]] = {
    "ends 2100 after its latency": {"started_at": "2099-12-31T00:00:00Z", "latency_ms": 29 * 86_400_000},
    "begins before 2000 by its latency": {"ended_at": "2000-01-02T00:00:00Z", "latency_ms": 29 * 86_400_000},
    "last day of 2099": {"ended_at": "2099-12-31T23:59:59.999Z"},
    "first day of 2000": {"started_at": "2000-01-01T00:00:00Z"},
    "an error of addresses": {"status": "error", "error": "a@b.io " * 4600},
    "a stack of addresses": {"status": "error", "error_stack": "a@b.io " * 4600},
    "an attribute of addresses": {"attributes": {"text": "a@b.io " * 4600}},
    "128 attributes of addresses": {"attributes": {f"k{n}": "a@b.io " * 400 for n in range(128)}},
    "the most tokens allowed": {"prompt_tokens": 2**40, "comp_tokens": 2**40},
    "the longest names": {"model": "m" * 256, "provider": "p" * 256, "name": "n" * 256},
    "wide names": {"model": "é" * 256, "name": "\U0001f600" * 256},
    "an unknown unit with a long name": {"usage": {"u" * 600: 5}},
    "many unknown units": {"usage": {f"unit-{n}": 5 for n in range(300)}},
    "NUL in a name": {"name": "a\x00b", "model": "gpt\x00"},
    "a million dollars": {"cost_usd": 1_000_000},
    "a trillionth of a dollar": {"cost_usd": 1e-12},
    "ends before it starts": {"started_at": "2026-11-20T14:00:00Z", "ended_at": "2026-11-20T13:00:00Z"},
    "the largest numbers": {"attributes": {"a": 2**63 - 1, "b": -(2**63), "c": 1.7e308, "d": 5e-324}},
    "the same key twice": {"attributes": {"Key": 1, "key": 2}},
}


def test_an_acknowledged_span_with_extreme_values_is_counted_and_shown(pipeline: Pipeline) -> None:
    """A span that is refused instead leaves the spans of other requests as they are."""
    callers = {name: fresh("caller") for name in EXTREME_VALUES}
    traces = {name: fresh("trace") for name in EXTREME_VALUES}
    acknowledged: list[str] = []
    refusals: dict[str, int] = {}

    def post(name: str) -> None:
        call = json_call(caller=callers[name])
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(pipeline.post, "/spans", call) for _ in range(4)]
            answer = pipeline.post("/spans", [call, {**call, "trace_id": traces[name], **EXTREME_VALUES[name]}, call])
            assert [other.result().status for other in others] == [202] * 4
        if answer.status == 202:
            acknowledged.append(name)
        else:
            refused(answer, 400, 413)
            refusals[callers[name]] = 4

    def check(name: str) -> None:
        caller, trace = callers[name], traces[name]
        pipeline.until(lambda: pipeline.get(f"/traces/{trace}").json()["span_count"] == 1, "shown", 20)
        pipeline.until(lambda: stored(pipeline, caller) == 7, "stored", 20)
        pipeline.until(lambda: counted(pipeline, caller) in (6, 7), "counted", 20)
        # A span that ended before the 30 days of the metrics is in no window.
        assert counted(pipeline, caller) == (6 if ends_in_2000(EXTREME_VALUES[name]) else 7)
        assert pipeline.get("/stats").json()["latency_avg_ms"] >= 0

    check_all({name: name for name in EXTREME_VALUES}, post)
    assert_exact(pipeline, refusals)
    check_all({name: name for name in acknowledged}, check)


def ends_in_2000(fields: dict[str, Any]) -> bool:
    return str(fields.get("ended_at") or fields.get("started_at") or "2026").startswith("2000")
