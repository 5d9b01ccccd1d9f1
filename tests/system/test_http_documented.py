"""What the documents promise of the HTTP API and the command, asked of a real ``tokentrace serve``."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.environment import plain_environment
from kit.pipeline import Answer, Pipeline, http

UUID_OR_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
GROUP_NAMES = ("cost", "tokens", "latency", "errors", "quality")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("documented"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Start a pipeline that has received no span."""
    started: list[Pipeline] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> Pipeline:
        serving = Pipeline(tmp_path / f"fresh-{len(started)}", *flags, env=env)
        started.append(serving)
        serving.start()
        return serving

    yield start
    for serving in started:
        serving.stop()


def fresh(what: str) -> str:
    """A name that no other test uses."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


def make(**fields: Any) -> dict[str, Any]:
    """A span that is valid as it stands."""
    return {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def ago(**delta: float) -> str:
    return iso(datetime.now(UTC) - timedelta(**delta))


def accepted(answer: Answer, count: int = 1) -> None:
    assert answer.status == 202, answer.body
    assert answer.json() == {"accepted": count}


def refused(answer: Answer, status: int) -> str:
    """The text of the error envelope."""
    assert answer.status == status, (answer.status, answer.body[:500])
    body = answer.json()
    assert list(body) == ["error"], body
    assert isinstance(body["error"], str)
    assert body["error"]
    return str(body["error"])


def counted(serving: Pipeline, caller: str, **more: str) -> int:
    query = "&".join(f"{key}={value}" for key, value in {"caller": caller, **more}.items())
    return int(serving.get(f"/metrics?window=30d&kind=all&{query}").json()["span_count"])


def settle(serving: Pipeline, caller: str) -> None:
    """Wait until everything sent so far is in metrics and traces: what is sent last is stored last."""
    mark = fresh("mark")
    accepted(serving.post("/spans", {"caller": caller, "name": mark, "kind": "custom"}))
    serving.until(lambda: counted(serving, caller, name=mark) == 1, "folded")
    serving.until(lambda: serving.get(f"/traces?name={mark}").json()["total"] == 1, "stored")


def llm(serving: Pipeline, caller: str) -> int:
    """Calls counted, once everything sent before is in; the marks of ``settle`` are of another kind."""
    settle(serving, caller)
    return counted_llm(serving, caller)


def counted_llm(serving: Pipeline, caller: str) -> int:
    return int(serving.get(f"/metrics?window=30d&caller={caller}").json()["span_count"])


def wait_for(serving: Pipeline, trace_id: str, spans: int = 1) -> Any:
    serving.until(lambda: serving.get(f"/traces/{trace_id}").json()["span_count"] == spans, f"{trace_id} stored")
    return serving.get(f"/traces/{trace_id}").json()


def envelope(payload: bytes | dict[str, Any], **fields: Any) -> bytes:
    """A MIST message; the payload's bytes stand in it as they are."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {"version": "1", "id": uuid.uuid4().hex, "source": "infermux", "type": "trace.span", "timestamp_ns": 1}
    text = json.dumps({**head, **fields}).encode()
    return text[:-1] + b', "payload": ' + raw + b"}"


def mist_span(**fields: Any) -> dict[str, Any]:
    start_ns = time.time_ns() - 10**9
    return {
        "trace_id": uuid.uuid4().hex,
        "span_id": uuid.uuid4().hex,
        "operation": "infer",
        "start_ns": start_ns,
        "end_ns": start_ns + 50_000_000,
        "status": "ok",
        **fields,
    }


# -- POST /spans


def test_the_documented_span_comes_back_as_the_documents_show_it(pipeline: Pipeline) -> None:
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
    accepted(pipeline.post("/spans", span))
    shown = wait_for(pipeline, trace)
    one = shown["spans"][0]
    expected = {key: value for key, value in span.items() if key != "trace_id"}
    assert {key: one[key] for key in expected} == expected
    assert one["parent_span_id"] is None
    assert "trace_id" not in one
    assert type(one["attributes"]["step"]) is int
    assert one["attributes"]["cached"] is True


def test_a_single_span_is_answered_202_accepted_1(pipeline: Pipeline) -> None:
    accepted(pipeline.post("/spans", make(caller=fresh("caller"))))


