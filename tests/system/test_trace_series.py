"""Traces over time, attributes of listed traces and exports of a window, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.pipeline import Pipeline

RANGE = "since=2026-03-15T14:00:00Z&until=2026-03-15T14:00:09.999Z"
ATTRIBUTES = [
    {"request_id": "abc123", "step": 3},
    {"request_id": "abc123", "step": 4, "done": True},
    {"step": 3},
    {"step": "3", "user.name": "Zoë"},
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with four traces of one span, a second apart; the last one failed, and one has no price."""
    serving = Pipeline(tmp_path_factory.mktemp("series"))
    serving.start()
    spans = [
        {
            "trace_id": f"t{number}",
            "span_id": "1",
            "model": "no-such-model" if number == 2 else "gpt-4o",
            "prompt_tokens": 1000 + number,
            "status": "error" if number == 3 else "ok",
            "error": "429" if number == 3 else "",
            "started_at": f"2026-03-15T14:00:0{number}.000Z",
            "ended_at": f"2026-03-15T14:00:0{number}.500Z",
            "attributes": attributes,
        }
        for number, attributes in enumerate(ATTRIBUTES)
    ]
    try:
        assert serving.post("/spans", spans).status == 202
        serving.until(lambda: serving.get("/traces").json()["total"] == 4, "stored")
        yield serving
    finally:
        serving.stop()


@pytest.mark.parametrize(
    "filters", ["", "attr.step=3", "not.attr.done=true&min_tokens=1", "status=error", "model=no-such-model"]
)
def test_a_series_has_the_sums_of_the_traces_that_the_list_shows(pipeline: Pipeline, filters: str) -> None:
    listed = pipeline.get(f"/traces?{filters}").json()["traces"]
    series = pipeline.get(f"/traces/series?{filters}&{RANGE}&step=2s").json()
    assert (series["from"], series["to"]) == ("2026-03-15T14:00:00.000Z", "2026-03-15T14:00:09.999Z")
    assert series["step"] == "2s"
    assert [point["at"][17:19] for point in series["points"]] == ["00", "02", "04", "06", "08"]
    assert "searched_until" not in series
    assert not any(point.get("partial") for point in series["points"])
    assert listed
    assert series["trace_count"] == series["ok_count"] + series["error_count"] == len(listed)
    assert series["error_count"] == sum(row["status"] != "ok" for row in listed)
    for field in ("total_tokens", "span_count", "unpriced_span_count", "partly_priced_span_count"):
        assert series[field] == sum(row[field] for row in listed) == sum(point[field] for point in series["points"])
    costs = [row["total_cost_usd"] for row in listed if row["total_cost_usd"] is not None]
    assert series["total_cost_usd"] == (pytest.approx(sum(costs), abs=1e-12) if costs else None)
    for number, point in enumerate(series["points"]):
        within = [row for row in listed if int(row["started_at"][17:19]) // 2 == number]
        assert point["trace_count"] == len(within)


def test_without_bounds_a_series_covers_all_traces_and_a_window_ends_now(pipeline: Pipeline) -> None:
    whole = pipeline.get("/traces/series").json()
    assert (whole["from"], whole["to"]) == ("2026-03-15T14:00:00.000Z", "2026-03-15T14:00:03.000Z")
    assert (whole["step"], len(whole["points"])) == ("100ms", 31)
    nothing = pipeline.get("/traces/series?model=absent").json()
    assert (nothing["from"], nothing["to"], nothing["points"], nothing["trace_count"]) == (None, None, [], 0)
    window = pipeline.get("/traces/series?window=1h").json()
    assert window["trace_count"] == 0
    assert window["points"][0]["partial"] is True
    assert window["points"][-1]["partial"] is True
    assert "partial" not in window["points"][1]


def test_a_trace_called_series_is_still_reached(pipeline: Pipeline) -> None:
    assert pipeline.get("/traces/series/").json()["error"] == "trace not found"


def test_rows_show_the_attributes_that_are_asked_for(pipeline: Pipeline) -> None:
    rows = pipeline.get("/traces?attribute=step&attribute=user.name&attribute=step").json()["traces"]
    assert [row["attributes"] for row in rows] == [
        {"step": "3", "user.name": "Zoë"},
        {"step": "3", "user.name": None},
        {"step": "4", "user.name": None},
        {"step": "3", "user.name": None},
    ]
    assert "attributes" not in pipeline.get("/traces").json()["traces"][0]
    assert pipeline.get("/traces?order=tokens&attribute=step").json()["traces"][0]["attributes"] == {"step": "3"}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/traces?attribute=", "attribute: is empty"),
        ("/traces?" + "&".join(f"attribute={number}" for number in range(11)), "attribute: is given over 10 times"),
        ("/traces/series?step=much", "step: duration: 'much' is not a duration such as 90s, 2h30m or 7d"),
        ("/traces/series?step=100ms", "step: '100ms' is shorter than 1s"),
        (
            "/traces/series?step=1s&since=2026-03-15T14:00:00Z&until=2026-03-15T15:00:00Z",
            "step: '1s' makes over 2,000 points; the shortest for this range is 2s",
        ),
        ("/traces/series?limit=1", "limit: unknown parameter"),
        ("/traces/series?colour=red", "colour: unknown parameter"),
        ("/export?window=1h&since=2026-03-15T14:00:00Z", "window: is given together with since or until"),
    ],
)
def test_wrong_parameters_are_named(pipeline: Pipeline, path: str, error: str) -> None:
    answer = pipeline.get(path)
    assert answer.status == 400
    assert answer.json()["error"].startswith(error)


def test_an_export_of_a_window_leaves_older_spans_out(pipeline: Pipeline) -> None:
    assert pipeline.get("/export?window=1h").body == b""
    assert pipeline.get("/export?window=36500d").body.count(b"\n") == pipeline.get("/export").body.count(b"\n") == 4
