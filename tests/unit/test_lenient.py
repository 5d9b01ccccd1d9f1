"""What clients of other languages write differently is taken as what it means, on every way in."""

from __future__ import annotations

import json
import zlib
from typing import Any

import msgspec
import pytest

from kit.builders import make_batch, make_span
from kit.raw_messages import clean_message, make_cleaner, raw_message, stored_spans
from tokentrace.dialect import costkatana, docs, mist
from tokentrace.errors import Rejected
from tokentrace.records import Span, encode_batches, read_span, repaired, without_surrogates
from tokentrace.units import parse_instant

BOM = b"\xef\xbb\xbf"
SPAN = {"name": "answer", "model": "gpt-4o", "prompt_tokens": 1000, "comp_tokens": 50}


def one(**fields: Any) -> Span:
    """Return the span of a JSON body with *fields*."""
    (span,) = docs.decode_spans(json.dumps({**SPAN, **fields}).encode())
    return span


# --- POST /spans and JSON over NATS ---


def test_a_float_that_is_whole_is_taken_for_a_count() -> None:
    span = one(prompt_tokens=1000.0, comp_tokens=5e1)
    assert (span.prompt_tokens, span.completion_tokens) == (1000, 50)
    assert isinstance(span.prompt_tokens, int)


@pytest.mark.parametrize("value", [1000.5, "1000", True, 1e300])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(Rejected, match="prompt_tokens"):
        one(prompt_tokens=value)


def test_null_in_any_optional_field_is_absent() -> None:
    nulls = {field.name: None for field in msgspec.structs.fields(docs.DocsSpan)}
    span = one(**{**nulls, **SPAN, "attributes": {"kept": 1, "gone": None}})
    assert span == one(attributes={"kept": 1})


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"])
def test_the_zero_time_of_go_is_absent(instant: str) -> None:
    span = one(started_at=instant, ended_at=instant)
    assert (span.started_ns, span.ended_ns) == (0, 0)


def test_second_60_is_the_second_after_59() -> None:
    span = one(ended_at="2016-12-31T23:59:60.25Z")
    assert span.ended_ns == parse_instant("2017-01-01T00:00:00.25Z")


@pytest.mark.parametrize("escaped", [r"cut \ud83d", r"\udE00 cut", r"\ud83d\ud83d", r"\ud83dA", r"x\ud83d"])
def test_half_of_a_surrogate_pair_is_a_replacement_character(escaped: str) -> None:
    body = b'{"model": "gpt-4o", "prompt_tokens": 5, "name": "' + escaped.encode() + b'"}'
    (span,) = docs.decode_spans(body)
    assert "\ufffd" in span.name
    assert all(not "\ud800" <= character <= "\udfff" for character in span.name)


def test_whole_pairs_and_escaped_backslashes_stay() -> None:
    text = rb'["\ud83d\ude00 \\ud83d \\\ud83d\ude00 \u00e9 \"", "' + "é😀".encode() + b'"]'
    assert repaired(text) == text


def test_halves_that_were_encoded_one_by_one_are_joined_and_lone_ones_replaced() -> None:
    joined = '"\ud83d\ude00 \ud83d"'.encode("utf-8", "surrogatepass")
    assert json.loads(repaired(joined)) == "😀 \ufffd"


@pytest.mark.parametrize("body", [BOM + json.dumps(SPAN).encode(), BOM + b" [" + json.dumps(SPAN).encode() + b"]"])
def test_a_byte_order_mark_is_skipped(body: bytes) -> None:
    (span,) = docs.decode_spans(body)
    assert span.prompt_tokens == 1000


def test_another_error_beside_a_lenient_value_names_its_own_field() -> None:
    with pytest.raises(Rejected, match=r"span 0: kind: "):
        one(caller=None, prompt_tokens=1000.0, kind="rocket")
    with pytest.raises(Rejected, match=r"span 0: attributes\.bad: "):
        one(attributes={"gone": None, "bad": [1]})


def test_a_bad_span_does_not_refuse_its_neighbours_if_each_is_decoded() -> None:
    body = json.dumps([SPAN, {**SPAN, "prompt_tokens": -1}, 5, {**SPAN, "caller": None}]).encode()
    spans, bad = docs.decode_each(BOM + body)
    assert len(spans) == 2
    assert [(span.place, span.error.partition(":")[0]) for span in bad] == [(1, "prompt_tokens"), (2, "not an object")]


