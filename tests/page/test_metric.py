"""The page of a number in a real browser: its series, its groups, their export, the way to a rule, and its zone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode
from zoneinfo import ZoneInfo

import pytest

from kit.chromium import Page
from kit.http_spans import assert_accepted
from kit.page_numbers import Hours, ask, assert_untroubled, chart, exactly, report, table_of
from kit.page_world import needs_chromium
from kit.pipeline import Pipeline

pytestmark = needs_chromium
_TABLE = "[...document.querySelectorAll('.panel')].find((panel) => panel.innerText.startsWith('By '))"
_ROWS = f"[...{_TABLE}.querySelectorAll('tbody tr')]"
#: In New York the clocks went from 2:00 to 3:00 at 07:00Z.
STARTS = ("2026-03-08T06:15:00Z", "2026-03-08T06:45:00Z", "2026-03-08T07:15:00Z", "2026-03-08T07:45:00Z")
RANGE = "from=2026-03-08T06:00:00Z&to=2026-03-08T08:00:00Z"
OFFSETS = {"UTC": "UTC", "Asia/Kolkata": "UTC+05:30", "America/New_York": "UTC-05:00, then UTC-04:00"}
CHART = chart("Calls")
FIGURE = f"{CHART}.closest('figure')"
_READY = f"document.querySelectorAll('.outline').length === 0 && {_TABLE} && {_ROWS}.length > 0"


@pytest.fixture(scope="module")
def hours() -> Hours:
    return Hours()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory, hours: Hours) -> Iterator[Pipeline]:
    """A pipeline with the two hours."""
    pipeline = Pipeline(tmp_path_factory.mktemp("metric"))
    pipeline.start()
    try:
        report(pipeline, hours.calls())
        yield pipeline
    finally:
        pipeline.stop()


def show(page: Page, pipeline: Pipeline, hours: Hours, metric: str, **more: str) -> None:
    page.open("about:blank")
    page.open(f"{pipeline.url}/#/metric/{metric}?{urlencode({**hours.params, **more})}")
    page.until(_READY)


def groups_of(pipeline: Pipeline, hours: Hours, metric: str, key: str, **more: str) -> Any:
    params = {**hours.params, "groupby": key, "top": "50", "order": "value", "compare": "before", **more}
    return ask(pipeline, f"/metrics/{metric}", params)


def test_the_number_and_its_groups_are_those_of_the_api(numbers: Pipeline, page: Page, hours: Hours) -> None:
    for metric, key, unit in (
        ("total_cost", "model", "usd"),
        ("latency_p95", "caller", "milliseconds"),
        ("quality_score", "user_id", "score"),
        ("span_count", "attr.tier", "spans"),
    ):
        show(page, numbers, hours, metric, groupby=key)
        api = groups_of(numbers, hours, metric, key)
        by = f"by_{key.removeprefix('attr.')}"
        previous = api["previous"][by]
        assert page.evaluate("document.querySelector('.metric-value strong').title") == exactly(api["value"], unit)
        rows = page.evaluate(f"{_ROWS}.map((row) => [row.cells[0].innerText, row.cells[1].title, row.cells[2].title])")
        assert rows == [
            [value, exactly(api[by].get(value), unit), exactly(previous.get(value), unit)] for value in api["order"]
        ]
        # A group without data in one of the hours reads so, and never 0.
        missing = [value for value in api["order"] if previous.get(value) is None]
        assert [row[0] for row in rows if row[2] == "no data"] == missing
    assert_untroubled(page, numbers)


def test_the_large_series_is_that_of_the_api_with_the_hour_before_below_it(
    numbers: Pipeline, page: Page, hours: Hours
) -> None:
    show(page, numbers, hours, "latency_p95")
    api = ask(numbers, "/metrics/latency_p95/series", {**hours.params, "compare": "before"})
    heads, *rows = table_of(page, "Latency p95")
    assert heads == ["time", "Latency p95", "before"]
    assert [row[1:] for row in reversed(rows)] == [
        [exactly(now["value"], "milliseconds"), exactly(before["value"], "milliseconds")]
        for now, before in zip(api["points"], api["previous"]["points"], strict=True)
    ]
    page.evaluate("[...document.querySelectorAll('button')].find((b) => b.innerText === 'by model').click()")
    page.until("location.hash.includes('lines=groups')")
    page.until("document.querySelectorAll('.chart-legend button').length > 3")
    assert "gpt-4o" in page.evaluate("document.querySelector('.chart-legend').innerText")


def test_groups_are_sorted_by_the_api_and_the_head_says_so(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours, "total_cost", groupby="caller")
    for order, head in (("change", "change"), ("name", "caller"), (None, "value")):
        page.evaluate(
            f"[...{_TABLE}.querySelectorAll('th button')].find((each) => each.innerText.startsWith('{head}')).click()"
        )
        api = groups_of(numbers, hours, "total_cost", "caller", order=order or "value")
        page.until(f"{_ROWS}.map((row) => row.cells[0].innerText).join() === '{','.join(api['order'])}'")
        sorted_by = page.evaluate(
            f"[...{_TABLE}.querySelectorAll('th[aria-sort]')].filter((cell) => cell.ariaSort !== 'none')"
            ".map((cell) => [cell.innerText.split(' ')[0], cell.ariaSort])"
        )
        assert sorted_by == [[head, "ascending" if order == "name" else "descending"]]
        params = parse_qs(page.evaluate("location.hash.split('?')[1]"))
        assert params.get("order") == ([order] if order else None)


def test_the_exported_table_is_the_answer_of_the_api(
    numbers: Pipeline, page: Page, hours: Hours, tmp_path: Path
) -> None:
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    show(page, numbers, hours, "total_cost", groupby="caller")
    page.evaluate("[...document.querySelectorAll('button')].find((b) => b.innerText === 'download as CSV').click()")
    file = tmp_path / "total_cost by caller.csv"
    numbers.until(lambda: file.is_file() and file.stat().st_size > 0, "downloaded")
    text = file.read_bytes().decode("utf-8-sig")
    api = groups_of(numbers, hours, "total_cost", "caller")
    heads, *rows = list(csv.reader(io.StringIO(text)))
    assert heads == ["caller", "total_cost", "before", "change", "change_ratio", "share"]
    assert [row[0] for row in rows] == api["order"]
    for name, now, before, absolute, ratio, share in rows:
        leaf = api["change"]["by_caller"][name]
        assert (float(now), float(before)) == (api["by_caller"][name], api["previous"]["by_caller"][name])
        assert (float(absolute), float(ratio)) == (leaf["absolute"], leaf["ratio"])
        assert float(share) == pytest.approx(api["by_caller"][name] / api["value"])
    assert_untroubled(page, numbers)


def test_a_rule_is_made_of_what_is_shown_and_a_value_leads_to_its_own_numbers(
    numbers: Pipeline, page: Page, hours: Hours
) -> None:
    show(page, numbers, hours, "latency_p95", groupby="caller", model="gpt-4o")
    rule = page.evaluate(
        "[...document.querySelectorAll('a')].find((link) => link.innerText === 'Make a rule of this').hash"
    )
    assert rule.startswith("#/alerts?")
    assert parse_qs(rule.split("?")[1]) == {
        "new": ["1"],
        "metric": ["latency_p95"],
        "groupby": ["caller"],
        "model": ["gpt-4o"],
    }
    page.evaluate(f"{_ROWS}[0].querySelector('a').click()")
    page.until("location.hash.includes('caller=team-')")
    api = ask(
        numbers,
        "/metrics/latency_p95",
        {**hours.params, "model": "gpt-4o", "caller": parse_qs(page.evaluate("location.hash"))["caller"][0]},
    )
    exact = exactly(api["value"], "milliseconds")
    page.until(f"document.querySelector('.metric-value strong')?.title === {exact!r}")


def test_the_distribution_is_that_of_the_api(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours, "latency_p95")
    api = ask(numbers, "/metrics/latency/histogram", {**hours.params, "compare": "before"})
    name = page.until("document.querySelector('.histogram')?.ariaLabel")
    assert f"{api['count']:,} values" in name
    counts = page.evaluate("[...document.querySelectorAll('.histogram-bar')].map((bar) => bar.title.split(': ')[1])")
    assert [int(text.split(" ")[0].replace(",", "")) for text in counts] == api["counts"]
    assert sum(api["counts"]) + api["zero"] == api["count"]


def test_the_distribution_of_scores_ends_at_one(numbers: Pipeline, page: Page, hours: Hours) -> None:
    """The interval that has the score 1 goes on beyond it, but no score does."""
    show(page, numbers, hours, "quality_score")
    api = ask(numbers, "/metrics/quality/histogram", hours.params)
    assert api["max"] == api["edges"][-1] == 1
    assert api["edges"] == sorted(set(api["edges"]))
    heatmap = ask(numbers, "/metrics/quality/histogram/series", hours.params)
    assert heatmap["edges"][-1] == 1
    axis = page.until("document.querySelector('.histogram-axis')?.innerText")
    assert axis.split()[-1] == "1.000"


def test_an_unknown_metric_is_told_in_the_words_of_the_api(numbers: Pipeline, page: Page, hours: Hours) -> None:
    page.open(f"{numbers.url}/#/metric/absent?{urlencode(hours.params)}")
    text = page.until("document.querySelector('.note.error')?.innerText")
    assert "unknown metric 'absent'; known are cost" in text


def test_an_eval_is_a_number_like_any_other(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours, "total_cost")
    page.evaluate("document.getElementById('metric').dispatchEvent(new Event('pointerdown', {bubbles: true}))")
    page.until("[...document.getElementById('metric').options].some((each) => each.value === 'eval.score')")
    page.evaluate(
        "(() => { const metric = document.getElementById('metric'); metric.value = 'eval.score';"
        "metric.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    api = groups_of(numbers, hours, "eval.score", "model")
    page.until("location.hash.startsWith('#/metric/eval.score?')")
    page.until(f"document.querySelector('.metric-value strong')?.title === {exactly(api['avg'], 'any')!r}")
    page.until(f"{_READY} && {_ROWS}[0].cells[1].title === {exactly(api['by_model'][api['order'][0]]['avg'], 'any')!r}")
    assert_untroubled(page, numbers)


@pytest.fixture(scope="module")
def zones(numbers: Pipeline) -> Pipeline:
    """The same pipeline, with a call in each half hour around a change of clocks."""
    call = {"model": "gpt-4o", "prompt_tokens": 9, "comp_tokens": 1}
    spans = [
        {**call, "trace_id": start, "name": start, "started_at": start, "ended_at": start.replace("00Z", "01Z")}
        for start in STARTS
    ]
    assert_accepted(numbers.post("/spans", spans), len(spans))
    numbers.until(lambda: numbers.get(f"/traces?q={STARTS[0][:10]}&limit=1").json()["total"] == len(spans), "stored")
    return numbers


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_list_the_table_and_the_tooltip_agree_over_a_change_of_clocks(
    zones: Pipeline, page: Page, zone: str
) -> None:
    page.call("Emulation.setTimezoneOverride", timezoneId=zone)
    there = [datetime.fromisoformat(start).astimezone(ZoneInfo(zone)) for start in STARTS]
    page.open(f"{zones.url}/#/traces?{RANGE}")
    page.until("document.querySelectorAll('td.time').length === 4")
    listed = page.evaluate("[...document.querySelectorAll('td.time')].map((cell) => cell.innerText).sort()")
    assert listed == [f"{moment:%Y-%m-%d %H:%M:%S}.000" for moment in there]
    page.open(f"{zones.url}/#/metric/span_count?{RANGE}")
    page.until(f"{CHART} !== undefined")
    # What is drawn beside the axes is said as well, because a canvas has no text.
    axes = page.until(
        f"{CHART}.getAttribute('aria-describedby').split(' ').map((id) => document.getElementById(id).innerText)[0]"
    )
    across, up = axes.split(". Up: ")
    offsets, times = across.split(": ", 1)
    assert offsets == f"Across, {OFFSETS[zone]}"
    moments = [
        datetime.fromisoformat(f"2026-03-08T{hour}:00Z").astimezone(ZoneInfo(zone))
        for hour in ("06:30", "07:00", "07:30")
    ]
    assert set(times.split(", ")) >= {f"{moment:%H:%M}" for moment in moments}
    assert up.startswith("0, ")
    page.evaluate(f"{CHART}.focus()")
    page.press("T")
    page.until(f"{FIGURE}.querySelector('tbody tr') !== null")
    rows = page.evaluate(
        f"[...{FIGURE}.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    held = sorted(row[0].removesuffix(", so far") for row in rows if row[1] == "1")
    assert [text.split(" to ")[0] for text in held] == [f"{moment:%H:%M}" for moment in there]
    page.evaluate(f"{CHART}.focus()")
    page.press("T")
    # The arrows lead from the last step to the first; each tooltip begins with the time that its row has.
    tips = set()
    for _ in rows:
        page.press("ArrowLeft")
        tips.add(page.until(f"{FIGURE}.querySelector('.chart-tip')?.innerText").splitlines()[0].split(" · ")[0])
    assert tips >= set(held)
    assert page.evaluate("location.hash") == f"#/metric/span_count?{RANGE}"
    assert_untroubled(page, zones)
