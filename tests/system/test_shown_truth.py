"""What ``tokentrace serve`` shows of calls that are told twice, of unknown costs, and what filters find."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from kit.http_spans import await_trace, settle
from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline, http


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("truth"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def send(pipeline: Pipeline, *spans: dict[str, Any]) -> None:
    answer = pipeline.post("/spans", list(spans))
    assert answer.status == 202, answer.body


def listed(pipeline: Pipeline, **filters: str) -> list[str]:
    ids: list[str] = pipeline.get(f"/traces?{urlencode(filters)}").json()["trace_ids"]
    return ids


def test_traces_metrics_and_export_agree_on_a_span_that_is_told_three_times(pipeline: Pipeline) -> None:
    caller, trace = fresh("caller"), fresh("trace")
    for tokens in (100, 200, 150):
        call = json_call(caller=caller, trace_id=trace, span_id="s", prompt_tokens=tokens, comp_tokens=0)
        send(pipeline, {name: value for name, value in call.items() if name not in ("total_tokens", "cost_usd")})
        settle(pipeline, caller)
    pipeline.until(lambda: shown(pipeline, trace)["spans"][0].get("later_versions") == 2, "stored")
    one = shown(pipeline, trace)
    assert (one["total_tokens"], one["span_count"]) == (100, 1)
    metrics = pipeline.get(f"/metrics?caller={caller}").json()
    assert (metrics["span_count"], metrics["tokens"]["total"]) == (1, 100)
    assert metrics["cost"]["total_usd"] == one["total_cost_usd"]
    assert pipeline.get(f"/export?caller={caller}&kind=llm").body.count(b"\n") == 1


def shown(pipeline: Pipeline, trace: str) -> dict[str, Any]:
    answer: dict[str, Any] = pipeline.get(f"/traces/{quote(trace, safe='')}").json()
    return answer


def test_an_unknown_cost_is_not_zero(pipeline: Pipeline) -> None:
    trace, session = fresh("trace"), fresh("session")
    unknown = {"trace_id": trace, "model": "mystery", "prompt_tokens": 4000, "session_id": session}
    send(pipeline, unknown)
    one = await_trace(pipeline, trace)
    assert (one["total_cost_usd"], one["unpriced_span_count"]) == (None, 1)
    send(pipeline, {**unknown, "model": "gpt-4o", "cost_usd": 0.01})
    pipeline.until(lambda: shown(pipeline, trace)["span_count"] == 2, "stored")
    one = shown(pipeline, trace)
    assert (one["total_cost_usd"], one["unpriced_span_count"], one["partly_priced_span_count"]) == (0.01, 1, 0)
    details = pipeline.get(f"/api/sessions/{session}/details").json()
    assert (details["totalCostUSD"], details["unpricedSpanCount"]) == (0.01, 1)


def test_empty_and_unknown_callers_are_the_same_in_traces_and_metrics(pipeline: Pipeline) -> None:
    model = fresh("model")
    ids = [fresh("trace") for _ in range(3)]
    for trace, caller in zip(ids, ("", "unknown", "web"), strict=True):
        send(pipeline, json_call(trace_id=trace, caller=caller, model=model))
        await_trace(pipeline, trace)
    for caller in ("", "unknown"):
        assert sorted(listed(pipeline, model=model, caller=caller)) == sorted(ids[:2])
        path = f"/metrics?model={model}&caller={caller}"
        pipeline.until(partial(_counts, pipeline, path, 2), "counted")
    assert set(pipeline.get(f"/metrics?model={model}&groupby=caller").json()["by_caller"]) == {"unknown", "web"}


@pytest.mark.parametrize(
    "trace", ["//", "a/", "/", "recent", "tail", "a/timeline", "a%2Fb", "..", "x/spans/y/receipt", "x/spans/y"]
)
def test_every_trace_id_can_be_reached(pipeline: Pipeline, trace: str) -> None:
    send(pipeline, json_call(trace_id=trace, span_id="s"))
    path = quote(trace, safe="").replace(".", "%2E") + ("/" if trace in ("recent", "tail") else "")
    pipeline.until(lambda: pipeline.get(f"/traces/{path}").status == 200, "stored")
    assert pipeline.get(f"/traces/{path}").json()["trace_id"] == trace
    timeline = pipeline.get(f"/traces/{path.rstrip('/')}/timeline")
    assert (timeline.status, timeline.json()["trace_id"]) == (200, trace)
    alone = pipeline.get(f"/traces/{path.rstrip('/')}/spans/s")
    assert (alone.status, alone.json()["trace_id"]) == (200, trace)


def test_a_rule_with_any_name_can_be_reached_and_deleted(pipeline: Pipeline) -> None:
    rule = {"name": "..", "metric": "total_cost", "op": "gt", "threshold": 1, "window": "1h"}
    assert pipeline.post("/alerts", rule).status == 201
    # A client may remove .. from a path, so its id stands for the name.
    [rule_id] = [one["rule_id"] for one in pipeline.get("/alerts").json() if one["name"] == ".."]
    path = f"/alerts/{rule_id}"
    assert pipeline.get(f"{path}/status").json()["name"] == ".."
    assert pipeline.get(f"{path}/definition").json()["rule"]["name"] == ".."
    assert pipeline.post(f"{path}/silence", {"duration": "1h", "by": "ann"}).status == 200
    assert [silence["by"] for silence in pipeline.get(f"{path}/silences").json()["silences"]] == ["ann"]
    assert http("DELETE", f"{pipeline.url}{path}/silence").status == 204
    assert pipeline.get(f"{path}/series?window=1h").json()["name"] == ".."
    assert pipeline.get(f"{path}/deliveries").json() == {"deliveries": [], "count": 0}
    assert pipeline.get("/alerts/alert_00000000/status").status == 404
    deleted = http("DELETE", f"{pipeline.url}/alerts?name=..")
    assert deleted.status == 204, deleted.body
    assert ".." not in [one["name"] for one in pipeline.get("/alerts").json()]


def test_bounds_with_the_start_that_a_trace_shows_find_it(pipeline: Pipeline) -> None:
    trace, model = fresh("trace"), fresh("model")
    send(
        pipeline,
        json_call(trace_id=trace, model=model, started_at="2026-03-15T14:23:01.441999Z", latency_ms=1234.567883),
    )
    one = await_trace(pipeline, trace)
    at = one["started_at"]
    assert listed(pipeline, model=model, until=at) == listed(pipeline, model=model, since=at, until=at) == [trace]
    assert listed(pipeline, model=model, until="2026-03-15T14:23:01.440Z") == []
    assert listed(pipeline, model=model, until="2026-03-15T14:23:01.4410001Z") == []
    [span] = one["spans"]
    assert (span["latency_ms"], span["latency_ns"]) == (1235, 1_234_567_883)


@pytest.mark.parametrize(("name", "asked"), [("u\u0308ber", "ÜBER"), ("λόγος", "ΛΌΓΟΣ"), ("Zürich", "zu\u0308rich")])
def test_text_is_found_in_any_form(pipeline: Pipeline, name: str, asked: str) -> None:
    trace = fresh("trace")
    send(pipeline, json_call(trace_id=trace, name=name, attributes={"f": 1.0}))
    await_trace(pipeline, trace)
    assert trace in listed(pipeline, q=asked)
    assert trace in listed(pipeline, **{"attr.f": "1", "q": asked})
    assert trace not in listed(pipeline, **{"attr.f": "2", "q": asked})


def _counts(pipeline: Pipeline, path: str, spans: int) -> bool:
    """Return True if the answer at *path* counts *spans* spans."""
    return bool(pipeline.get(path).json()["span_count"] == spans)
