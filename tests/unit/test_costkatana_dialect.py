"""Bodies that Cost Katana's clients send: how they become records, and which are rejected."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import ENDED_NS, STARTED_NS
from kit.costkatana import END, NOW_NS, SPAN_ID, encoded, finished, started
from tokentrace.dialect.costkatana import (
    Place,
    decode_end,
    decode_ingest,
    decode_message,
    decode_start,
    end_of,
    has_ended,
    start_of,
)
from tokentrace.errors import Rejected
from tokentrace.records import Span
from tokentrace.units import MS


def refusal(decode: Any, body: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode(body)
    assert caught.value.status == 400
    return str(caught.value)


def status_of(decode: Any, body: bytes) -> int | None:
    """Return the status with which *body* is rejected, or None. Any other exception fails the test."""
    try:
        decode(body)
    except Rejected as exc:
        return exc.status
    return None


class TestMapping:
    def test_a_start_and_an_end_become_one_span(self) -> None:
        assert finished(caller="web") == Span(
            trace_id="root-of-all",
            span_id=SPAN_ID,
            parent_span_id="parent-1",
            session_id="session-1",
            user_id="u-1",
            name="answer",
            kind="llm",
            caller="web",
            model="gpt-4o",
            provider="openai",
            status="ok",
            started_ns=STARTED_NS,
            ended_ns=ENDED_NS,
            latency_ns=1240 * MS,
            ttft_ns=320_500_000,
            prompt_tokens=512,
            completion_tokens=128,
            total_tokens=640,
            cost_nusd=4_480_000,
            score=875_000_000,
            source="costkatana",
            attributes={
                "userId": "u-1",
                "label": "support",
                "provider": "openai",
                "step": 2,
                "deep": {"a": [1, "b"]},
                "ttft_ms": 320.5,
                "eval.score": 0.875,
                "tool": "search",
                "resource_ids": ["doc-1", "doc-2"],
            },
        )

    def test_a_span_with_only_a_name_is_custom_ok_and_has_no_duration(self) -> None:
        start = start_of(decode_start(b'{"name":"x"}'), SPAN_ID, Place(SPAN_ID, "s"), NOW_NS)
        span = end_of(start, decode_end(b""), NOW_NS)
        assert span == Span(
            trace_id=SPAN_ID,
            span_id=SPAN_ID,
            session_id="s",
            name="x",
            kind="custom",
            started_ns=NOW_NS,
            ended_ns=NOW_NS,
            source="costkatana",
        )

    def test_null_means_absent_and_unknown_keys_are_ignored(self) -> None:
        nulls = dict.fromkeys(["sessionId", "parentId", "metadata", "startedAt", "traceId", "userId", "type"])
        assert decode_start(encoded(name="x", **nulls, sdkVersion="9")) == decode_start(b'{"name":"x"}')
        ends = dict.fromkeys(["error", "model", "aiModel", "tokens", "costUSD", "tool", "resourceIds", "metadata"])
        assert decode_end(encoded(status="ok", **ends, extra={})) == decode_end(b'{"status":"ok"}')

    def test_an_llm_call_without_tokens_is_accepted(self) -> None:
        assert finished({"status": "ok"}).total_tokens == 0

    def test_the_backends_name_of_the_model_is_accepted(self) -> None:
        assert finished({"aiModel": "claude-opus-4"}).model == "claude-opus-4"

    @pytest.mark.parametrize(
        ("error", "status", "expected"),
        [
            ({"message": "boom", "stack": "at x"}, None, ("error", "boom", "at x")),
            ({"message": "boom", "stack": None}, "error", ("error", "boom", "")),
            ("boom", None, ("error", "boom", "")),
            ("slow", "timeout", ("timeout", "slow", "")),
            (None, "error", ("error", "", "")),
            (None, None, ("ok", "", "")),
        ],
    )
    def test_an_error_may_be_an_object_or_a_text(self, error: Any, status: Any, expected: Any) -> None:
        span = finished({"status": status, "error": error})
        assert (span.status, span.error, span.error_stack) == expected

    def test_a_caller_in_the_metadata_wins_over_the_requests_caller(self) -> None:
        assert finished(caller="header").caller == "header"
        assert finished(caller="header", metadata={"caller": "mine"}).caller == "mine"
        assert started("header", metadata={"caller": "mine"}).caller == "mine"

    def test_the_user_is_a_field_or_in_the_metadata(self) -> None:
        assert started(userId="given").user_id == "given"
        assert started().user_id == "u-1"
        assert started(metadata={}).user_id is None
        assert started(metadata={"userId": 7}).user_id == "7"
        assert started(metadata={"userId": True}).user_id is None
        assert finished({"metadata": {"userId": "late"}}, metadata={}).user_id == "late"

    def test_an_end_before_the_start_gives_a_duration_of_zero(self) -> None:
        span = finished({"endedAt": "2026-03-15T14:23:00Z"})
        assert (span.ended_ns, span.latency_ns) == (STARTED_NS, 0)

    def test_fields_of_the_start_hold_unless_the_end_replaces_them(self) -> None:
        early = Span(model="gpt-4o", prompt_tokens=5, completion_tokens=3, cost_nusd=9, error="early", error_stack="s")
        kept = end_of(started(), decode_end(b"{}"), NOW_NS, early)
        assert (kept.model, kept.prompt_tokens, kept.completion_tokens, kept.cost_nusd) == ("gpt-4o", 5, 3, 9)
        assert (kept.status, kept.error, kept.error_stack) == ("error", "early", "s")
        changed = end_of(started(), decode_end(encoded(**END)), NOW_NS, early)
        assert (changed.prompt_tokens, changed.completion_tokens, changed.cost_nusd) == (512, 128, 4_480_000)

    @given(
        start=st.dictionaries(st.sampled_from("abcdef"), st.integers(-9, 9) | st.text(max_size=5)),
        end=st.dictionaries(st.sampled_from("abcdef"), st.booleans() | st.lists(st.integers(0, 3), max_size=3)),
    )
    def test_metadata_of_the_end_replaces_that_of_the_start_key_by_key(
        self, start: dict[str, Any], end: dict[str, Any]
    ) -> None:
        expected = [(key, end[key] if key in end else start[key]) for key in sorted({*start, *end})]
        span = finished({"metadata": end}, metadata=start)
        assert sorted(span.attributes.items()) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"name": ""}, "name: "),
            ({"name": 7}, "name: "),
            ({"type": "oracle"}, "type: "),
            ({"type": "LLM"}, "type: "),
            ({"traceId": 7}, "traceId: "),
            ({"traceId": "a\nb"}, "traceId: "),
            ({"sessionId": "ü"}, "sessionId: "),
            ({"parentId": "x" * 257}, "parentId: "),
            ({"parentId": "me", "traceId": "me"}, "parentId: a span is not its own parent"),
            ({"userId": "a\x00"}, "userId: "),
            ({"metadata": []}, "metadata: "),
            ({"metadata": {"tt.x": 1}}, "metadata: 'tt.x'"),
            ({"metadata": {"": 1}}, "metadata: a key is empty"),
            ({"metadata": {"eval.score": 1.5}}, "metadata: 'eval.score'"),
            ({"startedAt": "yesterday"}, "startedAt: 'yesterday' is not RFC 3339"),
            ({"startedAt": "2026-03-15T14:23:01"}, "startedAt: "),
            ({"startedAt": "1999-12-31T23:59:59Z"}, "startedAt: not between"),
            ({"startedAt": 1773584581441}, "startedAt: "),
        ],
    )
    def test_the_error_of_a_start_names_the_bad_field(self, fields: dict[str, Any], named: str) -> None:
        assert refusal(decode_start, encoded(**{"name": "x", **fields})).startswith(named)

    def test_a_start_without_a_name_is_rejected(self) -> None:
        assert "name" in refusal(decode_start, b"{}")

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"status": "done"}, "status: "),
            ({"status": "pending"}, "status: "),
            ({"tokens": 5}, "tokens: "),
            ({"tokens": {"input": -1}}, "tokens.input: "),
            ({"tokens": {"output": 1.5}}, "tokens.output: "),
            ({"costUSD": -0.1}, "costUSD: "),
            ({"costUSD": "1"}, "costUSD: "),
            ({"model": 4}, "model: "),
            ({"tool": {}}, "tool: "),
            ({"resourceIds": "a"}, "resourceIds: "),
            ({"resourceIds": [1]}, "resourceIds[0]: "),
            ({"error": 5}, "error: "),
            ({"error": {"message": 5}}, "error.message: "),
            ({"metadata": {"tt.a": 1}}, "metadata: "),
            ({"endedAt": "soon"}, "endedAt: 'soon'"),
        ],
    )
    def test_the_error_of_an_end_names_the_bad_field(self, fields: dict[str, Any], named: str) -> None:
        assert refusal(decode_end, encoded(**fields)).startswith(named)

    def test_a_duration_over_thirty_days_is_rejected(self) -> None:
        late = datetime.fromtimestamp(STARTED_NS / 1e9, UTC) + timedelta(days=30, seconds=1)
        with pytest.raises(Rejected, match="endedAt: over 30 days"):
            finished({"endedAt": late.isoformat()})

    def test_of_merged_metadata_with_too_many_keys_the_first_stay(self) -> None:
        half = {f"a{n}": n for n in range(70)}
        span = finished({"metadata": {f"b{n}": n for n in range(70)}}, metadata=half)
        assert span.adjusted == ("attributes: 12 of 140 left out",)
        assert len(span.attributes) == 128

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"role": "boss"}, "role: "),
            ({"role": None}, "role: "),
            ({"content": ["a"]}, "content: "),
            ({"sessionId": ""}, "sessionId: "),
            ({"sessionId": "ü"}, "sessionId: "),
            ({"traceId": "ü"}, "traceId: "),
            ({"messageId": "\n"}, "messageId: "),
            ({"metadata": {"tt.a": 1}}, "metadata: "),
            ({"createdAt": "now"}, "createdAt: "),
        ],
    )
    def test_the_error_of_a_message_names_the_bad_field(self, fields: dict[str, Any], named: str) -> None:
        good = {"sessionId": "s", "traceId": "t", "role": "user", "content": "hi"}
        assert refusal(decode_message, encoded(**{**good, **fields})).startswith(named)

    def test_an_error_quotes_no_long_value(self) -> None:
        secret = "sk-" + "s3cr3t" * 20
        for decode, body in (
            (decode_start, encoded(name="x", type=secret)),
            (decode_start, encoded(name="x", startedAt=secret)),
            (decode_end, encoded(status=secret)),
            (decode_message, encoded(sessionId="s", role=secret, content="")),
        ):
            assert secret[:60] not in refusal(decode, body)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["spans", "name", "type", "metadata", "tokens", "error", "status", "traceId"]),
                    inner,
                    max_size=4,
                )
            ),
        )
    )
    def test_any_json_is_accepted_or_rejected(self, body: Any) -> None:
        for decode in (decode_start, decode_end, decode_ingest, decode_message):
            assert status_of(decode, json.dumps(body).encode()) in (None, 400)

    @given(st.binary(max_size=40))
    def test_any_bytes_are_accepted_or_rejected(self, body: bytes) -> None:
        for decode in (decode_start, decode_end, decode_ingest, decode_message):
            assert status_of(decode, body) in (None, 400)


class TestIngest:
    SPAN = encoded(name="x", status="ok")

    def test_an_object_with_spans_an_array_and_one_span_are_equivalent(self) -> None:
        forms = [b'{"spans":[' + self.SPAN + b"]}", b" [" + self.SPAN + b"]", b" " + self.SPAN]
        assert [decode_ingest(form) for form in forms] == [decode_ingest(forms[0])] * 3
        assert len(decode_ingest(forms[0])) == 1

    def test_the_error_of_a_bad_span_has_its_index(self) -> None:
        bad = b'{"name":"x","costUSD":"1"}'
        assert refusal(decode_ingest, b"[" + self.SPAN + b"," + bad + b"]").startswith("span 1: costUSD: ")
        assert refusal(decode_ingest, b'{"spans":[' + self.SPAN + b"," + bad + b"]}").startswith("span 1: costUSD: ")
        late = encoded(name="x", startedAt="2026-03-15T14:23:01Z", endedAt="2026-03-15T14:23:00Z")
        assert refusal(decode_ingest, b"[" + self.SPAN + b"," + late + b"]") == "span 1: endedAt: before startedAt"

    @pytest.mark.parametrize("spans", [None, {}, "x", 5])
    def test_spans_that_are_no_array_are_rejected(self, spans: Any) -> None:
        assert refusal(decode_ingest, encoded(name="x", spans=spans)) == "spans: is not an array"

    def test_an_id_twice_in_a_batch_is_rejected(self) -> None:
        twice = json.dumps([{"name": "x", "traceId": "t"}, {"name": "z"}, {"name": "y", "traceId": "t"}]).encode()
        assert refusal(decode_ingest, twice) == "span 2: traceId: 't' is also that of span 0"

    @pytest.mark.parametrize(
        ("fields", "ended"),
        [
            ({}, False),
            ({"status": "pending"}, False),
            ({"status": "ok"}, True),
            ({"status": "timeout"}, True),
            ({"endedAt": "2026-03-15T14:23:01Z"}, True),
        ],
    )
    def test_a_span_has_ended_if_it_has_a_final_status_or_an_end(self, fields: dict[str, Any], ended: bool) -> None:
        assert has_ended(decode_start(encoded(name="x", **fields))) is ended

    def test_pending_and_ended_at_contradict_each_other(self) -> None:
        body = encoded(name="x", status="pending", endedAt="2026-03-15T14:23:01Z")
        assert refusal(decode_ingest, body).startswith("span 0: status: pending")
