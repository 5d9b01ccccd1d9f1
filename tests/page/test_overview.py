"""The Overview in a real browser: every number is the API's, and each question is answered within one click."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode
from zoneinfo import ZoneInfo

import pytest

from kit.chromium import Page
from kit.every_page import resize
from kit.page_numbers import Hours, ask, assert_untroubled, chart, drag, exactly, report, rows_of, table_of, written
from kit.page_world import needs_chromium
from kit.pipeline import Pipeline
from kit.sessions import instant

pytestmark = needs_chromium
RULES = """
alerts:
  - {name: dear, metric: total_cost, op: gt, threshold: 0.000001, window: 3h, eval_interval: 1s}
  - {name: dull, metric: quality_score, op: lt, threshold: 0.45, window: 3h, eval_interval: 1s, min_spans: 1}
  - {name: by-caller, metric: latency_p95, op: gt, threshold: 9000000, window: 3h, group_by: caller}
  - {name: spend, metric: total_cost, op: gt, threshold: 0.000001, window: 3h, eval_interval: 1s, group_by: caller}
"""
_CARDS = "[...document.querySelectorAll('.card')]"
_READY = f"{_CARDS}.length === 5 && document.querySelectorAll('.outline').length === 0 && {chart('Cost by')}"
_MAIN = "document.querySelector('main').innerText"
_LISTED = "[...document.querySelectorAll('table.traces tbody tr')]"


@pytest.fixture(scope="module")
def hours() -> Hours:
    return Hours()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory, hours: Hours) -> Iterator[Pipeline]:
    """A pipeline with the two hours and four rules, of which two fire."""
    directory = tmp_path_factory.mktemp("overview")
    (directory / "rules.yaml").write_text(RULES)
    pipeline = Pipeline(directory, "--config", str(directory / "rules.yaml"))
    pipeline.start()
    try:
        report(pipeline, hours.calls())
        pipeline.until(lambda: [rule["firing"] for rule in pipeline.get("/alerts").json()].count(True) == 2, "firing")
        yield pipeline
    finally:
        pipeline.stop()


def show(page: Page, pipeline: Pipeline, hours: Hours, **more: str) -> None:
    page.open("about:blank")
    page.open(f"{pipeline.url}/#/?{urlencode({**hours.params, **more})}")
    page.until(_READY)


def test_every_card_is_the_number_of_the_api_and_says_how_it_changed(
    numbers: Pipeline, page: Page, hours: Hours
) -> None:
    show(page, numbers, hours)
    api = ask(numbers, "/metrics", {**hours.params, "compare": "before"})
    read = "{exact: of('value').title, shown: of('value').innerText, change: of('change').innerText, "
    read += "before: of('change').title, more: of('more').innerText}"
    cards: dict[str, dict[str, str]] = page.evaluate(
        f"Object.fromEntries({_CARDS}.map((card) => {{ const of = (name) => card.querySelector('.card-' + name);"
        f"return [card.dataset.metric, {read}] }}))"
    )
    expected = {
        "total_cost": ("cost", "total_usd", "usd"),
        "latency_p95": ("latency", "p95_ms", "milliseconds"),
        "quality_score": ("quality", "score_avg", "score"),
    }
    for metric, (group, key, unit) in expected.items():
        assert cards[metric]["exact"].startswith(exactly(api[group][key], unit)), metric
        assert cards[metric]["before"].endswith(exactly(api["previous"][group][key], unit)), metric
        change = api["change"][group][key]
        assert cards[metric]["change"][0] == ("▲" if change["absolute"] > 0 else "▼"), metric
        percent = re.search(r"\(\+?(−?)([\d.,]+) %\)", cards[metric]["change"])
        assert percent is not None, cards[metric]
        assert float(percent[2].replace(",", "")) == pytest.approx(abs(change["ratio"]) * 100, rel=0.01)
    assert cards["error_rate"]["exact"] == f"{api['errors']['count']} of {api['span_count']} calls"
    rate = float(f"{api['errors']['rate'] * 100:.3g}")
    assert cards["error_rate"]["shown"] == f"{rate:.2f} %"
    assert (
        f"{api['errors']['count']} failed, of these {api['errors']['timeout_count']} by" in cards["error_rate"]["more"]
    )
    assert cards["span_count"]["exact"] == str(api["span_count"]) == "165"
    assert f"{api['cost']['unpriced_span_count']} unpriced" in cards["total_cost"]["more"]
    assert f"{api['quality']['scored_span_count']} scored" in cards["quality_score"]["more"]
    # What the changes are against is said in words, not only when one hovers.
    begin, end = (hours.begin - timedelta(hours=1), hours.begin)
    assert page.evaluate("document.querySelector('.cards-before').innerText").startswith(
        "Changes are against the time before, of the same length: "
    )
    zone = page.evaluate("Intl.DateTimeFormat().resolvedOptions().timeZone")
    there = [moment.astimezone(ZoneInfo(zone)) for moment in (begin, end)]
    assert f"{there[0]:%H:%M} to" in page.evaluate("document.querySelector('.cards-before').innerText")
    assert f"{there[1]:%H:%M}." in page.evaluate("document.querySelector('.cards-before').innerText")
    assert_untroubled(page, numbers)


def _rows_of(api: dict[str, Any], pick: list[Any]) -> list[list[float | None]]:
    return [[choose(index) for choose in pick] for index in range(len(api["points"]))]


def test_every_point_of_the_charts_is_the_number_of_the_api(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours)
    cost = ask(numbers, "/metrics/total_cost/series", {**hours.params, "groupby": "model", "top": "10"})
    heads, *rows = table_of(page, "Cost by model")
    assert heads == ["time", *cost["order"], "total"]
    expected = [
        [exactly(cost["by_model"][model][at]["value"], "usd") for model in cost["order"]]
        + [exactly(cost["points"][at]["value"], "usd")]
        for at in range(len(cost["points"]))
    ]
    assert [row[1:] for row in reversed(rows)] == expected
    assert any("no data" in row for row in rows)
    for title, group, units in (
        ("Latency", "latency", {"p50_ms": "milliseconds", "p95_ms": "milliseconds", "p99_ms": "milliseconds"}),
        ("Errors and timeouts", "errors", {"rate": "share", "timeout_rate": "share"}),
        ("Quality", "quality", {"score_avg": "score", "score_p10": "score"}),
    ):
        points = ask(numbers, f"/metrics/{group}/series", hours.params)["points"]
        _, *rows = table_of(page, title)
        expected = [[exactly(point["value"][key], unit) for key, unit in units.items()] for point in points]
        assert [row[1:] for row in reversed(rows)] == expected, title
        gap = [row[1:] for row in rows if set(row[1:]) == {"no data"}]
        assert len(gap) >= 10, title
    assert_untroubled(page, numbers)


def test_what_changed_and_the_dearest_calls_are_those_of_the_api(numbers: Pipeline, page: Page, hours: Hours) -> None:
    for measure, unit in (("total_cost", "usd"), ("latency_p95", "milliseconds")):
        show(page, numbers, hours, measure=measure, groupby="caller")
        params = {**hours.params, "groupby": "caller", "compare": "before", "top": "10", "order": "change"}
        api = ask(numbers, f"/metrics/{measure}", params)
        rows = [[name[0], before[1], now[1]] for name, before, now, _ in rows_of(page, "What changed")]
        assert rows == [
            [
                value,
                exactly(api["previous"]["by_caller"].get(value), unit),
                exactly(api["by_caller"].get(value), unit),
            ]
            for value in api["order"]
        ]
    bounds = {"since": hours.params["from"], "until": hours.params["to"]}
    for more, title in (({"order": "cost"}, "Most expensive"), ({"order": "latency", "kind": "llm"}, "Slowest calls")):
        calls = ask(numbers, "/calls", {**more, **bounds, "limit": "5"})["calls"]
        panel = f"[...document.querySelectorAll('.panel')].find((panel) => panel.innerText.startsWith('{title}'))"
        links = page.evaluate(f"[...{panel}.querySelectorAll('td.name a')].map((link) => link.hash)")
        assert [parse_qs(link.split("?")[1])["span"][0] for link in links] == [call["span_id"] for call in calls]
        assert [link.split("?")[0] for link in links] == [f"#/traces/{call['trace_id']}" for call in calls]
        page.evaluate(f"[...{panel}.querySelectorAll('a')].find((link) => link.innerText === 'all calls').click()")
        listed = ask(numbers, "/calls", {**more, **bounds, "limit": "100"})["calls"]
        page.until(f"{_LISTED}.length === {len(listed)} && document.querySelector('.stale') === null")
        assert page.evaluate(f"{_LISTED}.map((row) => [row.cells[2].title, row.cells[3].innerText])") == [
            [
                exactly(call["cost_usd"], "usd") if call["cost_usd"] is not None else "unpriced",
                written(call["latency_ms"], "milliseconds"),
            ]
            for call in listed
        ]
        page.evaluate("history.back()")
        page.until(_READY)


def test_a_group_without_prices_is_unpriced_and_not_without_data(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours)
    unpriced = ask(numbers, "/metrics/total_cost", {**hours.params, "groupby": "model"})["unpriced_by_model"]
    expected = f"unpriced, {unpriced['own-model']['unpriced_span_count']} calls"
    [now] = [now[0] for name, _, now, _ in rows_of(page, "What changed") if name[0] == "own-model"]
    assert now == expected
    page.open(f"{numbers.url}/#/metric/total_cost?{urlencode(hours.params)}")
    page.until("document.querySelectorAll('.outline').length === 0")
    page.until(f"document.querySelector('main').innerText.includes('{expected}')")


def test_a_brush_of_ten_minutes_shows_them_and_the_list_has_exactly_their_traces(
    numbers: Pipeline, page: Page, hours: Hours
) -> None:
    show(page, numbers, hours)
    drag(page, "Cost by model", 20 / 60, 30 / 60)
    begin, end = (hours.begin + timedelta(minutes=minutes) for minutes in (20, 30))
    chosen = {"from": instant(begin), "to": instant(end)}
    page.until(f"location.hash.includes({urlencode({'from': chosen['from']})!r})")
    params = parse_qs(page.evaluate("location.hash.split('?')[1]"))
    assert {name: value[0] for name, value in params.items()} == chosen
    page.until(f"{_READY} && document.querySelector('.card[data-metric=span_count] .card-value').innerText === '30'")
    page.evaluate(
        "[...document.querySelectorAll('.panel a')].find((link) => link.innerText === 'whole traces').click()"
    )
    page.until("location.hash.startsWith('#/traces?') && document.querySelectorAll('td.name').length === 30")
    shown = page.evaluate("[...document.querySelectorAll('td.name a')].map((a) => a.hash.split('?')[0].split('/')[2])")
    expected = ask(numbers, "/traces", {"since": chosen["from"], "until": chosen["to"], "limit": "100"})["traces"]
    assert sorted(shown) == sorted(trace["trace_id"] for trace in expected)
    page.evaluate("history.back()")
    page.until("location.hash.startsWith('#/?')")
    page.until(_READY)
    page.press("z")
    page.until("document.querySelector('.card[data-metric=span_count] .card-value')?.innerText === '165'")


def test_a_chart_is_read_and_zoomed_with_keys_only(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours)
    name = page.evaluate(f"{chart('Cost by model')}.ariaLabel")
    api = ask(numbers, "/metrics/total_cost/series", {**hours.params, "groupby": "model", "top": "10"})
    most = max(point["value"] or 0 for point in api["points"])
    assert f"highest ${float(f'{most:.3g}')}" in name
    page.evaluate(f"{chart('Cost by model')}.focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowRight")
    said = f"{chart('Cost by model')}.closest('figure').querySelector('[aria-live]').innerText"
    text = page.until(f"{said}.includes('total') && {said}")
    assert text.count("no data") == sum(api["by_model"][model][2]["value"] is None for model in api["order"])
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", modifiers=8, windowsVirtualKeyCode=39)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", modifiers=8, windowsVirtualKeyCode=39)
    page.press("Enter")
    begin = instant(hours.begin + timedelta(seconds=60))
    end = instant(hours.begin + timedelta(seconds=150))
    page.until(f"location.hash.includes({urlencode({'from': begin})!r})")
    assert parse_qs(page.evaluate("location.hash.split('?')[1]"))["to"] == [end]
    assert page.evaluate("document.activeElement !== document.body")


def test_only_the_partial_point_is_dashed_and_hatched(numbers: Pipeline, page: Page, hours: Hours) -> None:
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source=(
            "window.strokes = []; const draw = CanvasRenderingContext2D.prototype.stroke;"
            "CanvasRenderingContext2D.prototype.stroke = function (...all) {"
            "window.strokes.push(this.getLineDash().join()); return draw.apply(this, all) }"
        ),
    )
    show(page, numbers, hours)
    page.until(f"{chart('Latency')} && window.strokes.length > 20")
    assert page.evaluate("window.strokes.includes('2,4')") is False
    cut = {"from": instant(hours.begin + timedelta(seconds=10)), "to": hours.params["to"]}
    page.open("about:blank")
    page.open(f"{numbers.url}/#/?{urlencode(cut)}")
    page.until(f"{_READY} && window.strokes.includes('2,4')")
    rows = table_of(page, "Latency")
    assert rows[-1][0].endswith("so far")
    assert sum("so far" in row[0] for row in rows) == 1


def test_each_of_the_six_questions_is_answered_or_one_click_away(numbers: Pipeline, page: Page, hours: Hours) -> None:
    show(page, numbers, hours)
    hrefs = page.evaluate("[...document.querySelectorAll('a')].map((link) => link.hash)")
    pages = (
        "#/metric/total_cost",
        "#/metric/latency_p95",
        "#/metric/quality_score",
        "#/traces/n",
        "#/calls",
        "#/compare",
    )
    for start in pages:
        assert any(href.startswith(start) and "from=" in href for href in hrefs), start
    assert "#/alerts/dear" in hrefs
    text = page.evaluate(_MAIN)
    assert "> $0.000001" in text
    assert "no delivery: published on NATS only" in text
    [state] = [rule for rule in ask(numbers, "/alerts", {}) if rule["name"] == "spend"]
    assert f"of caller {state['worst_group']} $" in text
    assert "5 of 5 fire, one for each caller" in text
    assert page.evaluate(f"{chart('Quality')}.closest('section').querySelectorAll('.chart-far').length") == 0
    requests = [url for url in page.requested() if "/page.json" not in url and "/health" not in url]
    asked = [url for url in requests if not re.search(r"/($|#|\?#)|\.(js|css|svg)$", url)]
    assert len(set(asked)) <= 8, asked
    sizes = [float(data["encodedDataLength"]) for name, data in page.events if name == "Network.loadingFinished"]
    assert sum(sizes) <= 200_000 + 120_000
    for key, order in (("$", "cost"), ("s", "latency")):
        page.press(key)
        page.until(f"location.hash.startsWith('#/calls?') && location.hash.includes('order={order}')")
        page.evaluate("history.back()")
        page.until(_READY)
    assert_untroubled(page, numbers)


def test_a_narrow_window_shows_costs_and_changes_without_scrolling(numbers: Pipeline, page: Page, hours: Hours) -> None:
    resize(page, 320)
    show(page, numbers, hours)
    # A row of calls ends with the cost, one of groups with the change.
    for title in ("What changed", "Most expensive calls"):
        panel = f"[...document.querySelectorAll('.panel')].find((each) => each.innerText.startsWith('{title}'))"
        page.until(f"{panel}.querySelector('tbody tr') !== null")
        ends = f"[...{panel}.querySelectorAll('tbody td:last-child')].map((cell) => cell.getBoundingClientRect())"
        page.until(f"{ends}.every((box) => box.left < innerWidth - 60 && box.right <= innerWidth)")


def test_a_range_without_calls_says_when_the_newest_was(numbers: Pipeline, page: Page, hours: Hours) -> None:
    empty = {"from": instant(hours.begin - timedelta(days=3)), "to": instant(hours.begin - timedelta(days=2))}
    page.open(f"{numbers.url}/#/?{urlencode({**empty, 'model': 'gpt-4o'})}")
    text = page.until("document.querySelector('.empty')?.innerText")
    assert "matches the filters" in text
    assert page.evaluate(f"{_CARDS}.map((card) => card.querySelector('.card-value').innerText)") == [
        "no data",
        "no data",
        "no data",
        "no data",
        "0",
    ]
    page.evaluate(
        "[...document.querySelectorAll('.empty button')].find((b) => b.innerText.startsWith('the hour')).click()"
    )
    page.until(_READY)
    assert "NaN" not in page.evaluate(_MAIN)


def test_charts_follow_the_theme_and_the_zone_and_share_the_time_of_the_cursor(
    numbers: Pipeline, page: Page, hours: Hours
) -> None:
    page.prefer("light")
    show(page, numbers, hours)
    picture = f"{chart('Latency')}.querySelector('canvas').toDataURL()"
    light = page.evaluate(picture)
    page.prefer("dark")
    page.until(f"{picture} !== {light!r}")
    page.prefer("light")
    page.until(f"{picture} === {light!r}")
    page.evaluate(
        "(() => { const zone = document.getElementById('zone'); zone.value = 'Asia/Tokyo';"
        "zone.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    there = hours.begin + timedelta(hours=9)
    page.until(f"{chart('Latency')}.ariaLabel.includes('{there:%H:%M} to')")
    page.until(f"{picture} !== {light!r}")
    # Around midnight the day stands before the time.
    assert f"{there:%H:%M:%S} to" in table_of(page, "Latency")[-1][0]
    box = page.evaluate(
        f"(() => {{ {chart('Latency')}.scrollIntoView({{block: 'center'}}); const box = {chart('Latency')}"
        ".querySelector('.u-over').getBoundingClientRect(); return [box.left, box.top, box.width, box.height] })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + box[3] / 2)
    cursor = (
        "(() => { const over = %s.querySelector('.u-over'); return Math.round(100 * (over.querySelector('.u-cursor-x')"
        ".getBoundingClientRect().left - over.getBoundingClientRect().left) / over.clientWidth) })()"
    )
    for title in ("Latency", "Quality", "Errors and timeouts", "Cost by model"):
        page.until(f"Math.abs({cursor % chart(title)} - 50) <= 1")
    tips = "[...document.querySelectorAll('.chart-tip')].map((tip) => tip.closest('[role=application]').ariaLabel)"
    assert [name.split(",")[0] for name in page.evaluate(tips)] == ["Latency"]


def test_a_store_without_spans_says_how_to_report_the_first_and_shows_it_by_itself(tmp_path: Path, page: Page) -> None:
    pipeline = Pipeline(tmp_path / "empty")
    pipeline.start()
    try:
        page.open(pipeline.url + "/")
        text = page.until(
            "document.querySelector('.empty')?.innerText.includes('Waiting') && "
            "document.querySelector('.empty').innerText"
        )
        assert f"curl '{pipeline.url}/spans'" in text
        pipeline.until(lambda: b"tokentrace_api_tails 1.0" in pipeline.get("/internal/metrics").body, "followed")
        call = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "latency_ms": 20, "name": "first"}
        assert pipeline.post("/spans", call).status == 202
        page.until("document.querySelector('.card[data-metric=span_count] .card-value')?.innerText === '1'")
        page.until(_READY)
        assert page.evaluate("document.querySelector('.empty')") is None
        assert "There is no rule yet" in page.evaluate(_MAIN)
        assert_untroubled(page, pipeline)
    finally:
        pipeline.stop()
