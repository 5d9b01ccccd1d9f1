"""Spans that are posted to ``/spans`` and ``/mist`` are stored as documented, and count once if they are sent again."""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.cases import check_all, numbered
from kit.http_errors import refused
from kit.http_spans import MADE_ID, ago, assert_accepted, await_trace, mist_message, mist_span, settle, settled_calls
from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline, http


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("sent"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def test_the_documented_span_is_shown_with_all_its_fields(pipeline: Pipeline) -> None:
    trace, caller = fresh("trace"), fresh("caller")
    span = {
        "trace_id": trace,
        "span_id": "a1b2c3d4",
        "name": "summarize-document",
        "caller": caller,
        "model": "gpt-4o",
        "provider": "openai",
        "prompt_tokens": 512,
        "comp_tokens": 128,
        "total_tokens": 640,
        "cost_usd": 0.00448,
        "latency_ms": 1240,
        "status": "ok",
        "started_at": ago(minutes=10),
        "ended_at": ago(minutes=9),
        "attributes": {"document_type": "legal", "step": 3, "ratio": 0.5, "cached": True},
        "cost_model": "gpt-4o@2025-01",
        "ttft_ms": 87,
    }
    assert_accepted(pipeline.post("/spans", span))
    shown = await_trace(pipeline, trace)
    stored = shown["spans"][0]
    expected = {key: value for key, value in span.items() if key != "trace_id"}
    assert {key: stored[key] for key in expected} == expected
    assert stored["parent_span_id"] is None
    assert "trace_id" not in stored
    assert type(stored["attributes"]["step"]) is int
    assert stored["attributes"]["cached"] is True


def test_the_answer_to_a_single_span_counts_one_span(pipeline: Pipeline) -> None:
    assert_accepted(pipeline.post("/spans", json_call(caller=fresh("caller"))))


def test_the_answer_to_an_array_counts_its_spans(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    assert_accepted(pipeline.post("/spans", [json_call(caller=caller)] * 3), 3)
    assert settled_calls(pipeline, caller) == 3


def test_a_gzip_body_is_decompressed(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = gzip.compress(json.dumps([json_call(caller=caller)] * 2).encode())
    assert_accepted(pipeline.post("/spans", body, {"Content-Encoding": "gzip"}), 2)
    assert settled_calls(pipeline, caller) == 2


def test_all_members_of_a_gzip_body_are_read(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = json.dumps([json_call(caller=caller)] * 2).encode()
    packed = gzip.compress(body[:30]) + gzip.compress(body[30:])
    assert_accepted(pipeline.post("/spans", packed, {"Content-Encoding": "gzip"}), 2)
    assert settled_calls(pipeline, caller) == 2


def test_missing_ids_totals_statuses_and_times_are_filled_in(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    assert_accepted(pipeline.post("/spans", json_call(caller=caller, latency_ms=1240)))
    settle(pipeline, caller)
    listed = pipeline.get(f"/traces?caller={caller}&kind=llm").json()
    shown = pipeline.get(f"/traces/{listed['trace_ids'][0]}").json()
    stored = shown["spans"][0]
    assert MADE_ID.fullmatch(shown["trace_id"])
    assert MADE_ID.fullmatch(stored["span_id"])
    assert stored["total_tokens"] == 640
    assert stored["status"] == "ok"
    ended = datetime.fromisoformat(stored["ended_at"])
    assert before <= ended <= datetime.now(UTC)
    assert ended - datetime.fromisoformat(stored["started_at"]) == timedelta(milliseconds=1240)


def test_each_span_without_a_trace_id_gets_its_own_trace(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    assert_accepted(pipeline.post("/spans", [json_call(caller=caller)] * 4), 4)
    settle(pipeline, caller)
    assert pipeline.get(f"/traces?caller={caller}&kind=llm").json()["total"] == 4


def test_a_total_without_parts_is_a_token_count(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    assert_accepted(pipeline.post("/spans", {"model": "gpt-4o", "trace_id": trace, "total_tokens": 77}))
    assert await_trace(pipeline, trace)["total_tokens"] == 77


def test_malformed_json_is_a_400(pipeline: Pipeline) -> None:
    bodies = [b"", b"{", b"not json", b"[1]", b"null", b'"span"', b"5", b"{}]", b"[{},"]
    check_all(numbered(bodies), lambda body: refused(pipeline.post("/spans", body)))


#: (Fields, what the error names).
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"prompt_tokens": 0, "comp_tokens": 0}, "prompt_tokens"),
    ({"status": "foo"}, "status"),
    ({"prompt_tokens": -1}, "prompt_tokens"),
    ({"prompt_tokens": "5"}, "prompt_tokens"),
    ({"started_at": "yesterday"}, "started_at"),
    ({"ended_at": "2026-01-01T00:00:00"}, "ended_at"),
    ({"attributes": {"": 1}}, "attributes"),
    ({"attributes": {"eval.score": 1.5}}, "eval.score"),
    ({"attributes": {"tt.internal": 1}}, "tt.internal"),
    ({"trace_id": "a\nb"}, "trace_id"),
    ({"kind": "banana"}, "kind"),
    ({"surprise": 1}, "surprise"),
    ({"total_tokens": 1}, "total_tokens"),
]


def test_an_invalid_span_is_a_400_that_names_field_and_index_and_no_span_is_accepted(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    valid = json_call(caller=caller)

    def check(case: tuple[dict[str, Any], str]) -> None:
        fields, field = case
        error = refused(pipeline.post("/spans", [valid, valid, {**valid, **fields}, valid]))
        assert field in error
        assert "span 2" in error

    check_all(numbered(INVALID), check)
    assert settled_calls(pipeline, caller) == 0


def test_an_error_or_timeout_needs_neither_model_nor_tokens(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [{"status": status, "caller": caller, "error": "no answer"} for status in ("error", "timeout")]
    assert_accepted(pipeline.post("/spans", spans), 2)
    settle(pipeline, caller)
    by_model = pipeline.get(f"/metrics/errors?caller={caller}&groupby=model").json()["by_model"]
    assert by_model["unknown"]["count"] == 2


def test_a_text_in_an_eval_attribute_is_not_a_score(pipeline: Pipeline) -> None:
    assert_accepted(pipeline.post("/spans", json_call(attributes={"eval.suite": "legal", "eval.score": 1})))


def test_1000_spans_are_accepted_and_1001_are_a_413(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    error = refused(pipeline.post("/spans", [json_call(caller=caller)] * 1001), 413)
    assert "1001" in error
    assert "1000" in error
    assert_accepted(pipeline.post("/spans", [json_call(caller=caller)] * 1000), 1000)
    assert settled_calls(pipeline, caller) == 1000


def test_an_unknown_content_encoding_is_a_415(pipeline: Pipeline) -> None:
    assert "br" in refused(pipeline.post("/spans", b"{}", {"Content-Encoding": "br"}), 415)


def test_the_same_key_and_body_twice_count_once(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    body = [json_call(caller=caller)] * 2
    assert_accepted(pipeline.post("/spans", body, key), 2)
    assert_accepted(pipeline.post("/spans", body, key), 2)
    assert settled_calls(pipeline, caller) == 2
    assert pipeline.get(f"/traces?caller={caller}&kind=llm").json()["total"] == 2


def test_the_same_key_with_another_body_is_a_422(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    assert_accepted(pipeline.post("/spans", json_call(caller=caller), key))
    error = refused(pipeline.post("/spans", json_call(caller=caller, comp_tokens=5), key), 422)
    assert "Idempotency-Key" in error
    assert settled_calls(pipeline, caller) == 1


def test_the_key_of_a_refused_body_may_be_used_again(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    refused(pipeline.post("/spans", json_call(caller=caller, model=""), key))
    assert_accepted(pipeline.post("/spans", json_call(caller=caller), key))
    assert settled_calls(pipeline, caller) == 1


def test_concurrent_requests_with_the_same_key_and_body_count_once(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: pipeline.post("/spans", json_call(caller=caller), key), range(16)))
    for answer in answers:
        assert_accepted(answer)
    assert settled_calls(pipeline, caller) == 1


def test_of_concurrent_requests_with_one_key_and_different_bodies_one_is_accepted(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    with ThreadPoolExecutor(8) as pool:
        bodies = [json_call(caller=caller, comp_tokens=number) for number in range(1, 13)]
        answers = list(pool.map(lambda body: pipeline.post("/spans", body, key), bodies))
    assert sorted(answer.status for answer in answers) == [202] + [422] * 11
    assert settled_calls(pipeline, caller) == 1


def test_a_body_without_ids_counts_each_time_it_is_sent(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    for _ in range(2):
        assert_accepted(pipeline.post("/spans", json_call(caller=caller)))
    assert settled_calls(pipeline, caller) == 2


def test_of_a_body_that_is_sent_again_only_the_spans_without_ids_count_again(pipeline: Pipeline) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    body = [json_call(caller=caller, trace_id=trace, span_id="1"), json_call(caller=caller, trace_id=trace)]
    for _ in range(2):
        assert_accepted(pipeline.post("/spans", body), 2)
    assert settled_calls(pipeline, caller) == 3
    assert pipeline.get(f"/traces/{trace}").json()["span_count"] == 3


def test_a_body_with_all_ids_counts_once(pipeline: Pipeline) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    body = [json_call(caller=caller, trace_id=trace, span_id=str(number)) for number in range(3)]
    for _ in range(3):
        assert_accepted(pipeline.post("/spans", body), 3)
    assert settled_calls(pipeline, caller) == 3
    assert pipeline.get(f"/traces/{trace}").json()["span_count"] == 3


def test_a_mist_message_with_ids_sent_twice_counts_once(pipeline: Pipeline) -> None:
    source = fresh("source")
    message = mist_message(mist_span(attrs={"model": "m", "tokens_in": 1}), source=source)
    for _ in range(2):
        assert pipeline.post("/mist", message).status == 202
    assert settled_calls(pipeline, source) == 1


def test_a_mist_span_is_a_202_with_an_empty_body(pipeline: Pipeline) -> None:
    answer = pipeline.post("/mist", mist_message(mist_span()))
    assert (answer.status, answer.body) == (202, b"")


def test_a_health_ping_is_a_400(pipeline: Pipeline) -> None:
    error = refused(pipeline.post("/mist", mist_message(b'{"from":"x"}', type="health.ping")))
    assert error == "expected type trace.span, got health.ping"


def test_a_message_that_is_not_json_is_a_400(pipeline: Pipeline) -> None:
    assert refused(pipeline.post("/mist", b"not json")).startswith("invalid message: ")


def test_other_methods_than_post_are_a_405(pipeline: Pipeline) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert refused(http(method, pipeline.url + "/mist"), 405) == "method not allowed", method


def test_a_payload_that_is_not_a_span_is_a_400(pipeline: Pipeline) -> None:
    for payload in (b"[]", b'"x"', b"5", b'{"start_ns":"x"}', b'{"attrs":[]}'):
        error = refused(pipeline.post("/mist", mist_message(payload)))
        assert error.startswith("invalid span payload: "), payload


def test_the_checksum_is_of_the_bytes_of_the_payload(pipeline: Pipeline) -> None:
    raw = b'{ "operation" :  "infer",\n "status":"ok" }'
    assert pipeline.post("/mist", mist_message(raw, checksum=zlib.crc32(raw))).status == 202
    assert pipeline.post("/mist", mist_message(raw, checksum=0)).status == 202
    error = refused(pipeline.post("/mist", mist_message(raw, checksum=zlib.crc32(raw) ^ 1)))
    assert "checksum" in error


def test_an_unknown_version_is_a_400(pipeline: Pipeline) -> None:
    for version in ("2", "0", "x"):
        assert "version" in refused(pipeline.post("/mist", mist_message(mist_span(), version=version)))


def test_a_message_needs_no_id_and_no_source(pipeline: Pipeline) -> None:
    body = json.dumps({"type": "trace.span", "payload": mist_span()}).encode()
    assert pipeline.post("/mist", body).status == 202


def test_a_mist_span_is_in_stats_and_metrics(pipeline: Pipeline) -> None:
    source, operation, trace = fresh("source"), fresh("operation"), uuid.uuid4().hex
    attrs = {"model": "gpt-4o", "provider": "openai", "tokens_in": 100, "tokens_out": 20, "cost_usd": 0.25, "z": [1]}
    span = mist_span(trace_id=trace, operation=operation, attrs=attrs)
    assert pipeline.post("/mist", mist_message(span, source=source)).status == 202
    await_trace(pipeline, trace)
    pipeline.until(lambda: operation in pipeline.get("/stats").json()["by_operation"], "in stats")
    assert pipeline.get("/stats").json()["by_operation"][operation] == {"count": 1, "errors": 0}
    shown = pipeline.get(f"/metrics?caller={source}").json()
    assert (shown["span_count"], shown["cost"]["total_usd"]) == (1, 0.25)
    assert (shown["tokens"]["prompt_total"], shown["tokens"]["completion_total"]) == (100, 20)
    assert shown["latency"]["p50_ms"] == 50
    exported = pipeline.get(f"/traces/{trace}?format=mist").json()
    assert exported["trace_id"] == trace
    assert exported["spans"][0] == {**span, "attrs": {**attrs, "caller": source}}


def test_tokens_that_are_not_numbers_are_ignored(pipeline: Pipeline) -> None:
    source = fresh("source")
    span = mist_span(attrs={"model": "m", "tokens_in": "5", "tokens_out": True, "cost_usd": "9"})
    assert pipeline.post("/mist", mist_message(span, source=source)).status == 202
    settle(pipeline, source)
    shown = pipeline.get(f"/metrics?caller={source}").json()
    assert shown["span_count"] == 1
    assert shown["tokens"]["total"] == 0


def test_the_score_of_matchspec_is_a_quality_score(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    span = mist_span(operation="matchspec.task", attrs={"caller": caller, "suite": "legal", "score": 0.75})
    assert pipeline.post("/mist", mist_message(span, source="matchspec")).status == 202
    settle(pipeline, caller)
    shown = pipeline.get(f"/metrics/quality?caller={caller}").json()
    assert (shown["score_avg"], shown["scored_span_count"]) == (0.75, 1)


def test_an_id_that_could_forge_a_log_line_is_replaced(pipeline: Pipeline) -> None:
    source = fresh("source")
    span = mist_span(trace_id="a\nERROR forged", attrs={"model": "m"})
    assert pipeline.post("/mist", mist_message(span, source=source)).status == 202
    settle(pipeline, source)
    (trace,) = pipeline.get(f"/traces?caller={source}&kind=llm").json()["trace_ids"]
    assert MADE_ID.fullmatch(trace)
