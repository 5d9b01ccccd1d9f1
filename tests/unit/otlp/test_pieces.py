"""Pieces of a large request hold its records, each once and in order, whatever the encoding."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit import otlp
from kit.examples import examples
from kit.otlp import ENCODINGS, LOGS
from kit.otlp_fixtures import Fixture, fixtures
from tokentrace.dialect.otlp import json_wire, protobuf_wire
from tokentrace.dialect.otlp.pieces import Limits, count_points, cut
from tokentrace.errors import Rejected

WIRES: dict[str, Any] = {"protobuf": protobuf_wire, "json": json_wire}
NO_LIMITS = Limits(10**6, 10**9, 10**9)


def body_of(fixture: Fixture, encoding: str) -> bytes:
    return fixture.body if encoding == "json" else fixture.protobuf()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("piece_bytes", [1, 700, 3000])
@pytest.mark.parametrize("fixture", fixtures()[::6], ids=lambda fixture: fixture.name)
def test_pieces_hold_the_spans_of_a_request_in_order(fixture: Fixture, piece_bytes: int, encoding: Any) -> None:
    body = body_of(fixture, encoding)
    whole = WIRES[encoding].decode_traces(body)
    pieces = cut(encoding, "traces", body, NO_LIMITS._replace(piece_bytes=piece_bytes))
    assert [span for piece in pieces.parts for span in piece.spans()] == whole
    assert [place for piece in pieces.parts for place in piece.places] == list(range(len(whole)))
    assert all(piece.size <= piece_bytes or len(piece.places) == 1 for piece in pieces.parts)
    assert all(piece.check() for piece in pieces.parts)
    assert pieces.total == len(whole)
    assert pieces.too_large == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_record_over_the_limit_is_in_no_piece(encoding: Any) -> None:
    spans = [otlp.call(attrs={"text": "x" * size}) for size in (1, 5000, 1, 5000, 5000, 1)]
    body = otlp.encoded(otlp.traces(spans), encoding)
    pieces = cut(encoding, "traces", body, NO_LIMITS._replace(record_bytes=4000))
    assert [place for place, _ in pieces.too_large] == [1, 3, 4]
    assert all(b"x" * 5000 in data for _, data in pieces.too_large)
    held = {place: span for piece in pieces.parts for place, span in zip(piece.places, piece.spans(), strict=True)}
    assert {place: span.span_id for place, span in held.items()} == {at: spans[at]["spanId"] for at in (0, 2, 5)}
    assert pieces.total == 6


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_log_records_are_cut_too(encoding: Any) -> None:
    span = otlp.call()
    body = otlp.encoded(otlp.logs([otlp.evaluation(span, f"name-{n}", 0.5) for n in range(9)]), encoding, LOGS)
    pieces = cut(encoding, "logs", body, NO_LIMITS._replace(piece_bytes=400))
    assert len(pieces.parts) > 2
    assert [log for piece in pieces.parts for log in piece.logs()] == WIRES[encoding].decode_logs(body)
    assert not any(piece.check() for piece in pieces.parts)


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


#: A request with very many items of one kind, in few bytes: {encoding: {what: body}}.
CROWDED: dict[str, dict[str, bytes]] = {
    "protobuf": {
        "spans": field(1, field(2, field(2, b"") * 5000)),
        "scopes": field(1, field(2, b"") * 5000),
        "resources": field(1, field(2, b"")) * 5000,
        "unknown fields": field(9, b"") * 5000,
    },
    "json": {
        "spans": json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{}] * 5000}]}]}).encode(),
        "numbers": json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [0] * 500_000}]}]}).encode(),
        "resources": json.dumps({"resourceSpans": [{}] * 500_000}).encode(),
    },
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_request_with_too_many_items_is_refused(encoding: Any) -> None:
    for name, body in CROWDED[encoding].items():
        with pytest.raises(Rejected) as refusal:
            cut(encoding, "traces", body, NO_LIMITS._replace(records=4000))
        assert refusal.value.status == (400 if name == "unknown fields" else 413), name


def test_commas_in_texts_are_no_items() -> None:
    text = '"a,' * 200_000 + "\\"
    body = otlp.encoded(otlp.traces([otlp.call(attrs={"text": text})]), "json")
    [piece] = cut("json", "traces", body, NO_LIMITS._replace(records=100)).parts
    assert piece.spans()[0].attributes["text"] == text


OTHER_SIGNALS: tuple[dict[str, Any], ...] = (
    {"resourceLogs": []},
    {"resourceMetrics": None, "resourceLogs": [{}]},
    {"resourceMetrics": [{}]},
)


@pytest.mark.parametrize("other", OTHER_SIGNALS)
def test_json_of_another_signal_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="another signal than traces"):
        cut("json", "traces", json.dumps(other).encode(), NO_LIMITS)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_data_points_are_counted(encoding: Any, count: int) -> None:
    body = otlp.encoded(otlp.metrics(count), encoding, otlp.METRICS)
    assert count_points(encoding, body) == count


@given(data=st.data())
@settings(max_examples=examples(400))
def test_bytes_that_are_no_request_are_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    encoding: Any = data.draw(st.sampled_from(ENCODINGS))
    body = bytearray(otlp.encoded(otlp.traces([otlp.call(), otlp.call()]), encoding))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    broken = bytes(body) if data.draw(st.booleans()) else data.draw(st.binary(max_size=200))
    refusal = ""
    try:
        pieces = cut(encoding, "traces", broken, NO_LIMITS._replace(piece_bytes=300))
        assert sum(len(piece.spans()) for piece in pieces.parts) == pieces.total
    except Rejected as exc:
        refusal = str(exc)
    assert refusal.startswith("body: ") or not refusal


def test_a_slice_of_attributes_is_read_of_a_span_with_very_many() -> None:
    crowd = otlp.call()
    crowd["attributes"] += [{"key": os.urandom(4).hex(), "value": {"intValue": 1}} for _ in range(20_000)]
    for encoding in ENCODINGS:
        [span] = WIRES[encoding].decode_traces(otlp.encoded(otlp.traces([crowd]), encoding))
        assert 9_000 < len(span.attributes) <= 10_000