def test_an_array_is_answered_with_how_many_spans_it_held(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    accepted(pipeline.post("/spans", [make(caller=caller)] * 3), 3)
    assert llm(pipeline, caller) == 3


def test_a_gzip_body_is_unpacked(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = gzip.compress(json.dumps([make(caller=caller)] * 2).encode())
    accepted(pipeline.post("/spans", body, {"Content-Encoding": "gzip"}), 2)
    assert llm(pipeline, caller) == 2


def test_a_gzip_body_of_several_members_is_the_whole_of_them(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = json.dumps([make(caller=caller)] * 2).encode()
    packed = gzip.compress(body[:30]) + gzip.compress(body[30:])
    accepted(pipeline.post("/spans", packed, {"Content-Encoding": "gzip"}), 2)
    assert llm(pipeline, caller) == 2


def test_missing_ids_total_status_and_times_are_filled_in(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    accepted(pipeline.post("/spans", make(caller=caller, latency_ms=1240)))
    settle(pipeline, caller)
    listed = pipeline.get(f"/traces?caller={caller}&kind=llm").json()
    shown = pipeline.get(f"/traces/{listed['trace_ids'][0]}").json()
    one = shown["spans"][0]
    assert UUID_OR_HEX.fullmatch(shown["trace_id"])
    assert UUID_OR_HEX.fullmatch(one["span_id"])
    assert one["total_tokens"] == 640
    assert one["status"] == "ok"
    ended = datetime.fromisoformat(one["ended_at"])
    assert before <= ended <= datetime.now(UTC)
    assert ended - datetime.fromisoformat(one["started_at"]) == timedelta(milliseconds=1240)


def test_spans_without_trace_ids_get_a_trace_each(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    accepted(pipeline.post("/spans", [make(caller=caller)] * 4), 4)
    settle(pipeline, caller)
    assert pipeline.get(f"/traces?caller={caller}&kind=llm").json()["total"] == 4


def test_a_total_alone_is_a_token_count(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    accepted(pipeline.post("/spans", {"model": "gpt-4o", "trace_id": trace, "total_tokens": 77}))
    assert wait_for(pipeline, trace)["total_tokens"] == 77


@pytest.mark.parametrize("body", [b"", b"{", b"not json", b"[1]", b"null", b'"span"', b"5", b"{}]", b"[{},"])
def test_malformed_json_is_400(pipeline: Pipeline, body: bytes) -> None:
    refused(pipeline.post("/spans", body), 400)


BROKEN: list[tuple[dict[str, Any], str]] = [
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


def test_a_bad_span_is_400_naming_field_and_index_and_nothing_is_accepted(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    good = make(caller=caller)
    for broken, field in BROKEN:
        error = refused(pipeline.post("/spans", [good, good, {**good, **broken}, good]), 400)
        assert field in error
        assert "span 2" in error
    assert llm(pipeline, caller) == 0


def test_an_error_or_timeout_needs_neither_model_nor_tokens(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [{"status": status, "caller": caller, "error": "no answer"} for status in ("error", "timeout")]
    accepted(pipeline.post("/spans", spans), 2)
    settle(pipeline, caller)
    by_model = pipeline.get(f"/metrics/errors?caller={caller}&groupby=model").json()["by_model"]
    assert by_model["unknown"]["count"] == 2


def test_an_eval_text_is_not_a_score(pipeline: Pipeline) -> None:
    accepted(pipeline.post("/spans", make(attributes={"eval.suite": "legal", "eval.score": 1})))


def test_1000_spans_are_taken_and_1001_are_413(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    error = refused(pipeline.post("/spans", [make(caller=caller)] * 1001), 413)
    assert "1001" in error
    assert "1000" in error
    accepted(pipeline.post("/spans", [make(caller=caller)] * 1000), 1000)
    assert llm(pipeline, caller) == 1000


def test_another_content_encoding_is_415(pipeline: Pipeline) -> None:
    assert "br" in refused(pipeline.post("/spans", b"{}", {"Content-Encoding": "br"}), 415)


# -- sent twice


def test_the_same_key_and_body_twice_count_once(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    body = [make(caller=caller)] * 2
    accepted(pipeline.post("/spans", body, key), 2)
    accepted(pipeline.post("/spans", body, key), 2)
    assert llm(pipeline, caller) == 2
    assert pipeline.get(f"/traces?caller={caller}&kind=llm").json()["total"] == 2


def test_the_same_key_with_another_body_is_422(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    accepted(pipeline.post("/spans", make(caller=caller), key))
    error = refused(pipeline.post("/spans", make(caller=caller, comp_tokens=5), key), 422)
    assert "Idempotency-Key" in error
    assert llm(pipeline, caller) == 1


def test_a_refused_body_does_not_use_its_key_up(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    refused(pipeline.post("/spans", make(caller=caller, model=""), key), 400)
    accepted(pipeline.post("/spans", make(caller=caller), key))
    assert llm(pipeline, caller) == 1


def test_the_same_key_and_body_at_the_same_moment_count_once(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: pipeline.post("/spans", make(caller=caller), key), range(16)))
    for answer in answers:
        accepted(answer)
    assert llm(pipeline, caller) == 1


def test_of_different_bodies_with_one_key_at_the_same_moment_one_is_taken(pipeline: Pipeline) -> None:
    caller, key = fresh("caller"), {"Idempotency-Key": fresh("key")}
    with ThreadPoolExecutor(8) as pool:
        bodies = [make(caller=caller, comp_tokens=number) for number in range(1, 13)]
        answers = list(pool.map(lambda body: pipeline.post("/spans", body, key), bodies))
    assert sorted(answer.status for answer in answers) == [202] + [422] * 11
    assert llm(pipeline, caller) == 1


def test_a_body_without_ids_counts_as_often_as_it_is_sent(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    for _ in range(2):
        accepted(pipeline.post("/spans", make(caller=caller)))
    assert llm(pipeline, caller) == 2


def test_a_body_with_one_id_missing_counts_as_often_as_it_is_sent(pipeline: Pipeline) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    body = [make(caller=caller, trace_id=trace, span_id="1"), make(caller=caller, trace_id=trace)]
    for _ in range(2):
        accepted(pipeline.post("/spans", body), 2)
    assert llm(pipeline, caller) == 4
    assert pipeline.get(f"/traces/{trace}").json()["span_count"] == 3


def test_a_body_with_all_ids_counts_once(pipeline: Pipeline) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    body = [make(caller=caller, trace_id=trace, span_id=str(number)) for number in range(3)]
    for _ in range(3):
        accepted(pipeline.post("/spans", body), 3)
    assert llm(pipeline, caller) == 3
    assert pipeline.get(f"/traces/{trace}").json()["span_count"] == 3


def test_a_mist_message_with_ids_sent_twice_counts_once(pipeline: Pipeline) -> None:
    source = fresh("source")
    message = envelope(mist_span(attrs={"model": "m", "tokens_in": 1}), source=source)
    for _ in range(2):
        assert pipeline.post("/mist", message).status == 202
    assert llm(pipeline, source) == 1


# -- POST /mist


def test_a_mist_span_is_202_with_an_empty_body(pipeline: Pipeline) -> None:
    answer = pipeline.post("/mist", envelope(mist_span()))
    assert (answer.status, answer.body) == (202, b"")


def test_a_health_ping_is_400(pipeline: Pipeline) -> None:
    error = refused(pipeline.post("/mist", envelope(b'{"from":"x"}', type="health.ping")), 400)
    assert error == "expected type trace.span, got health.ping"


def test_what_is_not_json_is_400(pipeline: Pipeline) -> None:
    assert refused(pipeline.post("/mist", b"not json"), 400).startswith("invalid message: ")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_than_post_is_405(pipeline: Pipeline, method: str) -> None:
    assert refused(http(method, pipeline.url + "/mist"), 405) == "method not allowed"


@pytest.mark.parametrize("payload", [b"[]", b'"x"', b"5", b'{"start_ns":"x"}', b'{"attrs":[]}'])
def test_a_payload_that_is_no_span_is_400(pipeline: Pipeline, payload: bytes) -> None:
    assert refused(pipeline.post("/mist", envelope(payload)), 400).startswith("invalid span payload: ")


def test_the_checksum_is_that_of_the_raw_payload_bytes(pipeline: Pipeline) -> None:
    raw = b'{ "operation" :  "infer",\n "status":"ok" }'
    assert pipeline.post("/mist", envelope(raw, checksum=zlib.crc32(raw))).status == 202
    assert pipeline.post("/mist", envelope(raw, checksum=0)).status == 202
    error = refused(pipeline.post("/mist", envelope(raw, checksum=zlib.crc32(raw) ^ 1)), 400)
    assert "checksum" in error


@pytest.mark.parametrize("version", ["2", "0", "x"])
def test_another_version_is_400(pipeline: Pipeline, version: str) -> None:
    assert "version" in refused(pipeline.post("/mist", envelope(mist_span(), version=version)), 400)


def test_missing_id_and_source_are_tolerated(pipeline: Pipeline) -> None:
    body = json.dumps({"type": "trace.span", "payload": mist_span()}).encode()
    assert pipeline.post("/mist", body).status == 202


def test_a_mist_span_is_in_stats_and_metrics(pipeline: Pipeline) -> None:
    source, operation, trace = fresh("source"), fresh("operation"), uuid.uuid4().hex
    attrs = {"model": "gpt-4o", "provider": "openai", "tokens_in": 100, "tokens_out": 20, "cost_usd": 0.25, "z": [1]}
    span = mist_span(trace_id=trace, operation=operation, attrs=attrs)
    assert pipeline.post("/mist", envelope(span, source=source)).status == 202
    wait_for(pipeline, trace)
    pipeline.until(lambda: operation in pipeline.get("/stats").json()["by_operation"], "in stats")
    assert pipeline.get("/stats").json()["by_operation"][operation] == {"count": 1, "errors": 0}
    shown = pipeline.get(f"/metrics?caller={source}").json()
    assert (shown["span_count"], shown["cost"]["total_usd"]) == (1, 0.25)
    assert (shown["tokens"]["prompt_total"], shown["tokens"]["completion_total"]) == (100, 20)
    assert shown["latency"]["p50_ms"] == 50
    back = pipeline.get(f"/traces/{trace}?format=mist").json()
    assert back["trace_id"] == trace
    assert back["spans"][0] == {**span, "attrs": {**attrs, "caller": source}}


def test_tokens_that_are_no_numbers_are_not_added(pipeline: Pipeline) -> None:
    source = fresh("source")
    span = mist_span(attrs={"model": "m", "tokens_in": "5", "tokens_out": True, "cost_usd": "9"})
    assert pipeline.post("/mist", envelope(span, source=source)).status == 202
    settle(pipeline, source)
    shown = pipeline.get(f"/metrics?caller={source}").json()
    assert shown["span_count"] == 1
    assert shown["tokens"]["total"] == 0


def test_the_score_of_matchspec_is_a_quality_score(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    span = mist_span(operation="matchspec.task", attrs={"caller": caller, "suite": "legal", "score": 0.75})
    assert pipeline.post("/mist", envelope(span, source="matchspec")).status == 202
    settle(pipeline, caller)
    shown = pipeline.get(f"/metrics/quality?caller={caller}").json()
    assert (shown["score_avg"], shown["scored_span_count"]) == (0.75, 1)


def test_an_id_that_could_forge_a_log_line_is_replaced(pipeline: Pipeline) -> None:
    source = fresh("source")
    span = mist_span(trace_id="a\nERROR forged", attrs={"model": "m"})
    assert pipeline.post("/mist", envelope(span, source=source)).status == 202
    settle(pipeline, source)
    (trace,) = pipeline.get(f"/traces?caller={source}&kind=llm").json()["trace_ids"]
    assert UUID_OR_HEX.fullmatch(trace)


# -- GET /metrics


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> str:
    """The caller of ten calls: 8 ok, an error, a timeout; two models; five scored."""
    caller = fresh("traffic")
    spans = []
    for number in range(10):
        attributes = {"eval.score": number / 10} if number < 5 else {}
        spans.append(
            make(
                caller=caller,
                model="gpt-4o" if number < 6 else "gpt-4o-mini",
                provider="openai" if number % 2 else "",
                prompt_tokens=100,
                comp_tokens=10 * number,
                cost_usd=0.001 * (number + 1),
                latency_ms=(number + 1) * 100,
                status={8: "error", 9: "timeout"}.get(number, "ok"),
                attributes=attributes,
            )
        )
    accepted(pipeline.post("/spans", spans), 10)
    settle(pipeline, caller)
    return caller


def test_the_metrics_have_the_documented_shape_and_values(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics?caller={traffic}").json()
    latencies = np.arange(1, 11) * 100
    assert shown["window"] == "1h"
    assert shown["span_count"] == 10
    cost = shown["cost"]
    assert cost["total_usd"] == 0.055
    assert cost["per_call_usd"] == pytest.approx(0.0055)
    assert cost["by_model"] == {"gpt-4o": 0.021, "gpt-4o-mini": 0.034}
    tokens = shown["tokens"]
    assert (tokens["prompt_total"], tokens["completion_total"], tokens["total"]) == (1000, 450, 1450)
    for name, q in (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert shown["latency"][name] == pytest.approx(np.quantile(latencies, q))
    assert (shown["errors"]["rate"], shown["errors"]["count"]) == (0.2, 2)
    quality = shown["quality"]
    assert quality["score_avg"] == pytest.approx(0.2)
    assert quality["score_p10"] == pytest.approx(0.04)
    assert quality["scored_span_count"] == 5


@pytest.mark.parametrize("group", GROUP_NAMES)
def test_a_group_alone_says_what_it_says_among_all(pipeline: Pipeline, traffic: str, group: str) -> None:
    whole = pipeline.get(f"/metrics?window=24h&caller={traffic}").json()
    alone = pipeline.get(f"/metrics/{group}?window=24h&caller={traffic}").json()
    assert alone["window"] == "24h"
    assert alone["span_count"] == 10
    assert {key: alone[key] for key in whole[group]} == whole[group]


@pytest.mark.parametrize("window", ["1h", "6h", "24h", "7d", "30d", "2h30m", "90m", "5400s", "1h0m30.5s", "1d12h"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/latency"])
def test_a_window_is_taken_and_shown_as_written(pipeline: Pipeline, traffic: str, path: str, window: str) -> None:
    shown = pipeline.get(f"{path}?caller={traffic}&window={window}").json()
    assert shown["window"] == window
    assert shown["span_count"] == 10


@pytest.mark.parametrize("window", ["", "abc", "5", "-1h", "1x", "1h2", "h", "1e3s", "0s", "%00", "1h%20", "NaNs"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/cost"])
def test_a_bad_window_is_400(pipeline: Pipeline, path: str, window: str) -> None:
    assert "window" in refused(pipeline.get(f"{path}?window={window}"), 400)


@pytest.mark.parametrize("window", ["1000000h", "99999d"])
def test_a_window_longer_than_what_is_kept_says_from_when(pipeline: Pipeline, traffic: str, window: str) -> None:
    shown = pipeline.get(f"/metrics?caller={traffic}&window={window}").json()
    assert shown["span_count"] == 10
    assert INSTANT.fullmatch(shown["since"])


def test_a_window_holds_what_ended_inside_it(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    ends = [ago(minutes=5), ago(hours=3), ago(hours=12), ago(days=3), ago(days=20)]
    accepted(pipeline.post("/spans", [make(caller=caller, ended_at=end) for end in ends]), 5)
    settle(pipeline, caller)
    counts = [
        pipeline.get(f"/metrics?caller={caller}&window={window}").json()["span_count"]
        for window in ("1h", "6h", "24h", "7d", "30d")
    ]
    assert counts == [1, 2, 3, 4, 5]


def test_grouped_by_model_the_percentiles_are_per_model(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics/latency?caller={traffic}&groupby=model").json()
    assert sorted(shown["by_model"]) == ["gpt-4o", "gpt-4o-mini"]
    assert shown["by_model"]["gpt-4o"]["p50_ms"] == 350
    assert shown["by_model"]["gpt-4o-mini"]["p50_ms"] == 850
    assert set(shown["by_model"]["gpt-4o"]) >= {"p50_ms", "p95_ms", "p99_ms"}
    assert "p50_ms" not in shown


def test_grouped_by_caller_or_provider_the_parts_sum_to_the_whole(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics/cost?caller={traffic}&groupby=caller").json()
    assert shown["by_caller"] == {traffic: 0.055}
    shown = pipeline.get(f"/metrics/cost?caller={traffic}&groupby=provider").json()
    assert shown["by_provider"] == {"openai": 0.03, "unknown": 0.025}
    shown = pipeline.get(f"/metrics/tokens?caller={traffic}&groupby=provider").json()
    assert {name: part["total"] for name, part in shown["by_provider"].items()} == {"openai": 750, "unknown": 700}
    shown = pipeline.get(f"/metrics/errors?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o-mini"]["count"] == 2
    shown = pipeline.get(f"/metrics/quality?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o"]["scored_span_count"] == 5
    shown = pipeline.get(f"/metrics?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o"]["cost"]["total_usd"] == 0.021


@pytest.mark.parametrize("name", ["banana", "cost%20", "../stats", "COST"])
def test_an_unknown_metric_is_404(pipeline: Pipeline, name: str) -> None:
    refused(pipeline.get(f"/metrics/{name}"), 404)


@pytest.mark.parametrize("query", ["groupby=", "groupby=attr.", "kind=banana", "windw=1h", "window=1h&window=2h"])
def test_a_bad_parameter_is_400(pipeline: Pipeline, query: str) -> None:
    refused(pipeline.get(f"/metrics?{query}"), 400)


def test_without_spans_averages_are_null_and_counts_are_zero(pipeline: Pipeline) -> None:
    shown = pipeline.get(f"/metrics?caller={fresh('absent')}").json()
    assert shown["span_count"] == 0
    assert (shown["cost"]["total_usd"], shown["cost"]["per_call_usd"], shown["cost"]["by_model"]) == (0, None, {})
    assert [shown["latency"][name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [None] * 3
    assert (shown["errors"]["rate"], shown["errors"]["count"]) == (None, 0)
    assert (shown["quality"]["score_avg"], shown["quality"]["scored_span_count"]) == (None, 0)


def test_latency_zero_is_unset_and_left_out(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [make(caller=caller, latency_ms=ms) for ms in (0, 0, 0, 700)]
    accepted(pipeline.post("/spans", spans), 4)
    settle(pipeline, caller)
    assert pipeline.get(f"/metrics/latency?caller={caller}").json()["p50_ms"] == 700


# -- GET /traces


def test_a_page_is_twenty_and_the_offset_gives_the_rest(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [make(caller=caller, trace_id=f"{caller}-{n:02d}", started_at=ago(minutes=60 - n)) for n in range(25)]
    accepted(pipeline.post("/spans", spans), 25)
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 25, "stored")
    newest_first = [f"{caller}-{n:02d}" for n in reversed(range(25))]
    first = pipeline.get(f"/traces?caller={caller}").json()
    assert (first["count"], first["total"], first["limit"], first["offset"]) == (20, 25, 20, 0)
    assert first["trace_ids"] == [trace["trace_id"] for trace in first["traces"]] == newest_first[:20]
    rest = pipeline.get(f"/traces?caller={caller}&offset=20").json()
    assert (rest["count"], rest["total"], rest["offset"]) == (5, 25, 20)
    assert rest["trace_ids"] == newest_first[20:]
    few = pipeline.get(f"/traces?caller={caller}&limit=3&offset=1").json()
    assert few["trace_ids"] == newest_first[1:4]
    beyond = pipeline.get(f"/traces?caller={caller}&offset=25").json()
    assert (beyond["traces"], beyond["trace_ids"], beyond["count"], beyond["total"]) == ([], [], 0, 25)


def test_a_page_is_at_most_200(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    accepted(pipeline.post("/spans", [make(caller=caller)] * 205), 205)
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 205, "stored")
    page = pipeline.get(f"/traces?caller={caller}&limit=500").json()
    assert (page["count"], page["limit"], page["total"]) == (200, 200, 205)


@pytest.mark.parametrize("query", ["limit=-1", "limit=abc", "limit=1.5", "limit=", "offset=-1", "offset=x", "status=x"])
def test_a_bad_parameter_of_traces_is_400_naming_it(pipeline: Pipeline, query: str) -> None:
    assert query.partition("=")[0] in refused(pipeline.get(f"/traces?{query}"), 400)


def test_filters_combine_on_one_span(pipeline: Pipeline) -> None:
    mine = fresh("mine")
    chat, batch, big, small = (fresh(name) for name in ("chat", "batch", "big", "small"))
    spans = [
        make(trace_id=f"{mine}-a", span_id="1", caller=chat, model=big, status="ok"),
        make(trace_id=f"{mine}-a", span_id="2", caller=batch, model=small, status="error"),
        make(trace_id=f"{mine}-b", span_id="1", caller=chat, model=small, status="timeout"),
    ]
    accepted(pipeline.post("/spans", spans), 3)
    wait_for(pipeline, f"{mine}-b")

    def found(**filters: str) -> set[str]:
        query = "&".join(f"{key}={value}" for key, value in filters.items())
        page = pipeline.get(f"/traces?{query}").json()
        assert page["total"] == page["count"] == len(page["traces"])
        return {trace.removeprefix(mine + "-") for trace in page["trace_ids"]}

    assert found(model=big) == {"a"}
    assert found(model=small) == {"a", "b"}
    assert found(caller=chat) == {"a", "b"}
    assert found(caller=batch) == {"a"}
    assert found(caller=chat, status="ok") == {"a"}
    assert found(caller=chat, status="error") == set()
    assert found(model=big, caller=batch) == set()
    assert found(model=small, caller=batch, status="error") == {"a"}
    assert found(model=small, status="timeout") == {"b"}
    assert found(model=big, caller=chat, status="timeout") == set()


def test_a_filtered_trace_is_shown_whole(pipeline: Pipeline) -> None:
    trace, caller = fresh("trace"), fresh("caller")
    spans = [
        make(
            trace_id=trace, span_id="1", name="root", cost_usd=0.5, started_at=ago(minutes=9), ended_at=ago(minutes=8)
        ),
        make(
            trace_id=trace,
            span_id="2",
            parent_span_id="1",
            caller=caller,
            cost_usd=0.25,
            started_at=ago(minutes=7),
            ended_at=ago(minutes=6),
            status="timeout",
        ),
    ]
    accepted(pipeline.post("/spans", spans), 2)
    wait_for(pipeline, trace, 2)
    (row,) = pipeline.get(f"/traces?caller={caller}").json()["traces"]
    assert row == {
        "trace_id": trace,
        "name": "root",
        "started_at": spans[0]["started_at"],
        "ended_at": spans[1]["ended_at"],
        "total_cost_usd": 0.75,
        "total_tokens": 1280,
        "span_count": 2,
        "status": "timeout",
    }


def test_recent_is_100_newest_added_first_in_mist_form(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    accepted(pipeline.post("/spans", [make(caller=caller, name=f"n{number}") for number in range(150)]), 150)
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 150, "stored")
    shown = pipeline.get("/traces/recent").json()
    assert shown["count"] == len(shown["spans"]) == 100
    assert [span["operation"] for span in shown["spans"]] == [f"n{number}" for number in range(149, 49, -1)]
    span = shown["spans"][0]
    assert {"trace_id", "span_id", "operation", "start_ns", "end_ns", "status", "attrs"} == set(span)
    assert type(span["start_ns"]) is int
    assert span["attrs"]["tokens_in"] == 512
    three = pipeline.get("/traces/recent?limit=3").json()
    assert three["count"] == 3
    assert [span["operation"] for span in three["spans"]] == ["n149", "n148", "n147"]
    for limit in ("0", "-1", "abc", "", "1.5", "%00", "9" * 30):
        assert pipeline.get(f"/traces/recent?limit={limit}").json()["count"] >= 100, limit


def test_recent_wins_over_a_trace_of_that_name(pipeline: Pipeline) -> None:
    accepted(pipeline.post("/spans", make(trace_id="recent")))
    assert "spans" in pipeline.get("/traces/recent").json()


def test_a_trace_sums_its_spans_and_orders_them_by_start(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    start = datetime.now(UTC) - timedelta(minutes=30)
    times = [iso(start + timedelta(seconds=seconds)) for seconds in range(6)]
    spans = [
        make(
            trace_id=trace, span_id="late", parent_span_id="root", cost_usd=0.2, started_at=times[2], ended_at=times[3]
        ),
        make(trace_id=trace, span_id="root", name="answer", cost_usd=0.1, started_at=times[0], ended_at=times[5]),
        make(
            trace_id=trace, span_id="mid", parent_span_id="root", cost_usd=0.3, started_at=times[1], ended_at=times[4]
        ),
    ]
    for span in spans:
        accepted(pipeline.post("/spans", span))
    shown = wait_for(pipeline, trace, 3)
    assert {key: value for key, value in shown.items() if key != "spans"} == {
        "trace_id": trace,
        "name": "answer",
        "started_at": times[0],
        "ended_at": times[5],
        "total_cost_usd": 0.6,
        "total_tokens": 1920,
        "span_count": 3,
    }
    assert [span["span_id"] for span in shown["spans"]] == ["root", "mid", "late"]
    assert [span["parent_span_id"] for span in shown["spans"]] == [None, "root", "root"]
    for span in shown["spans"]:
        assert INSTANT.fullmatch(span["started_at"])
        assert INSTANT.fullmatch(span["ended_at"])


def test_format_mist_shows_nanoseconds(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    accepted(pipeline.post("/spans", make(trace_id=trace, span_id="1", started_at="2026-11-20T14:23:01.441Z")))
    wait_for(pipeline, trace)
    shown = pipeline.get(f"/traces/{trace}?format=mist").json()
    assert set(shown) == {"trace_id", "spans"}
    assert shown["spans"][0]["start_ns"] == 1_795_184_581_441_000_000
    assert shown["spans"][0]["span_id"] == "1"
    assert "parent_id" not in shown["spans"][0]
    assert "format" in refused(pipeline.get(f"/traces/{trace}?format=xml"), 400)


@pytest.mark.parametrize("query", ["", "?format=mist"])
def test_an_unknown_trace_is_404(pipeline: Pipeline, query: str) -> None:
    assert refused(pipeline.get(f"/traces/{fresh('absent')}{query}"), 404) == "trace not found"


def test_a_trailing_slash_is_tolerated(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    accepted(pipeline.post("/spans", make(trace_id=trace)))
    wait_for(pipeline, trace)
    assert pipeline.get(f"/traces/{trace}/").json() == pipeline.get(f"/traces/{trace}").json()
    assert refused(pipeline.get("/traces/"), 400) == "trace ID required"


@pytest.mark.parametrize("trace", ["a b", "a/b", "a?b", "a%b", "a'b", 'a"b', "a;--", "..", "a+b", "{a}"])
def test_a_trace_is_found_by_every_printable_id(pipeline: Pipeline, trace: str) -> None:
    trace = fresh("odd") + trace
    accepted(pipeline.post("/spans", make(trace_id=trace)))
    quoted = "".join(f"%{ord(letter):02X}" for letter in trace)
    assert wait_for(pipeline, quoted)["trace_id"] == trace


# -- /stats and the ring


def post_mist(serving: Pipeline, operation: str = "infer", ms: int = 50, status: str = "ok", **attrs: Any) -> None:
    start_ns = time.time_ns() - 10**9
    span = mist_span(
        operation=operation, start_ns=start_ns, end_ns=start_ns + ms * 1_000_000, status=status, attrs=attrs
    )
    assert serving.post("/mist", envelope(span)).status == 202


def stats_of(serving: Pipeline, spans: int) -> Any:
    serving.until(lambda: serving.get("/stats").json()["total_spans"] >= spans, "counted")
    return serving.get("/stats").json()


def test_stats_begin_at_zero_and_one_span_of_50_ms_is_37_5_and_49_75(start: Callable[..., Pipeline]) -> None:
    serving = start()
    zero = {
        "total_spans": 0,
        "error_count": 0,
        "error_rate": 0,
        "latency_p50_ms": 0,
        "latency_p99_ms": 0,
        "latency_avg_ms": 0,
        "total_tokens_in": 0,
        "total_tokens_out": 0,
        "total_cost_usd": 0,
    }
    assert serving.get("/stats").json() == zero
    empty = serving.get("/traces").json()
    assert (empty["trace_ids"], empty["count"], empty["total"], empty["traces"]) == ([], 0, 0, [])
    assert serving.get("/traces/recent").json() == {"spans": [], "count": 0}
    refused(serving.get("/traces/absent"), 404)
    post_mist(serving, tokens_in=100)
    assert stats_of(serving, 1) == {
        **zero,
        "total_spans": 1,
        "latency_p50_ms": 37.5,
        "latency_p99_ms": 49.75,
        "latency_avg_ms": 50,
        "total_tokens_in": 100,
        "by_operation": {"infer": {"count": 1, "errors": 0}},
    }


def test_stats_of_ten_spans_are_interpolated_in_the_documented_buckets(start: Callable[..., Pipeline]) -> None:
    serving = start()
    for ms in range(10, 101, 10):
        post_mist(serving, ms=ms)
    shown = stats_of(serving, 10)
    assert shown["latency_p50_ms"] == pytest.approx(50)
    assert shown["latency_p99_ms"] == pytest.approx(99)
    assert shown["latency_avg_ms"] == pytest.approx(55)


def test_stats_count_errors_by_operation_and_a_timeout_is_no_error(start: Callable[..., Pipeline]) -> None:
    serving = start()
    post_mist(serving, "infer", tokens_in=10, tokens_out=1, cost_usd=0.5)
    post_mist(serving, "infer", status="error", tokens_in=10.9)
    post_mist(serving, "eval", tokens_in="10")
    post_mist(serving, "late", status="timeout", ms=0)
    shown = stats_of(serving, 4)
    assert shown["by_operation"] == {
        "infer": {"count": 2, "errors": 1},
        "eval": {"count": 1, "errors": 0},
        "late": {"count": 1, "errors": 0},
    }
    assert (shown["total_spans"], shown["error_count"], shown["error_rate"]) == (4, 1, 0.25)
    assert (shown["total_tokens_in"], shown["total_tokens_out"], shown["total_cost_usd"]) == (20, 1, 0.5)
    assert shown["latency_avg_ms"] == pytest.approx(37.5)


def test_the_ring_keeps_the_newest_five_and_stats_never_fall(start: Callable[..., Pipeline]) -> None:
    serving = start("--max-spans", "5")
    seen = 0
    for number in range(10):
        accepted(serving.post("/spans", make(trace_id=f"t{number}", span_id="1", name=f"n{number}")))
        total = serving.get("/stats").json()["total_spans"]
        assert total >= seen
        seen = total
    assert stats_of(serving, 10)["total_spans"] == 10
    wait_for(serving, "t9")
    recent = serving.get("/traces/recent").json()
    assert recent["count"] == 5
    assert [span["trace_id"] for span in recent["spans"]] == ["t9", "t8", "t7", "t6", "t5"]
    assert serving.get("/traces/recent?limit=100").json()["count"] == 5
    assert serving.get("/traces").json()["total"] == 5
    assert serving.get("/traces").json()["trace_ids"] == ["t9", "t8", "t7", "t6", "t5"]
    for number in range(5):
        refused(serving.get(f"/traces/t{number}"), 404)
    for number in range(5, 10):
        assert serving.get(f"/traces/t{number}").json()["span_count"] == 1
    assert serving.get("/metrics").json()["span_count"] == 10
    assert serving.stop() == 0
    serving.start()
    assert serving.get("/traces").json()["trace_ids"] == ["t9", "t8", "t7", "t6", "t5"]
    assert serving.get("/stats").json()["total_spans"] == 10


# -- health


def test_health_has_the_six_keys(pipeline: Pipeline) -> None:
    post_mist(pipeline)
    stats_of(pipeline, 1)
    answer = pipeline.get("/health")
    shown = answer.json()
    assert answer.status == 200
    assert set(shown) >= {"status", "version", "uptime_s", "span_count", "transport", "queue_depth"}
    assert shown["status"] == "ok"
    assert type(shown["uptime_s"]) is int
    assert shown["span_count"] > 0
    assert type(shown["queue_depth"]) is int


def test_healthz_and_readyz_say_ok(pipeline: Pipeline) -> None:
    for path in ("/healthz", "/readyz"):
        answer = pipeline.get(path)
        assert (answer.status, answer.json()["status"]) == (200, "ok")


def test_the_internal_metrics_are_prometheus_text(pipeline: Pipeline) -> None:
    accepted(pipeline.post("/spans", make()))
    refused(pipeline.post("/spans", b"no"), 400)
    answer = pipeline.get("/internal/metrics")
    assert answer.status == 200
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    for family in ("tokentrace_ingest_spans", "tokentrace_ingest_rejected"):
        assert all(sample.labels["way"] == sample.labels["source"] for sample in families[family].samples)
        assert "way is deprecated" in families[family].documentation
    taken = {sample.labels["source"]: sample.value for sample in families["tokentrace_ingest_spans"].samples}
    refusals = {sample.labels["source"]: sample.value for sample in families["tokentrace_ingest_rejected"].samples}
    assert taken["spans"] >= 1
    assert refusals["spans"] >= 1
    assert all(family.documentation for family in families.values())
    assert {"tokentrace_aggregator_spans", "tokentrace_api_queue_depth"} <= set(families)


# -- errors, tokens


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
        ("GET", "/spans", 405),
        ("DELETE", "/spans", 405),
        ("POST", "/metrics", 405),
        ("POST", "/metrics/cost", 405),
        ("PUT", "/traces", 405),
        ("POST", "/traces/recent", 405),
        ("DELETE", "/traces/x", 404),
        ("POST", "/stats", 405),
        ("POST", "/health", 405),
        ("POST", "/healthz", 405),
        ("GET", "/metrics?window=x", 400),
        ("GET", "/metrics/nothing", 404),
        ("GET", "/traces?limit=x", 400),
        ("GET", "/stats?limit=x", 400),
    ],
)
def test_every_error_is_an_envelope(pipeline: Pipeline, method: str, path: str, status: int) -> None:
    answer = http(method, pipeline.url + path, b"{}" if method in ("POST", "PUT") else None)
    refused(answer, status)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["content-type"].startswith("application/json")


def test_a_token_is_asked_of_everything_but_health_checks_and_mist(start: Callable[..., Pipeline]) -> None:
    serving = start(env={"TOKENTRACE_AUTH_TOKEN": "s3cret-token"})
    right = {"Authorization": "Bearer s3cret-token"}
    for wrong in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret-token"},
        {"Authorization": "Basic s3cret-token"},
        {"Authorization": "Bearer s3cret-token2"},
        {"Authorization": "Bearer "},
    ):
        for path in ("/metrics", "/metrics/cost", "/traces", "/traces/x", "/stats", "/health", "/nowhere"):
            error = refused(http("GET", serving.url + path, headers=wrong), 401)
            assert "s3cret-token" not in error
        refused(serving.post("/spans", make(), wrong), 401)
    for path in ("/metrics", "/metrics/cost", "/traces", "/stats", "/health"):
        assert http("GET", serving.url + path, headers=right).status == 200
    accepted(serving.post("/spans", make(), right))
    assert serving.get("/healthz").status == 200
    assert serving.get("/readyz").status == 200
    assert serving.post("/mist", envelope(mist_span())).status == 202

    def stored() -> bool:
        return bool(http("GET", serving.url + "/stats", headers=right).json()["total_spans"] == 2)

    serving.until(stored, "the accepted two counted, and none of the refused")


# -- stopping


def test_sigterm_ends_with_0_and_keeps_what_was_acknowledged(start: Callable[..., Pipeline]) -> None:
    serving = start()
    for number in range(50):
        accepted(serving.post("/spans", make(caller="steady", trace_id=f"t{number}", span_id="1")))
    assert serving.stop() == 0
    serving.start()
    settle(serving, "steady")
    assert counted_llm(serving, "steady") == 50
    page = serving.get("/traces?caller=steady&kind=llm&limit=200").json()
    assert sorted(page["trace_ids"]) == sorted(f"t{number}" for number in range(50))
    assert serving.get("/stats").json()["total_spans"] == 51


def test_ready_means_that_everything_acknowledged_before_is_shown(start: Callable[..., Pipeline]) -> None:
    serving = start()
    for number in range(20):
        accepted(serving.post("/spans", make(trace_id=f"t{number}", span_id="1")))
    serving.kill()
    serving.start()
    assert serving.get("/traces").json()["total"] == 20
    assert serving.get("/stats").json()["total_spans"] == 20
    assert serving.get("/metrics").json()["span_count"] == 20


def test_sigterm_amid_requests_loses_nothing_acknowledged(start: Callable[..., Pipeline]) -> None:
    serving = start()
    assert serving.process is not None
    acknowledged: list[str] = []

    def send(worker: int) -> None:
        for number in range(400):
            trace = f"w{worker}-{number}"
            try:
                answer = serving.post("/spans", make(caller="busy", trace_id=trace, span_id="1"))
            except OSError:
                return
            if answer.status == 202:
                acknowledged.append(trace)

    with ThreadPoolExecutor(4) as pool:
        for worker in range(4):
            pool.submit(send, worker)
        while len(acknowledged) < 50:
            time.sleep(0.005)
        os.kill(serving.process.pid, signal.SIGTERM)
    assert serving.process.wait(40) == 0
    serving.start()
    settle(serving, "busy")
    stored: set[str] = set()
    for offset in range(0, 1600, 200):
        page = serving.get(f"/traces?caller=busy&kind=llm&limit=200&offset={offset}").json()
        stored.update(page["trace_ids"])
    assert set(acknowledged) - stored == set()
    assert counted_llm(serving, "busy") == len(stored)


# -- the command


def command(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = plain_environment()
    return subprocess.run(
        [sys.executable, "-m", "tokentrace_standalone", *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_no_command_or_help_prints_the_usage(tmp_path: Path, words: list[str]) -> None:
    ended = command(tmp_path, *words)
    assert ended.returncode == 0
    for name in ("usage", "serve", "version", "help"):
        assert name in ended.stdout


def test_an_unknown_command_exits_1_with_the_usage(tmp_path: Path) -> None:
    ended = command(tmp_path, "banana")
    assert ended.returncode == 1
    assert "banana" in ended.stderr
    assert "usage" in ended.stderr


def test_version_is_one_line_and_the_same_as_in_health(tmp_path: Path, pipeline: Pipeline) -> None:
    ended = command(tmp_path, "version")
    assert ended.returncode == 0
    assert ended.stdout == f"tokentrace {pipeline.get('/health').json()['version']}\n"


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = command(tmp_path, "serve", "--addr", f"127.0.0.1:{port}", "--also", "none")
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_serve_on_the_same_data_is_a_clear_error(tmp_path: Path, pipeline: Pipeline) -> None:
    ended = command(tmp_path, "serve", "--addr", "127.0.0.1:0", "--also", "none", "--data-dir", str(pipeline.data))
    assert ended.returncode == 1
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_configuration_exits_2_naming_the_key(tmp_path: Path) -> None:
    file = tmp_path / "tokentrace.yml"
    file.write_text("http_server:\n  max_batch_size: many\n")
    ended = command(tmp_path, "serve", "--addr", "127.0.0.1:0", "--also", "none")
    assert ended.returncode == 2
    assert "http_server.max_batch_size" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("words", [["--config", "nowhere.yml"], ["--addr", "127.0.0.1:http"], ["--addr", "x:99999"]])
def test_a_flag_that_cannot_be_meant_exits_2(tmp_path: Path, words: list[str]) -> None:
    ended = command(tmp_path, "serve", "--also", "none", *words)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
