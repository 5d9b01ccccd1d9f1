"""Invalid messages and spans of reporters become dead letters without secrets, and the valid spans are kept."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from kit.cases import check_all, numbered
from kit.dead_letters import (
    await_dead_letters,
    await_empty_queue,
    dead_letter_count,
    fingerprint,
    read_dead_letters,
)
from kit.json_spans import fresh, json_call
from kit.nats_client import RAW, publish
from kit.pipeline import Pipeline
from kit.reported_spans import assert_exact, counted, encode_batch, reported_span
from tokentrace.records import Batch, Span

SECRET = "S3CR3T-hunter2-S3CR3T"
BATCH_TYPE = "application/vnd.tokentrace.batches+msgpack"
CALL = json.dumps(json_call()).encode()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("letters"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def test_an_invalid_span_sent_over_http_is_a_dead_letter_and_the_other_spans_are_kept(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    nested: Any = 1
    for _ in range(300):
        nested = {"a": nested}
    invalid = [
        reported_span(caller, attributes={"": 1, "password": SECRET}),
        reported_span(caller, attributes={"deep": nested}),
        reported_span(caller, attributes={"odd": {1: {None: 2}}}),
        reported_span(caller, model=""),
    ]
    body = encode_batch(reported_span(caller), *invalid, reported_span(caller))
    answer = pipeline.post("/spans", body, {"Content-Type": BATCH_TYPE})
    assert answer.status == 202, answer.body
    told = answer.json()
    assert (told["accepted"], told["rejected"]) == (2, 4)
    assert [error["index"] for error in told["errors"]] == [1, 2, 3, 4]
    assert told["errors"][3]["error"].startswith("model: required")
    assert_exact(pipeline, {caller: 2})
    letters = read_dead_letters(pipeline, before)
    assert len(letters) == 4
    assert SECRET not in "".join(map(str, letters))


_dice = random.Random(20261121)
NOT_A_BATCH = {
    "empty": b"",
    "nil": b"\xc0",
    "zeros": bytes(100),
    "0xff": b"\xff" * 100,
    "text": b"hello",
    "one byte 0x91": b"\x91",
    "deep arrays": b"\x91" * 100_000,
    "deep maps": b"\x81\xa1a" * 50_000,
    "array of four billion items": b"\xdd\xff\xff\xff\xff",
    "text of four billion bytes": b"\xdb\xff\xff\xff\xff",
    "map of batches": msgspec.msgpack.encode({"id": "x", "spans": []}),
    "a batch without an array": msgspec.msgpack.encode(Batch(id="x")),
    "empty id": msgspec.msgpack.encode([["", 1]]),
    "id with a newline": msgspec.msgpack.encode([["a\nb", 1]]),
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
    "JSON deep": b'{"a":' * 100_000 + b"}" * 100_000,
    "JSON deep array": b"[" * 100_000 + b"]" * 100_000,
    "spaces": b"   ",
    "gzip": gzip.compress(CALL),
    "a megabyte of noise": random.Random(3).randbytes(1 << 20),
    **{f"noise {number}": _dice.randbytes(_dice.randrange(1, 300)) for number in range(6)},
}


def test_a_message_that_is_not_a_batch_is_a_dead_letter_without_its_bytes(pipeline: Pipeline) -> None:
    callers = {name: fresh("caller") for name in NOT_A_BATCH}
    last, before = fresh("caller"), dead_letter_count(pipeline)
    messages = []
    for name, payload in NOT_A_BATCH.items():
        messages += [(RAW, encode_batch(reported_span(callers[name]))), (RAW, payload)]
    publish(pipeline, *messages, (RAW, encode_batch(reported_span(last))))
    letters = await_dead_letters(pipeline, before, len(NOT_A_BATCH))

    def check(payload: bytes) -> None:
        (letter,) = [letter for letter in letters if (letter["size_bytes"], letter["sha256"]) == fingerprint(payload)]
        if len(payload) > 20:
            assert payload not in json.dumps(letter).encode()

    check_all(NOT_A_BATCH, check)
    assert_exact(pipeline, dict.fromkeys([*callers.values(), last], 1))


def draw_structure(dice: random.Random, depth: int = 0) -> Any:
    """Return a value of msgpack and JSON, which is hardly ever a batch."""
    kind = dice.randrange(8 if depth < 4 else 6)
    if kind < 6:
        choices: list[Any] = [None, True, dice.randrange(-(2**63), 2**63), dice.random() * 1e300, "x" * 20, SECRET]
        return dice.choice(choices)
    if kind == 6:
        return [draw_structure(dice, depth + 1) for _ in range(dice.randrange(6))]
    return {f"k{number}": draw_structure(dice, depth + 1) for number in range(dice.randrange(6))}


@pytest.mark.parametrize("encode", [msgspec.msgpack.encode, msgspec.json.encode], ids=["msgpack", "json"])
def test_every_random_structure_is_a_dead_letter_without_secrets(
    pipeline: Pipeline, encode: Callable[[Any], bytes]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    # An object or an array that is not empty, because an empty array is a valid message of no batches.
    payloads = [encode(dice.choice([[draw_structure(dice), 1], {"x": draw_structure(dice)}])) for _ in range(60)]
    publish(pipeline, *((RAW, payload) for payload in payloads), (RAW, encode_batch(reported_span(caller))))
    assert_exact(pipeline, {caller: 1})
    await_empty_queue(pipeline)
    letters = read_dead_letters(pipeline, before)
    assert len({letter["batch"] for letter in letters}) == len(payloads)
    assert SECRET not in json.dumps(letters)


#: Name of the case -> (fields, what the reason names).
INVALID_SPANS: dict[str, tuple[dict[str, Any], str]] = {
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
    "newline in id": ({"trace_id": "a\nb"}, "trace_id"),
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
}


def span_with_secrets(caller: str, **fields: Any) -> Span:
    """Return a span with *fields* and with secrets in its error and, if they are a map, in its attributes."""
    attributes = fields.pop("attributes", {})
    if isinstance(attributes, dict):
        attributes = {**attributes, "password": SECRET, "deeper": {"api_key": SECRET}, "note": f"token={SECRET}"}
    return reported_span(caller, attributes=attributes, error=f"password: {SECRET}", **fields)


def test_an_invalid_span_is_a_dead_letter_without_secrets_and_the_other_spans_of_its_batch_are_kept(
    pipeline: Pipeline,
) -> None:
    callers = {name: fresh("caller") for name in INVALID_SPANS}
    before = dead_letter_count(pipeline)
    batches = []
    for name, (fields, _) in INVALID_SPANS.items():
        caller = callers[name]
        spans = [reported_span(caller), span_with_secrets(caller, **fields), reported_span(caller)]
        batches += [encode_batch(reported_span(caller)), encode_batch(*spans, id=caller)]
    publish(pipeline, *((RAW, batch) for batch in batches))
    letters = await_dead_letters(pipeline, before, len(INVALID_SPANS))

    def check(name: str) -> None:
        (letter,) = [letter for letter in letters if letter["batch"] == f"{callers[name]}:1"]
        assert letter["index"] == 1
        assert INVALID_SPANS[name][1] in letter["reason"]
        assert SECRET not in json.dumps(letter)

    check_all({name: name for name in INVALID_SPANS}, check)
    assert_exact(pipeline, dict.fromkeys(callers.values(), 3))


def test_deeply_nested_attributes_make_a_dead_letter_without_secrets(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    batches = []
    for levels in (20, 150, 400, 700):
        nested: Any = SECRET
        for _ in range(levels):
            nested = {"password": nested}
        invalid = reported_span(caller, attributes={"a": nested})
        batches.append(encode_batch(reported_span(caller), invalid, reported_span(caller)))
    publish(pipeline, *((RAW, batch) for batch in batches))
    letters = await_dead_letters(pipeline, before, 4)
    assert SECRET not in json.dumps(letters)
    assert_exact(pipeline, {caller: 8})


def test_text_that_is_not_utf_8_makes_a_dead_letter_and_the_other_spans_are_kept(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    messages = []
    for field in ("model", "name", "trace_id", "error", "session_id"):
        invalid = reported_span(caller, **{field: "BROKEN"})
        payload = encode_batch(reported_span(caller), invalid, reported_span(caller))
        messages.append((RAW, payload.replace(b"BROKEN", b"\xff\xfe\xfd\xfc\xfb\xfa")))
    payload = encode_batch(reported_span(caller, attributes={"k": "BROKEN"}), reported_span(caller))
    messages.append((RAW, payload.replace(b"BROKEN", b"\xed\xa0\x80\xff\xfe\xff")))
    publish(pipeline, *messages)
    await_dead_letters(pipeline, before, 6)
    assert_exact(pipeline, {caller: 11})


def test_a_reason_quotes_no_long_value(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    values = ["x" * 50 + SECRET, "it's " * 20 + SECRET, 'say "no" ' * 20 + SECRET]
    for field in ("status", "kind", "cost_source"):
        invalid = [reported_span(caller, **{field: value}) for value in values]
        publish(pipeline, (RAW, encode_batch(reported_span(caller), *invalid)))

    def check(letter: dict[str, Any]) -> None:
        assert SECRET not in json.dumps(letter)
        assert len(letter["reason"]) < 200

    check_all(numbered(await_dead_letters(pipeline, before, 9)), check)
    assert_exact(pipeline, {caller: 3})


def test_only_the_invalid_items_of_a_json_array_are_dead_letters(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    call = json_call(caller=caller)
    items = [call, {**call, "model": "", "attributes": {"password": SECRET}}, call]
    mixed = json.dumps([*items, 5, None, "x", [1], {}, call]).encode()
    broken = b"[%s, %s]" % (
        json.dumps(call).encode(),
        b'{"model": "\xff\xfe", "prompt_tokens": 1, "attributes": {"password": "%s"}}' % SECRET.encode(),
    )
    publish(pipeline, (RAW, mixed), (RAW, json.dumps(call).encode()))
    letters = await_dead_letters(pipeline, before, 6)
    assert [letter["index"] for letter in letters] == [1, 3, 4, 5, 6, 7]
    assert "model" in letters[0]["reason"]
    publish(pipeline, (RAW, broken))
    letters += await_dead_letters(pipeline, before + 6, 1)
    assert SECRET not in json.dumps(letters)
    assert_exact(pipeline, {caller: 5})


def test_an_array_inside_a_json_array_is_an_invalid_item(pipeline: Pipeline) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    publish(pipeline, (RAW, json.dumps([json_call(caller=caller), [json_call(caller=caller)], []]).encode()))
    assert [letter["index"] for letter in await_dead_letters(pipeline, before, 2)] == [1, 2]
    assert_exact(pipeline, {caller: 1})


def test_the_reason_for_an_invalid_status_in_json_holds_no_secret(pipeline: Pipeline) -> None:
    before = dead_letter_count(pipeline)
    for value in ("x" * 50 + SECRET, "it's " * 20 + SECRET):
        publish(pipeline, (RAW, json.dumps(json_call(status=value)).encode()))
    assert SECRET not in json.dumps(await_dead_letters(pipeline, before, 2))
    assert_exact(pipeline, {})


ODD_SUBJECTS = [
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


def test_a_message_on_an_odd_subject_delays_no_other_message(pipeline: Pipeline) -> None:
    """The message is accepted, or all its spans are in dead letters; none is lost."""
    callers = {subject: fresh("caller") for subject in ODD_SUBJECTS}
    odd_callers = {subject: fresh("odd") for subject in ODD_SUBJECTS}
    letters: dict[str, int] = {}

    def send(subject: str) -> None:
        caller, odd_caller, before = callers[subject], odd_callers[subject], dead_letter_count(pipeline)
        publish(
            pipeline,
            (RAW, encode_batch(reported_span(caller))),
            (subject, encode_batch(reported_span(odd_caller), reported_span(odd_caller, prompt_tokens=-1))),
            (subject, b"garbage"),
            (RAW, encode_batch(reported_span(caller))),
        )
        await_empty_queue(pipeline)
        letters[subject] = dead_letter_count(pipeline) - before

    def check(subject: str) -> None:
        assert counted(pipeline, odd_callers[subject]) in (0, 1)
        assert letters[subject] >= 2

    check_all(numbered(ODD_SUBJECTS), send)
    assert_exact(pipeline, dict.fromkeys(callers.values(), 2))
    check_all(numbered(ODD_SUBJECTS), check)
