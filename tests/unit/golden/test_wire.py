"""
Encoded records and JSON dialects, compared with golden files: a changed format would break stored data and clients.

``python tests/unit/golden/test_wire.py`` rewrites the files; their diff shows how the format changed.
"""

from __future__ import annotations

import json
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent.parent))

from kit.builders import ENDED_NS, STARTED_NS, make_batch, make_span  # noqa: E402
from tokentrace.dialect import docs, mist  # noqa: E402
from tokentrace.records import (  # noqa: E402
    Annotation,
    Batch,
    ChatMessage,
    RefusedSpan,
    ReporterStats,
    Score,
    SessionEnd,
    Span,
    Started,
    Tombstone,
    decode_batches,
    encode_batches,
)

#: Each field differs from its default and from the other fields, so that a moved or missing field is noticed.
SPAN = make_span(
    span_id="a1b2c3d4-0000-4000-8000-000000000002",
    parent_span_id="00f067aa-0000-4000-8000-000000000003",
    caller="checkout",
    ttft_ns=212_500_000,
    total_tokens=650,
    cost_nusd=4_480_000,
    score=870_000_000,
    attributes={
        "request_id": "abc123",
        "eval.score": 0.87,
        "retries": 2,
        "cached": False,
        "note": None,
        "tags": ["é", {}],
    },
    error="slow",
    arrived_ns=ENDED_NS + 1,
    session_id="session-1",
    user_id="user-1",
    cost_source="partly_priced",
    cost_model="openai:gpt-4o@genai-prices-0.0.0",
    unpriced_reason="no_rate:bananas",
    cache_read_tokens=256,
    cache_write_tokens=64,
    cache_write_1h_tokens=32,
    reasoning_tokens=100,
    usage={"web_searches": 3},
    error_stack="at line 1",
    status="timeout",
    kind="embedding",
    usage_state="partial",
    pricing_context={"service_tier": "flex", "processing": "batch"},
    response_id="chatcmpl-9XkQ2mZr7LwV",
    scope="openinference.instrumentation.openai",
    adjusted=("error: cut, 70000 bytes",),
)
BATCH = make_batch(
    SPAN,
    sequence=7,
    part=2,
    arrived_ns=ENDED_NS + 2,
    reporter=ReporterStats(sent=5, acked=4, dropped=3, failed=2, queue_depth=1, newly_dropped=6, newly_failed=8),
    started=[
        Started(
            trace_id="t",
            span_id="s",
            parent_span_id="p",
            session_id="c",
            user_id="u",
            name="n",
            kind="tool",
            started_ns=STARTED_NS,
            metadata={"k": "v"},
            caller="web",
            arrived_ns=STARTED_NS + 1,
        )
    ],
    scores=[
        Score(
            trace_id="t",
            span_id="s",
            name="eval.score",
            value=900_000_000,
            previous=100_000_000,
            kind="tool",
            model="m",
            provider="p",
            caller="c",
            span_name="n",
            status="error",
            ended_ns=ENDED_NS,
            arrived_ns=ENDED_NS + 1,
            attributes={"k": 2},
            session_id="x",
            user_id="u",
        )
    ],
    messages=[
        ChatMessage(
            message_id="m",
            session_id="c",
            span_id="s",
            role="assistant",
            content="hello",
            redacted=True,
            created_ns=ENDED_NS,
            metadata={"k": 1},
            raw="hello, it is me",
            length=15,
            trace_id="t",
        )
    ],
    session_ends=[SessionEnd(session_id="c", ended_ns=ENDED_NS, error="gone")],
    refused=[
        RefusedSpan(
            index=9, reason="model: required", span=make_span(span_id="s9", model=""), size_bytes=70, sha256="ab"
        )
    ],
    tombstones=[Tombstone(target="session", id="c", deleted_ns=ENDED_NS)],
    annotations=[Annotation(trace_id="t", span_id="s", attributes={"k": 3})],
    layout=1,
    identities=bytes(range(16)),
)

