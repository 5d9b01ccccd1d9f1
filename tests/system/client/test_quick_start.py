"""The documented quick start, line by line, against ``tokentrace serve``; test_in_process has it without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.pipeline import Pipeline
from kit.receiver import Receiver
from tokentrace import Tracer, cost_spike


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("quick-start"))
    serving.start()
    yield serving
    serving.stop()


@pytest.mark.parametrize("scheme", ["nats", "http"])
def test_the_quick_start_runs_against_serve(pipeline: Pipeline, scheme: str) -> None:
    caller, url = f"quick-start-{scheme}", pipeline.nats_url if scheme == "nats" else pipeline.url
    with Receiver() as receiver:
        rule = cost_spike(
            f"hourly-cost-spike-{scheme}",
            0.004,
            "10s",
            filter={"caller": caller},
            delivery={"type": "http", "url": f"{receiver.url}/alert"},
        )
        assert pipeline.post("/alerts", rule).status == 201

        tracer = Tracer(url, source=caller, api_url=pipeline.url)
        trace = tracer.start("summarize-document")
        done = trace.record(
            model="gpt-4o",
            provider="openai",
            prompt_tokens=512,
            completion_tokens=128,
            latency_ms=1240,
            cost_usd=0.00448,
            status="ok",
        )
        trace.record_error(RuntimeError("context too long"), model="gpt-4o", provider="openai")
        assert trace.end_and_flush(60)

        cost_path = f"/metrics/cost?window=24h&caller={caller}"
        pipeline.until(lambda: pipeline.get(cost_path).json()["span_count"] == 2, "counted")
        cost = pipeline.get(cost_path).json()
        assert (cost["total_usd"], cost["window"], cost["by_model"]) == (0.00448, "24h", {"gpt-4o": 0.00448})
        assert pipeline.get(f"/metrics/latency?caller={caller}").json()["p95_ms"] == 1240
        assert pipeline.get("/health").json()["status"] == "ok"

        path = f"/traces/{trace.id}"
        pipeline.until(lambda: pipeline.get(path).json().get("span_count") == 2, "stored")
        statuses = {span["span_id"]: span["status"] for span in pipeline.get(path).json()["spans"]}
        assert statuses.pop(done.span_id) == "ok"
        assert list(statuses.values()) == ["error"]

        tracer.score(0.9, trace_id=trace.id, span_id=done.span_id)
        tracer.close(60)
        quality = f"/metrics/quality?caller={caller}"
        pipeline.until(lambda: pipeline.get(quality).json()["score_avg"] == 0.9, "scored")

        pipeline.until(lambda: bool(receiver.sent), "alerted")
        alert = receiver.sent[0].json()
        assert {key: alert[key] for key in ("metric", "op", "value", "threshold", "window", "span_count")} == {
            "metric": "total_cost",
            "op": "gt",
            "value": 0.00448,
            "threshold": 0.004,
            "window": "10s",
            "span_count": 2,
        }
