"""OTLP over HTTP through a running ``serve``: both encodings, answers, limits, repetitions and authentication."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import json
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit import otlp
from kit.examples import examples
from kit.json_spans import fresh
from kit.otlp import ENCODINGS, LANGFUSE, LOGS, METRICS, PATHS, TRACES, TYPES
from kit.pipeline import Answer, Pipeline
from kit.pipeline import http as http_request

MIB = 1024 * 1024
COST_USD = 0.00256
TOKEN = "sk-tokentrace"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("otlp"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Start a ``serve`` with a token and with small limits for OTLP."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "tokentrace.yml").write_text("otlp: {max_body_bytes: 1048576, max_batch_size: 8192}\n")
    serving = Pipeline(directory, env={"TOKENTRACE_AUTH_TOKEN": TOKEN})
    serving.start()
    yield serving
    assert serving.stop() == 0


def overview(pipeline: Pipeline, service: str) -> dict[str, Any]:
    found: dict[str, Any] = pipeline.get(f"/metrics?window=1h&caller={service}").json()
    return found


def spans_of(pipeline: Pipeline, trace_id: str) -> list[dict[str, Any]]:
    """Return the stored spans of a trace, once there are some."""
    pipeline.until(lambda: pipeline.get(f"/traces/{trace_id}").status == 200, "stored")
    found: list[dict[str, Any]] = pipeline.get(f"/traces/{trace_id}").json()["spans"]
    return found


def until_counted(pipeline: Pipeline, service: str, calls: int) -> dict[str, Any]:
    """Wait until *calls* calls of *service* are counted, and return the overview."""
    pipeline.until(lambda: overview(pipeline, service)["span_count"] >= calls, f"{calls} calls of {service}")
    # A call that is counted too often would come in the same or in a later message.
    last = fresh("last")
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([otlp.call()], last)), "protobuf")
    pipeline.until(lambda: overview(pipeline, last)["span_count"] == 1, "the last call")
    found = overview(pipeline, service)
    assert found["span_count"] == calls
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", [TRACES, LANGFUSE])
def test_a_call_is_stored_priced_and_shown(pipeline: Pipeline, encoding: str, path: str) -> None:
    service, span = fresh("shop"), otlp.call()
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([span], service), encoding, path), encoding, path)
    assert until_counted(pipeline, service, 1)["cost"]["total_usd"] == COST_USD
    [stored] = spans_of(pipeline, span["traceId"])
    shown = {key: stored[key] for key in ("model", "provider", "caller", "prompt_tokens", "comp_tokens", "scope")}
    assert shown == {
        "model": "gpt-4o",
        "provider": "openai",
        "caller": service,
        "prompt_tokens": 512,
        "comp_tokens": 128,
        "scope": "test",
    }
    receipt = pipeline.get(f"/traces/{span['traceId']}/spans/{span['spanId']}/receipt").json()
    assert receipt["cost_usd"] == str(COST_USD)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", PATHS)
def test_an_empty_request_is_a_200_with_an_empty_answer(pipeline: Pipeline, encoding: str, path: str) -> None:
    otlp.assert_stored(otlp.post(pipeline, {}, encoding, path), encoding, path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_parameters_of_the_content_type_and_the_query_are_ignored(pipeline: Pipeline, encoding: str) -> None:
    headers = {"Content-Type": f"{TYPES[encoding].upper()}; charset=utf-8"}
    body = otlp.encoded(otlp.traces([otlp.call()]), encoding)
    otlp.assert_stored(otlp.post(pipeline, body, encoding, f"{TRACES}?a=1", headers), encoding)


def chunked(pipeline: Pipeline, body: bytes, headers: dict[str, str]) -> Answer:
    """Post *body* without a Content-Length."""
    connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", TRACES, iter([body[:10], body[10:]]), headers, encode_chunked=True)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_may_be_chunked_and_compressed_and_counts_once(pipeline: Pipeline, encoding: str) -> None:
    service = fresh("shop")
    body = otlp.encoded(otlp.traces([otlp.call(), otlp.call()], service), encoding)
    for packed, coding in ((body, "identity"), (gzip.compress(body), "gzip"), (zlib.compress(body), "deflate")):
        otlp.assert_stored(otlp.post(pipeline, packed, encoding, headers={"Content-Encoding": coding}), encoding)
        headers = {"Content-Type": TYPES[encoding], "Content-Encoding": coding, "Transfer-Encoding": "chunked"}
        otlp.assert_stored(chunked(pipeline, packed, headers), encoding)
    assert until_counted(pipeline, service, 2)["cost"]["total_usd"] == 2 * COST_USD


def test_spans_without_ids_beside_others_get_ids_and_count_once(pipeline: Pipeline) -> None:
    service = fresh("shop")
    body = otlp.encoded(otlp.traces([otlp.call(), otlp.call(traceId="", spanId="")], service), "json")
    for _ in range(2):
        otlp.assert_stored(otlp.post(pipeline, body, "json"), "json")
    until_counted(pipeline, service, 2)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_8192_spans_are_taken_in_one_request(pipeline: Pipeline, encoding: str) -> None:
    service, trace = fresh("shop"), uuid.uuid4().hex
    spans = [otlp.call(traceId=trace, spanId=f"{number + 1:016x}", attrs={"n": number}) for number in range(8192)]
    body = gzip.compress(otlp.encoded(otlp.traces(spans, service), encoding), 1)
    otlp.assert_stored(otlp.post(pipeline, body, encoding, headers={"Content-Encoding": "gzip"}), encoding)
    assert until_counted(pipeline, service, 8192)["tokens"]["total"] == 8192 * 640


def test_other_requests_are_answered_while_a_large_one_is_worked_on(pipeline: Pipeline) -> None:
    service = fresh("shop")
    body = otlp.encoded(otlp.traces([otlp.call(attrs={"text": "words " * 300}) for _ in range(4000)], service), "json")
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(otlp.post, pipeline, body, "json")
        while not large.done():
            assert pipeline.get("/healthz").status == 200
            answered += 1
        otlp.assert_stored(large.result(), "json")
    assert answered > 20
    until_counted(pipeline, service, 4000)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_request_of_another_signal_is_a_400(pipeline: Pipeline, encoding: str) -> None:
    log_records = otlp.encoded(otlp.logs([otlp.evaluation(otlp.call(), "relevance", 0.5)]), encoding, LOGS)
    otlp.refused(otlp.post(pipeline, log_records, encoding), encoding, 400, 3)
    without_event = otlp.logs([{"body": {"stringValue": "a line"}, "attributes": otlp.attributes({"a": 1})}])
    body = otlp.encoded(without_event, encoding, LOGS)
    assert "another signal" in otlp.refused(otlp.post(pipeline, body, encoding), encoding, 400, 3)


BROKEN = {"protobuf": b"\xff\xff", "json": b'{"resourceSpans": [{"scopeSpans": 5}]}'}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_decoded_is_a_400_in_the_encoding_of_the_request(pipeline: Pipeline, encoding: str) -> None:
    otlp.refused(otlp.post(pipeline, BROKEN[encoding], encoding), encoding, 400, 3)
    wrong = otlp.post(pipeline, b"\x1f\x8bno gzip", encoding, headers={"Content-Encoding": "gzip"})
    assert "gzip" in otlp.refused(wrong, encoding, 400, 3)
    unknown = otlp.post(pipeline, b"", encoding, headers={"Content-Encoding": "br"})
    assert "br" in otlp.refused(unknown, encoding, 415, 3)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/grpc", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("path", PATHS)
def test_another_content_type_is_a_415(pipeline: Pipeline, path: str, content_type: str) -> None:
    answer = otlp.post(pipeline, b"", "json", path, {"Content-Type": content_type})
    assert "application/x-protobuf or application/json" in otlp.refused(answer, "json", 415, 3)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_answers_of_the_door_have_the_encoding_of_the_request(guarded: Pipeline, encoding: str) -> None:
    for path in PATHS:
        missing = otlp.post(guarded, b"", encoding, path)
        assert "token" in otlp.refused(missing, encoding, 401, 16)
        foreign = otlp.post(guarded, b"", encoding, path, {"Host": "attacker.example"})
        assert "attacker.example" in otlp.refused(foreign, encoding, 403, 7)
    answer = guarded.get(TRACES)
    assert answer.status == 401
    bearer = {"Authorization": f"Bearer {TOKEN}", "Content-Type": TYPES[encoding]}
    wrong = http_request("PUT", guarded.url + TRACES, b"", bearer)
    otlp.refused(wrong, encoding, 405, 12)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", PATHS)
def test_the_token_may_be_the_password_of_basic_authentication(guarded: Pipeline, path: str) -> None:
    langfuse = {"x-langfuse-sdk-name": "python", "x-langfuse-public-key": "pk"}
    for headers in (basic("pk-lf", TOKEN), {"Authorization": f"Bearer {TOKEN}"}, {"authorization": f"bearer {TOKEN}"}):
        otlp.assert_stored(otlp.post(guarded, b"", "protobuf", path, {**headers, **langfuse}), "protobuf", path)
    for headers in (basic(TOKEN, "x"), basic("pk", ""), {"Authorization": "Basic ?"}, {"Authorization": TOKEN}):
        otlp.refused(otlp.post(guarded, b"", "protobuf", path, headers), "protobuf", 401, 16)
    elsewhere = guarded.post("/spans", b"[]", basic("pk", TOKEN))
    assert elsewhere.status == 401


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_over_the_limit_is_a_413_before_and_after_decompression(guarded: Pipeline, encoding: str) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    large = otlp.encoded(otlp.traces([otlp.call(attrs={"text": "x" * 2 * MIB})]), encoding)
    otlp.refused(otlp.post(guarded, large, encoding, headers=bearer), encoding, 413, 8)
    packed = otlp.post(guarded, gzip.compress(large), encoding, headers={**bearer, "Content-Encoding": "gzip"})
    assert "decompression" in otlp.refused(packed, encoding, 413, 8)
    spans = [{"traceId": "a" * 32, "spanId": "b" * 16}] * 8193
    many = otlp.post(guarded, otlp.traces(spans), encoding, headers=bearer)
    assert "over 8192 records" in otlp.refused(many, encoding, 413, 8)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_metrics_are_counted_and_dropped(pipeline: Pipeline, encoding: str) -> None:
    def dropped() -> float:
        return sample(pipeline, "tokentrace_ingest_otlp_metric_points_total")

    before = dropped()
    answer = otlp.post(pipeline, otlp.metrics(3), encoding, METRICS)
    assert otlp.partial_success(answer, encoding, METRICS) == (3, "metrics are not stored")
    assert dropped() == before + 3
    otlp.refused(otlp.post(pipeline, BROKEN["protobuf"], encoding, METRICS), encoding, 400, 3)


def sample(pipeline: Pipeline, name: str) -> float:
    """Return a sample of the metrics of ``serve`` itself; 0 if there is none."""
    lines = pipeline.get("/internal/metrics").body.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))), 0.0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_log_records_of_a_span_are_shown_with_it_and_others_are_counted(pipeline: Pipeline, encoding: str) -> None:
    span = otlp.call()
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([span]), encoding), encoding)
    records = [otlp.evaluation(span, "relevance", 0.9), {"body": {"stringValue": "a line of a log"}}]
    ignored = sample(pipeline, "tokentrace_ingest_otlp_ignored_records_total")
    otlp.assert_stored(otlp.post(pipeline, otlp.logs(records), encoding, LOGS), encoding, LOGS)
    assert sample(pipeline, "tokentrace_ingest_otlp_ignored_records_total") == ignored + 1

    def shown() -> bool:
        [stored] = spans_of(pipeline, span["traceId"])
        return bool(stored["attributes"].get("eval.relevance") == 0.9)

    pipeline.until(shown, "the evaluation")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_prompt_of_megabytes_is_cut_and_keeps_its_cost(pipeline: Pipeline, encoding: str) -> None:
    service = fresh("shop")
    texts = {f"text.{number}": "x" * 32_000 for number in range(100)}
    span = otlp.call(attrs={"gen_ai.input.messages": "x" * 4 * MIB, **texts})
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([span], service), encoding), encoding)
    assert until_counted(pipeline, service, 1)["cost"]["total_usd"] == COST_USD
    [stored] = spans_of(pipeline, span["traceId"])
    assert "attributes.input: cut, 4194304 bytes" in stored["adjusted"]
    assert len(json.dumps(stored)) < 600_000


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_span_that_is_too_large_is_a_dead_letter_and_the_others_are_stored(pipeline: Pipeline, encoding: str) -> None:
    service = fresh("shop")
    large = otlp.call(attrs={"text": "x" * 9 * MIB})
    request = otlp.traces([otlp.call(), large, otlp.call()], service)
    rejected = sample(pipeline, "tokentrace_ingest_otlp_rejected_total")
    answer = otlp.post(pipeline, request, encoding)
    assert otlp.partial_success(answer, encoding) == (1, "span 1: over 8388608 bytes")
    until_counted(pipeline, service, 2)
    assert sample(pipeline, "tokentrace_ingest_otlp_rejected_total") == rejected + 1
    letters = pipeline.get("/rejected?reason=too_large&limit=50").json()["rejected"]
    assert letters[0]["reason"] == "too_large"


@given(data=st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_answered_and_never_by_a_5xx_but_503(pipeline: Pipeline, data: st.DataObject) -> None:
    encoding, path = data.draw(st.sampled_from(ENCODINGS)), data.draw(st.sampled_from(PATHS))
    request = {LOGS: otlp.logs([otlp.evaluation(otlp.call(), "x", 0.5)]), METRICS: otlp.metrics(2)}
    body = bytearray(otlp.encoded(request.get(path, otlp.traces([otlp.call(), otlp.call()])), encoding, path))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    sent = bytes(body) if data.draw(st.booleans()) else data.draw(st.binary(max_size=300))
    answer = otlp.post(pipeline, sent, encoding, path)
    if answer.status == 200:
        otlp.partial_success(answer, encoding, path)
    elif answer.status == 503:
        assert answer.headers["retry-after"] == "1"
        assert "internal error" not in otlp.refused(answer, encoding, 503, 14)
    else:
        otlp.refused(answer, encoding, 400, 3)