#: The documented example of a span.
DOCS_EXAMPLE = (
    '{"trace_id":"7f3a1c2b-...","span_id":"a1b2c3d4-...","name":"summarize-document","model":"gpt-4o",'
    '"provider":"openai","prompt_tokens":512,"comp_tokens":128,"total_tokens":640,"cost_usd":0.00448,'
    '"latency_ms":1240,"status":"ok","started_at":"2026-03-15T14:23:01.441Z","ended_at":"2026-03-15T14:23:02.681Z"}'
)
MIST_PAYLOAD = (
    '{"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331b7ad6b7169203331",'
    '"parent_id":"00f067aa0ba902b700f067aa0ba902b7","operation":"infermux.infer","start_ns":1700000000000000001,'
    '"end_ns":1700000001240000003,"status":"ok","attrs":{"provider":"openai","model":"gpt-4o","tokens_in":512,'
    '"tokens_out":128,"cost_usd":0.00448,"latency_ms":1240,"finish_reason":"stop","eval.score":0.87}}'
)
MIST_EXAMPLE = (
    '{"version":"1","id":"4bf92f3577b34da6a3ce929d0e0e4736","source":"infermux","type":"trace.span",'
    f'"timestamp_ns":1700000001250000000,"payload":{MIST_PAYLOAD},"checksum":{zlib.crc32(MIST_PAYLOAD.encode())}}}'
)


