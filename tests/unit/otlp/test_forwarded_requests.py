"""What is sent on to other backends: secrets and content are removed, requests are cut and marked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.otlp_fixtures import CONTENT, fixtures
from tokentrace.dialect.otlp import map_spans
from tokentrace.dialect.otlp.messages import read_request
from tokentrace.dialect.otlp.pieces import Limits, cut
from tokentrace.dialect.otlp.protobuf_encode import put_value
from tokentrace.dialect.otlp.protobuf_wire import decode_traces
from tokentrace.redact import REDACTED, Redactor
from tokentrace_ingest.forward.redaction import redact_request
from tokentrace_ingest.forward.requests import count_records, halves, mark, split

KEY = "sk-proj-" + "Ab3dEf6hIj9lMn2pQr5tUv8x" * 2
METADATA_ONLY = Redactor(mode="metadata_only")


def request_of(*names: str, **attributes: Any) -> Any:
    """Return a request with one span for each of *names*."""
    request = read_request("traces", "protobuf", b"")
    part = request.resource_spans.add()
    group = part.scope_spans.add()
    group.scope.name = "test"
    for number, name in enumerate(names or ("call",)):
        span = group.spans.add()
        span.name, span.trace_id, span.span_id = name, b"\x01" * 16, number.to_bytes(8, "big")
        for key, value in attributes.items():
            pair = span.attributes.add()
            pair.key = key
            put_value(pair.value, value)
    return request


def values_of(request: Any) -> dict[str, Any]:
    (span, *_) = decode_traces(request.SerializeToString())
    return dict(span.attributes)


def redacted(request: Any, redactor: Redactor | None = None) -> dict[str, Any]:
    redact_request(request, redactor or Redactor(), {})
    return values_of(request)


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_the_pieces_of_a_request_hold_all_that_it_says_about_its_program(encoding: Any) -> None:
    request = request_of("one", "two")
    part = request.resource_spans[0]
    part.schema_url, part.scope_spans[0].schema_url = "https://example.com/1", "https://example.com/2"
    part.resource.attributes.add().key = "service.name"
    body = request.SerializeToString()
    if encoding == "json":
        spans = [
            {"name": span.name, "traceId": span.trace_id.hex(), "spanId": span.span_id.hex()}
            for span in all_spans(request)
        ]
        scope = {"scope": {"name": "test"}, "schemaUrl": "https://example.com/2", "spans": spans}
        resource = {"attributes": [{"key": "service.name", "value": {}}]}
        group = {"resource": resource, "schemaUrl": "https://example.com/1", "scopeSpans": [scope]}
        body = json.dumps({"resourceSpans": [group]}).encode()
    whole = read_request("traces", encoding, body)
    pieces = cut(encoding, "traces", body, Limits(100, 1, 1_000_000)).parts
    assert len(pieces) == 2
    read = [read_request("traces", encoding, piece.encode()) for piece in pieces]
    assert [span.name for one in read for span in all_spans(one)] == ["one", "two"]
    for one in read:
        del one.resource_spans[0].scope_spans[0].spans[:]
        first = read_request("traces", encoding, body)
        del first.resource_spans[0].scope_spans[0].spans[:]
        assert one == first
    assert whole.resource_spans[0].schema_url == "https://example.com/1"


def all_spans(request: Any) -> list[Any]:
    return [span for part in request.resource_spans for group in part.scope_spans for span in group.spans]


def test_a_captured_request_without_secrets_stays_as_it_is() -> None:
    for fixture in fixtures():
        request, original = (read_request("traces", "json", fixture.body) for _ in range(2))
        redact_request(request, Redactor(), {})
        assert request == original, fixture.name


def test_no_captured_request_has_content_left_if_only_metadata_may_pass() -> None:
    for fixture in fixtures():
        request = read_request("traces", "json", fixture.body)
        redact_request(request, METADATA_ONLY, {})
        data = request.SerializeToString()
        assert [text for text in CONTENT if text.encode() in data] == [], fixture.name


def test_calls_tokens_and_sessions_of_captured_requests_pass_if_only_metadata_may() -> None:
    lost: Counter[str] = Counter()
    for fixture in fixtures():
        request = read_request("traces", "json", fixture.body)
        redact_request(request, METADATA_ONLY, {})
        before, after = (
            map_spans(decode_traces(data)).spans for data in (fixture.protobuf(), request.SerializeToString())
        )
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            same = (old.kind, old.prompt_tokens, old.completion_tokens, old.session_id, old.ttft_ns, old.provider)
            if not fixture.name.startswith("openinference"):
                assert same == (
                    new.kind,
                    new.prompt_tokens,
                    new.completion_tokens,
                    new.session_id,
                    new.ttft_ns,
                    new.provider,
                )
                assert old.model == new.model
            lost["response_id"] += old.response_id != new.response_id
    # OpenInference tells it only within the answer.
    assert 0 < lost["response_id"] < 40


def test_secrets_go_wherever_they_stand() -> None:
    request = request_of(
        plain=f"the key is {KEY}",
        password="hunter22",
        nested={"inner": [f"x {KEY}"], "secret": {"a": "b"}},
        raw=f"bytes {KEY}".encode(),
    )
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.name = f"call {KEY}"
    span.status.message = f"failed {KEY}"
    event = span.events.add()
    event.name = f"event {KEY}"
    event.attributes.add(key="exception.message").value.string_value = KEY
    span.links.add().attributes.add(key="note").value.string_value = KEY
    request.resource_spans[0].resource.attributes.add(key=f"r {KEY}").value.string_value = KEY
    request.resource_spans[0].scope_spans[0].scope.attributes.add(key="s").value.string_value = KEY
    redactions: dict[str, int] = {}
    redact_request(request, Redactor(), redactions)
    data = request.SerializeToString()
    assert KEY.encode() not in data
    assert b"hunter22" not in data
    assert values_of(request)["password"] == REDACTED
    assert sum(redactions.values()) >= 10


def test_secrets_go_from_logs_and_metrics_too() -> None:
    logs = read_request("logs", "protobuf", b"")
    record = logs.resource_logs.add().scope_logs.add().log_records.add()
    record.body.kvlist_value.values.add(key="api_key").value.string_value = "hunter22"
    record.attributes.add(key="line").value.string_value = KEY
    metrics = read_request("metrics", "protobuf", b"")
    metric = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="m", description=KEY)
    point = metric.sum.data_points.add(as_int=7)
    point.attributes.add(key="token").value.string_value = "hunter22"
    point.exemplars.add().filtered_attributes.add(key="e").value.string_value = KEY
    for request in (logs, metrics):
        redact_request(request, Redactor(), {})
        data = request.SerializeToString()
        assert KEY.encode() not in data
        assert b"hunter22" not in data
    assert metric.sum.data_points[0].as_int == 7


def test_only_facts_are_left_of_events_and_log_lines_if_only_metadata_may_pass() -> None:
    request = request_of()
    event = request.resource_spans[0].scope_spans[0].spans[0].events.add(name="exception")
    event.attributes.add(key="exception.type").value.string_value = "Timeout"
    event.attributes.add(key="exception.message").value.string_value = "private"
    event.attributes.add(key="whatever").value.string_value = "private"
    request.resource_spans[0].scope_spans[0].spans[0].status.message = "private"
    logs = read_request("logs", "protobuf", b"")
    record = logs.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = "private"
    record.attributes.add(key="whatever").value.string_value = "private"
    for message in (request, logs):
        redact_request(message, METADATA_ONLY, {})
        assert b"private" not in message.SerializeToString()
    assert b"Timeout" in request.SerializeToString()


def test_an_applications_own_attribute_follows_the_rule_for_records() -> None:
    sent = {"plan": "pro", "ai.telemetry.metadata.plan": "pro", "ai.telemetry.metadata.question": "private"}
    kept = redacted(request_of(**sent), METADATA_ONLY)
    assert kept == {"plan": "pro", "ai.telemetry.metadata.plan": "pro", "ai.telemetry.metadata.question": ""}


def test_users_are_hashed_as_those_of_records_are() -> None:
    redactor = Redactor(id_key="k" * 16)
    names = ("user.id", "enduser.id", "langfuse.user.id", "llm.user", "gen_ai.request.user")
    told = redacted(request_of(**dict.fromkeys(names, "alice"), customer_id="alice"), redactor)
    assert set(told.values()) == {redactor.user_id("alice")}
    assert redacted(request_of(**{"user.id": "alice@example.com"})) == {"user.id": "alice@example.com"}


def test_fields_that_are_not_known_do_not_pass() -> None:
    request = request_of()
    data = request.SerializeToString() + b"\xfa\x3e\x07private"
    unknown = type(request).FromString(data)
    assert b"private" in unknown.SerializeToString()
    redact_request(unknown, Redactor(), {})
    assert unknown.SerializeToString() == request.SerializeToString()


@given(st.lists(st.lists(st.lists(st.integers(0, 400), max_size=4), max_size=3), max_size=3), st.integers(80, 2000))
@pytest.mark.long
def test_parts_of_a_request_hold_the_same_records_in_their_order(sizes: list[list[list[int]]], limit: int) -> None:
    request = read_request("traces", "protobuf", b"")
    for number, groups in enumerate(sizes):
        part = request.resource_spans.add(schema_url=f"r{number}")
        part.resource.attributes.add(key="n").value.int_value = number
        for index, spans in enumerate(groups):
            group = part.scope_spans.add(schema_url=f"s{index}")
            group.scope.name = f"scope {index}"
            for size in spans:
                group.spans.add(name="x" * size)
    parts = [(type(request).FromString(data), len(data), count) for data, count in split(request, limit)]
    assert flat(request) == [record for part, _, _ in parts for record in flat(part)]
    assert all(count_records(part) == count for part, _, count in parts)
    assert all(size <= limit or count == 1 for _, size, count in parts)


def flat(request: Any) -> list[tuple[int, str, str, str, str]]:
    """Return each span of *request* with its resource, scope and schemas."""
    return [
        (part.resource.attributes[0].value.int_value, part.schema_url, group.scope.name, group.schema_url, span.name)
        for part in request.resource_spans
        for group in part.scope_spans
        for span in group.spans
    ]


def test_halves_hold_as_many_records_but_for_an_odd_one() -> None:
    assert [count_records(half) for half in halves(request_of("one"))] == [0, 1]
    assert [count_records(half) for half in halves(request_of(*"abcde"))] == [2, 3]


def test_what_this_pipeline_has_sent_on_before_is_removed() -> None:
    request = request_of("a", "b")
    assert mark(request, "here") == 0
    assert mark(request, "there") == 0
    other = request_of("c")
    request.resource_spans.extend(other.resource_spans)
    assert mark(request, "here") == 2
    assert [span[-1] for span in names_of(request)] == ["c"]


def names_of(request: Any) -> list[tuple[str, ...]]:
    return [(span.name,) for part in request.resource_spans for group in part.scope_spans for span in group.spans]


def test_a_mark_does_not_grow_without_end() -> None:
    request = request_of("a")
    dropped = [mark(request, f"pipeline {number}") for number in range(20)]
    assert sum(dropped) == 1
    assert dropped[16] == 1
