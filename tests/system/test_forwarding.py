"""Sending on to other backends through running services: outages, a kill, loops, and nothing secret shown."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit import otlp
from kit.five_ways import CALLS, WAYS, tell
from kit.forwarding import HEADER_SECRET, KEY, URL_SECRET, names_in, request_in, signal_of, without_mark
from kit.pipeline import Pipeline, SeparateServices, http, sum_of_export
from kit.receiver import Receiver, Reply
from tokentrace.dialect.otlp.messages import read_request
from tokentrace_ingest.forward.forwarder import AT_ONCE

MODELS = (("gpt-4o", "openai"), ("claude-sonnet-4-5", "anthropic"), ("gemini-2.5-pro", "google"))


def serving(directory: Path, targets: Sequence[dict[str, Any]]) -> Pipeline:
    """Return a ``serve`` with *targets*, which is not started."""
    pipeline = Pipeline(directory)
    configure(pipeline, targets)
    return pipeline


def configure(pipeline: Pipeline, targets: Sequence[dict[str, Any]]) -> None:
    settings = {"otlp": {"forward": list(targets), "forward_allow_hosts": ["127.0.0.1"]}}
    (pipeline.directory / "tokentrace.yml").write_text(json.dumps(settings))


def state_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    found: dict[str, Any] = pipeline.get("/health").json()["forward"][name]
    return found


def post(pipeline: Pipeline, name: str, **attrs: Any) -> None:
    """Post a call by OTLP; it must be taken."""
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([otlp.call(name=name, attrs=attrs)])), "protobuf")


def documented(number: int) -> dict[str, Any]:
    """Return a span in the documented JSON."""
    model, provider = MODELS[number % len(MODELS)]
    return {
        "trace_id": uuid.uuid4().hex,
        "span_id": uuid.uuid4().hex[:16],
        "name": f"call {number}",
        "model": model,
        "provider": provider,
        "prompt_tokens": 100 + 7 * number,
        "comp_tokens": 11 * number + 1,
        "latency_ms": 50 + number,
        "caller": f"caller-{number % 2}",
        "status": "error" if number % 10 == 9 else "ok",
        "attributes": {"plan": "pro", "number": number},
    }


def test_a_target_that_is_down_is_a_warning_and_gets_everything_once_it_is_up(tmp_path: Path) -> None:
    with Receiver(lambda sent: Reply(503)) as receiver:
        target = {
            "name": "collector",
            "url": f"{receiver.url}/{URL_SECRET}",
            "headers": {"Authorization": f"Bearer {HEADER_SECRET}"},
        }
        pipeline = serving(tmp_path, [target])
        pipeline.start()
        try:
            for number in range(5):
                post(pipeline, f"call {number}", note=f"my key is {KEY}")
            pipeline.until(lambda: state_of(pipeline, "collector")["failing"] == "HTTP 503", "failing")
            pipeline.until(lambda: state_of(pipeline, "collector")["waiting"] == 5, "waiting")
            health, ready = pipeline.get("/health"), pipeline.get("/readyz")
            assert (health.status, ready.status) == (200, 200)
            [warning] = health.json()["warnings"]
            assert warning.startswith(
                "ingest: the target collector of otlp.forward takes nothing: HTTP 503; 5 requests"
            )
            [ingest] = [part for part in health.json()["parts"] if part["name"] == "ingest"]
            assert (ingest["ok"], ingest["detail"]) == (True, warning)
            assert ready.json()["forward"]["collector"]["to"] == f"{receiver.url}/..."
            metrics = pipeline.get("/internal/metrics").body.decode()
            assert 'tokentrace_forward_failing{target="collector"} 1.0' in metrics
            assert 'tokentrace_forward_waiting_requests{target="collector"} 5.0' in metrics
            receiver.answer = lambda sent: Reply()
            pipeline.until(lambda: state_of(pipeline, "collector")["sent"] == 5, "sent")
            pipeline.until(lambda: state_of(pipeline, "collector")["waiting"] == 0, "acknowledged")
            state = state_of(pipeline, "collector")
            assert (state["failing"], state["lost"], state["refused"], state["lag_s"]) == ("", 0, 0, 0.0)
            shown = [health.body, ready.body, metrics.encode(), pipeline.get("/health").body]
        finally:
            assert pipeline.stop() == 0
        taken = [sent for sent in receiver.sent if sent.header("Authorization") == f"Bearer {HEADER_SECRET}"]
        assert set(names_in(taken)) == {f"call {number}" for number in range(5)}
        assert KEY not in str([request_in(sent) for sent in taken])
    for text in (*shown, pipeline.log.read_bytes()):
        assert URL_SECRET.encode() not in text
        assert HEADER_SECRET.encode() not in text


@pytest.mark.story
def test_each_signal_arrives_without_secrets_or_as_it_came(tmp_path: Path) -> None:
    span = otlp.call(attrs={"note": f"my key is {KEY}"})
    log = {**otlp.evaluation(span, "helpful", 0.5), "body": {"stringValue": f"my key is {KEY}"}}
    bodies = {otlp.TRACES: otlp.traces([span]), otlp.LOGS: otlp.logs([log]), otlp.METRICS: otlp.metrics(3)}
    with Receiver() as clean, Receiver() as plain:
        targets: list[dict[str, Any]] = [
            {"name": "clean", "url": clean.url},
            {"name": "plain", "url": plain.url, "redact": False},
        ]
        pipeline = serving(tmp_path, targets)
        pipeline.start()
        try:
            for path, body in bodies.items():
                # Metrics are stored nowhere, and taken because they are sent on.
                otlp.assert_stored(otlp.post(pipeline, body, "json", path), "json", path)
            for name in ("clean", "plain"):
                pipeline.until(partial(has_sent, pipeline, name, len(bodies)), f"sent to {name}")
        finally:
            assert pipeline.stop() == 0
        assert {sent.path for sent in clean.sent} == {sent.path for sent in plain.sent} == set(bodies)
        assert KEY not in str([request_in(sent) for sent in clean.sent])
        for sent in plain.sent:
            signal: Any = signal_of(sent)
            original = read_request(signal, "json", json.dumps(bodies[sent.path]).encode())
            assert without_mark(request_in(sent)) == original


def has_sent(pipeline: Pipeline, name: str, count: int) -> bool:
    return bool(state_of(pipeline, name)["sent"] == count)


@pytest.mark.story
def test_nothing_acknowledged_is_lost_when_everything_is_killed(tmp_path: Path) -> None:
    """A request may arrive twice: the target may have taken it when its sender was killed."""
    with Receiver(lambda sent: Reply(503)) as receiver:
        pipeline = serving(tmp_path, [{"name": "collector", "url": receiver.url}])
        pipeline.start()
        for number in range(20):
            post(pipeline, f"before {number:02d}")
        pipeline.kill()
        receiver.answer = lambda sent: Reply(after_s=0.2)
        pipeline.start()
        try:
            for number in range(20):
                post(pipeline, f"after {number:02d}")
            pipeline.kill()
            pipeline.start()
            pipeline.until(lambda: state_of(pipeline, "collector")["waiting"] == 0, "all sent")
            assert state_of(pipeline, "collector")["lost"] == 0
        finally:
            assert pipeline.stop() == 0
        wanted = {f"{when} {number:02d}" for when in ("before", "after") for number in range(20)}
        assert set(names_in(receiver.sent)) == wanted


@pytest.mark.story
def test_what_a_killed_ingest_was_sending_is_sent_by_the_next_one(tmp_path: Path) -> None:
    """The api, in a process of its own, shows the targets of ingest."""
    services = SeparateServices(tmp_path)
    with Receiver(lambda sent: Reply(after_s=600)) as receiver:
        configure(services, [{"name": "collector", "url": receiver.url, "timeout": "1m"}])
        services.start()
        try:
            ingest = f"http://127.0.0.1:{services.ports['ingest']}"
            services.until(lambda: http("GET", f"{ingest}/readyz").status == 200, "ingest is ready")
            for number in range(10):
                body = otlp.encoded(otlp.traces([otlp.call(name=f"call {number}")]), "protobuf")
                headers = {"Content-Type": "application/x-protobuf"}
                assert http("POST", f"{ingest}{otlp.TRACES}", body, headers).status == 200
            services.until(lambda: receiver.at_once == AT_ONCE, "under way")
            services.kill_one("ingest")
            under_way = list(receiver.sent)
            receiver.sent.clear()
            receiver.answer = lambda sent: Reply()
            services.start_one("ingest")
            services.until(lambda: state_of(services, "collector")["sent"] == 10, "sent")
            services.until(lambda: state_of(services, "collector")["waiting"] == 0, "acknowledged")
        finally:
            assert services.stop() == 0
        assert names_in(receiver.sent) == [f"call {number}" for number in range(10)]
        assert len(under_way) == AT_ONCE


@pytest.mark.story
def test_spans_of_other_ways_in_have_the_same_totals_in_the_pipeline_that_gets_them_by_otlp(tmp_path: Path) -> None:
    second = Pipeline(tmp_path / "second")
    second.start()
    first = serving(tmp_path / "first", [{"name": "second", "url": second.url, "spans": True, "signals": ["traces"]}])
    first.start()
    try:
        spans = [documented(number) for number in range(60)]
        for begin in range(0, 60, 20):
            assert first.post("/spans", spans[begin : begin + 20]).status == 202
        started = first.post("/api/traces/start", {"name": "answer", "type": "llm", "input": {"q": "hi"}}).json()
        ended = {"status": "ok", "model": "gpt-4o", "tokens": {"prompt": 10, "completion": 5}}
        answer = first.post(f"/api/traces/{started['traceId']}/end", ended)
        assert answer.status == 200, answer.body
        for call in CALLS.values():
            tell(first, call)
        total = 60 + 1 + len(CALLS) * len(WAYS)
        for pipeline in (first, second):
            pipeline.until(partial(has_spans, pipeline, total), "counted")
        for path in ("/metrics?window=1h&kind=all", "/metrics?window=1h"):
            told, received = (comparable(pipeline, path) for pipeline in (first, second))
            assert told == received
            assert told["cost"]["total_usd"] > 0
        assert sum_of_export(first) == sum_of_export(second)
    finally:
        codes = (first.stop(), second.stop())
    assert codes == (0, 0)


def has_counted(pipeline: Pipeline, count: int) -> bool:
    return bool(pipeline.metrics()["span_count"] == count)


def has_spans(pipeline: Pipeline, count: int) -> bool:
    """Return True if *count* spans are stored and counted."""
    stored = pipeline.get("/health").json()["stored_spans"] == count
    return bool(stored and pipeline.get("/metrics?window=1h&kind=all").json()["span_count"] == count)


def comparable(pipeline: Pipeline, path: str) -> dict[str, Any]:
    """Return what ``/metrics`` tells about the spans, and not about the way in which they came."""
    answer = pipeline.get(path).json()
    return {key: answer[key] for key in ("span_count", "tokens", "cost")}


@pytest.mark.story
def test_what_two_pipelines_send_to_each_other_goes_round_once(tmp_path: Path) -> None:
    first, second = (Pipeline(tmp_path / name) for name in ("first", "second"))
    with Receiver() as receiver:
        end = {"name": "end", "url": receiver.url}
        configure(first, [{"name": "other", "url": second.url}, end])
        configure(second, [{"name": "other", "url": first.url}])
        first.start()
        second.start()
        try:
            for number in range(3):
                post(first, f"call {number}")
            first.until(lambda: state_of(first, "other")["sent"] == 3, "sent")
            second.until(lambda: state_of(second, "other")["sent"] == 3, "sent back")
            looped = "tokentrace_forward_looped_total 3.0"
            first.until(lambda: looped in first.get("/internal/metrics").body.decode(), "left out")
            assert [state_of(first, name)["waiting"] for name in ("other", "end")] == [0, 0]
            for pipeline in (first, second):
                pipeline.until(partial(has_counted, pipeline, 3), "counted once")
        finally:
            codes = (first.stop(), second.stop())
        assert names_in(receiver.sent) == [f"call {number}" for number in range(3)]
    assert codes == (0, 0)