def named(record: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of an array-like record by name."""
    return {name: getattr(record, name) for name in record.__struct_fields__}


def docs_span() -> Span:
    [span] = docs.decode_spans(DOCS_EXAMPLE.encode())
    return span


def mist_span() -> Span:
    return mist.decode_message(MIST_EXAMPLE.encode())


LAYOUTS = (Batch, Span, ReporterStats, Started, Score, ChatMessage, SessionEnd, Tombstone, Annotation)
FILES = (
    "batch.hex",
    "smallest_batch.hex",
    "layout.json",
    "docs_parsed.json",
    "docs_rendered.json",
    "mist_parsed.json",
    "mist_rendered.json",
    "full_span_as_docs.json",
)


def as_hex(payload: bytes) -> str:
    return "\n".join(textwrap.wrap(payload.hex(), 96)) + "\n"


def golden(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def golden_bytes(name: str) -> bytes:
    return bytes.fromhex(golden(name))


def capture(name: str) -> str:
    """Return what the golden file *name* must contain."""
    if name == "batch.hex":
        return as_hex(encode_batches([BATCH]))
    if name == "smallest_batch.hex":
        return as_hex(encode_batches([Batch(id="r")]))
    shown: dict[str, Any]
    if name == "layout.json":
        shown = {kind.__name__: list(kind.__struct_fields__) for kind in LAYOUTS}
    elif name == "docs_parsed.json":
        shown = named(docs_span())
    elif name == "docs_rendered.json":
        shown = docs.render_span(docs_span())
    elif name == "mist_parsed.json":
        shown = named(mist_span())
    elif name == "mist_rendered.json":
        shown = mist.render_span(mist_span())
    else:
        shown = docs.render_span(SPAN)
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def comparable(name: str, text: str) -> str:
    """
    Return *text*, with sorted keys if the file *name* is JSON, because the order of keys has no meaning.

    1240 and 1240.0 stay different.
    """
    return json.dumps(json.loads(text), indent=1, sort_keys=True) if name.endswith(".json") else text


def test_each_field_of_the_golden_batch_has_a_value_other_than_its_default() -> None:
    assert BATCH.reporter is not None
    records: list[msgspec.Struct] = [BATCH, *BATCH.spans, BATCH.reporter, *BATCH.started, *BATCH.scores]
    records += [*BATCH.messages, *BATCH.session_ends, *BATCH.tombstones, *BATCH.annotations]
    for record in records:
        for field in msgspec.structs.fields(record):
            value = getattr(record, field.name)
            assert value != field.default, (type(record).__name__, field.name)
            assert value not in ("", 0, None, [], {}), (type(record).__name__, field.name)


@pytest.mark.parametrize("name", FILES)
def test_the_encoded_form_equals_its_golden_file(name: str) -> None:
    assert comparable(name, capture(name)) == comparable(name, golden(name))


def test_each_golden_file_is_compared() -> None:
    assert {path.name for path in HERE.iterdir() if path.suffix in (".json", ".hex")} == set(FILES)


def test_the_golden_bytes_decode_to_the_golden_batch() -> None:
    assert decode_batches(golden_bytes("batch.hex")) == [BATCH]
    assert decode_batches(golden_bytes("smallest_batch.hex")) == [Batch(id="r")]


def test_fields_are_only_appended() -> None:
    layout = json.loads(golden("layout.json"))
    for kind in LAYOUTS:
        assert list(kind.__struct_fields__)[: len(layout[kind.__name__])] == layout[kind.__name__]


def test_a_batch_without_the_newer_fields_is_decoded_with_their_defaults() -> None:
    [fields] = msgspec.msgpack.decode(golden_bytes("batch.hex"))
    names = Batch.__struct_fields__
    for known in range(1, len(names)):
        [batch] = decode_batches(msgspec.msgpack.encode([fields[:known]]))
        assert [getattr(batch, name) for name in names[:known]] == [getattr(BATCH, name) for name in names[:known]]
        older = Batch(id=BATCH.id)
        assert [getattr(batch, name) for name in names[known:]] == [getattr(older, name) for name in names[known:]]


def test_a_span_without_the_newer_fields_is_decoded_with_their_defaults() -> None:
    [fields] = msgspec.msgpack.decode(golden_bytes("batch.hex"))
    names, plain = Span.__struct_fields__, Span()
    for known in range(len(names)):
        older = [*fields[:5], [fields[5][0][:known]], *fields[6:]]
        [batch] = decode_batches(msgspec.msgpack.encode([older]))
        [span] = batch.spans
        assert [getattr(span, name) for name in names[:known]] == [getattr(SPAN, name) for name in names[:known]]
        assert [getattr(span, name) for name in names[known:]] == [getattr(plain, name) for name in names[known:]]
        assert batch.reporter == BATCH.reporter


def test_other_records_without_their_newer_fields_keep_the_older_ones() -> None:
    required = {"reporter": 0, "started": 2, "scores": 4, "messages": 2, "session_ends": 2, "tombstones": 3}
    required["annotations"] = 2
    [fields] = msgspec.msgpack.decode(golden_bytes("batch.hex"))
    for name, least in required.items():
        at = Batch.__struct_fields__.index(name)
        whole = fields[at] if name == "reporter" else fields[at][0]
        for known in range(least, len(whole)):
            older = list(fields)
            older[at] = whole[:known] if name == "reporter" else [whole[:known]]
            [batch] = decode_batches(msgspec.msgpack.encode([older]))
            got = batch.reporter if name == "reporter" else getattr(batch, name)[0]
            want = getattr(BATCH, name) if name == "reporter" else getattr(BATCH, name)[0]
            kept = want.__struct_fields__[:known]
            assert [getattr(got, field) for field in kept] == [getattr(want, field) for field in kept]


def test_the_documented_example_is_rendered_with_its_input_values() -> None:
    shown = json.loads(golden("docs_rendered.json"))
    assert {name: shown[name] for name in json.loads(DOCS_EXAMPLE)} == json.loads(DOCS_EXAMPLE)


def test_the_mist_example_is_rendered_with_its_input_values() -> None:
    shown, sent = json.loads(golden("mist_rendered.json")), json.loads(MIST_PAYLOAD)
    assert {**shown, "attrs": None} == {**sent, "attrs": None}
    assert {name: shown["attrs"][name] for name in sent["attrs"]} == sent["attrs"]


if __name__ == "__main__":
    for file in FILES:
        (HERE / file).write_text(capture(file), encoding="utf-8")