@pytest.mark.parametrize("body", [b"", b"[1", b"nonsense", b"[{]"])
def test_what_is_not_json_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(Rejected):
        docs.decode_each(body)


# --- the other ways in ---


def test_a_mist_message_is_read_leniently_and_its_checksum_holds() -> None:
    payload = (
        b'{"trace_id": null, "operation": "x \\ud83d", "start_ns": 1773584581441000192.0, "end_ns": 0, "attrs": null}'
    )
    envelope = {"type": "trace.span", "source": None, "version": None, "checksum": float(zlib.crc32(payload))}
    body = json.dumps(envelope).encode()[:-1] + b', "payload": ' + payload + b"}"
    span = mist.decode_message(BOM + body)
    assert (span.name, span.started_ns) == ("x \ufffd", int(1773584581441000192.0))
    with pytest.raises(Rejected, match="checksum"):
        mist.decode_message(body.replace(b'"attrs": null', b'"attrs": {}'))


def test_a_mist_span_without_a_start_has_an_end() -> None:
    body = b'{"type": "trace.span", "payload": {"operation": "x", "start_ns": null, "end_ns": 1773584581441000000}}'
    span = mist.decode_message(body)
    assert (span.started_ns, span.ended_ns, span.latency_ns) == (1773584581441000000, 1773584581441000000, 0)


def test_the_body_of_cost_katana_is_read_leniently() -> None:
    body = BOM + (
        b'{"spans": [{"name": "n \\ud83d", "startedAt": "0001-01-01T00:00:00Z", "endedAt": "2016-12-31T23:59:60Z", '
        b'"tokens": {"input": 10.0, "output": null}}]}'
    )
    (span,) = costkatana.decode_ingest(body)
    assert span.name == "n \ufffd"
    assert span.tokens is not None
    assert span.tokens.amounts() == {"input": 10}
    (span,) = costkatana.decode_ingest(BOM + b'[{"name": "n", "endedAt": null}]')
    assert span.ended_at is None


def test_a_span_of_a_reporter_is_read_leniently() -> None:
    span = make_span(prompt_tokens=1000.0, total_tokens=1128.0, model=None, usage={"web_searches": 2.0}, caller=None)
    read = read_span(msgspec.msgpack.encode(span))
    assert (read.prompt_tokens, read.total_tokens, read.model, read.caller) == (1000, 1128, "", "")
    assert read.usage == {"web_searches": 2}


@pytest.mark.parametrize("fields", [{"prompt_tokens": -1}, {"prompt_tokens": 1.5}, {"kind": "rocket"}, {"name": 5}])
def test_a_wrong_span_of_a_reporter_stays_wrong(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_span(msgspec.msgpack.encode(make_span(**fields)))


@pytest.mark.parametrize("start", [b"", BOM])
def test_a_json_message_over_nats_is_read_leniently(start: bytes) -> None:
    payload = start + b'[{"model": "m", "prompt_tokens": 5.0, "name": "x \\ud83d", "caller": null}]'
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert not dead_letters
    (span,) = stored_spans(cleaned)
    assert (span.name, span.prompt_tokens) == ("x \ufffd", 5)


def test_a_batch_of_an_earlier_reporter_is_read_leniently() -> None:
    odd = make_span(prompt_tokens=1000.0, total_tokens=1128.0, caller=None)
    long = make_span(name="n" * 300, error="e" * 70_000, status="error")
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(encode_batches([make_batch(odd, long)])))
    assert not dead_letters
    first, second = stored_spans(cleaned)
    assert (first.prompt_tokens, first.caller) == (1000, "web")
    assert second.adjusted == ("name: cut, 300 bytes", "error: cut, 70000 bytes")


def test_halves_of_surrogate_pairs_are_replaced_at_any_depth() -> None:
    value = {"a\ud800": ["x\udfff", {"b": ("\ud83d", 1, None)}]}
    assert without_surrogates(value) == {"a\ufffd": ["x\ufffd", {"b": ["\ufffd", 1, None]}]}
