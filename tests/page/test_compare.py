"""The comparison of two times, of two values and of two traces, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest

from kit.chromium import Page
from kit.compared_calls import HOUR, Traffic, instant, send_calls
from kit.page_world import HOSTILE, SHOWN, assert_clean, needs_chromium, send, span
from kit.pipeline import Pipeline

pytestmark = needs_chromium
_PANEL = "document.querySelector('[aria-label={}]')"
#: JavaScript: label -> the titles of the two cells of numbers and the text of the change, of the panel of numbers.
_NUMBERS = (
    "Object.fromEntries([...document.querySelectorAll('[aria-label=\"Numbers of both sides\"] tbody tr')].map((row) => "
    "[row.cells[0].firstChild.textContent, [row.cells[1].title, row.cells[2].title, row.cells[3].innerText.trim()]]))"
)
_GROUPS = (
    "[...document.querySelectorAll('section[aria-label^=\"What changed\"] tbody tr')].map((row) => "
    "[...row.cells].map((cell) => cell.innerText.trim()))"
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("compare"))
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


@pytest.fixture(scope="module")
def traffic(serving: Pipeline) -> Traffic:
    return send_calls(serving)


def last_hour(traffic: Traffic) -> dict[str, str]:
    return {"from": instant(traffic.now_s - HOUR), "to": instant(traffic.now_s), "caller": traffic.caller}


def api(serving: Pipeline, path: str, query: dict[str, str]) -> Any:
    answer = serving.get(f"/metrics{path}?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return answer.json()


def usd(value: float) -> str:
    return f"{'−' if value < 0 else ''}${abs(value):.9f}"


def assert_numbers(page: Page, expected: dict[str, Any]) -> None:
    before, change = expected["previous"], expected["change"]
    costs = [usd(side["cost"]["total_usd"]) for side in (expected, before)]
    # Until the answer is there, the numbers of the comparison before are shown.
    page.until(f"JSON.stringify({_NUMBERS}.Cost?.slice(0, 2)) === JSON.stringify({json.dumps(costs)})")
    shown = page.evaluate(_NUMBERS)
    assert len(shown) == 11
    assert shown["Calls"][:2] == [f"{side['span_count']:,}" for side in (expected, before)]
    arrow = "▲ +" if change["cost"]["total_usd"]["absolute"] > 0 else "▼ −"
    assert shown["Cost"][2].startswith(arrow)
    assert shown["Quality"] == ["no data", "no data", "no data"]
    for name, key in (("Latency p50", "p50_ms"), ("Latency p95", "p95_ms")):
        for title, side in zip(shown[name][:2], (expected, before), strict=True):
            assert float(title.removesuffix(" ms").replace(",", "")) == pytest.approx(side["latency"][key], abs=1e-3)
    points = change["errors"]["rate"]["absolute"] * 100
    text = shown["Error rate"][2]
    assert text == "unchanged" if points == 0 else f"{abs(points):.3g}"[:4] in text
    assert text == "unchanged" or " pp (" in text


def test_two_times_are_compared_number_by_number(serving: Pipeline, traffic: Traffic, page: Page) -> None:
    asked = last_hour(traffic) | {"compare": "before"}
    page.open(f"{serving.url}/#/compare?{urlencode(asked)}")
    assert_numbers(page, api(serving, "", asked))
    parts = api(serving, "/explain", asked)["parts"]
    titles = "[...document.querySelectorAll('.compare-parts td.number')].map((cell) => cell.title)"
    page.until(f"{titles}.length === 4")
    assert page.evaluate(titles) == [usd(part["usd"]) for part in parts if part["part"] != "other_kinds"]
    calls = next(part["usd"] for part in parts if part["part"] == "calls")
    words = page.evaluate("document.querySelector('.compare-parts .dim').innerText")
    assert words == f"there were {'more' if calls > 0 else 'fewer'} of them"
    page.until("document.querySelectorAll('.compare canvas').length === 1")
    page.until("document.querySelector('.histogram-before') !== null")
    text = page.until("document.querySelector('main').innerText")
    assert "B is drawn 1h 0m later than it was." in text
    assert_clean(page, serving)


def test_groups_that_are_new_or_gone_are_marked_and_the_rest_is_added_up(
    serving: Pipeline, traffic: Traffic, page: Page
) -> None:
    asked = last_hour(traffic) | {"compare": "before"}
    page.open(f"{serving.url}/#/compare?{urlencode(asked)}")
    rows = page.until(f"{_GROUPS}.length && {_GROUPS}")
    answer = api(serving, "/total_cost", asked | {"groupby": "model", "top": "20", "order": "change"})
    marks = dict(zip(answer["order"], rows, strict=True))
    assert all(row[0].startswith(name) for name, row in marks.items())
    assert marks["new"][0] == "newnew"
    assert marks["gone"][0] == "gonegone"
    assert marks["new"][2] == "–"
    assert marks["gone"][1] == "–"
    assert "(new)" in marks["new"][3]
    page.evaluate(
        "(() => { const field = document.getElementById('compare-by'); field.value = 'user_id'; "
        "field.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    page.until(f"{_GROUPS}.length === 7 && {_GROUPS}[0][0].startsWith('u-')")
    assert "by=user_id" in page.evaluate("location.hash")


def test_two_values_are_chosen_in_the_form_and_exchanged(serving: Pipeline, traffic: Traffic, page: Page) -> None:
    asked = last_hour(traffic)
    page.open(f"{serving.url}/#/compare?{urlencode(asked)}")
    page.until("document.getElementById('compare-with') !== null")
    page.evaluate(
        "(() => { const field = document.getElementById('compare-with'); field.value = 'values'; "
        "field.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    page.until("document.querySelectorAll('.compare-form input').length === 3")
    submit = "document.querySelector('.compare-form button').click()"
    page.evaluate(submit)
    assert page.until("document.querySelector('.compare-wrong')?.innerText") == "Both sides need a value."
    for place, value in ((1, "a"), (2, "b")):
        page.evaluate(f"document.querySelectorAll('.compare-form input')[{place}].select()")
        page.type(value)
    page.evaluate(submit)
    sides = asked | {"model": "a", "compare.model": "b"}
    page.until("location.hash.includes('compare.model=b')")
    assert dict(parse_qsl(urlsplit(page.evaluate("location.hash")[1:]).query)) == sides
    assert_numbers(page, api(serving, "", sides))
    page.evaluate(
        "[...document.querySelectorAll('button')].find((each) => each.innerText.includes('exchange')).click()"
    )
    page.until("location.hash.includes('compare.model=a')")
    other = asked | {"model": "b", "compare.model": "a"}
    page.until(f"({_NUMBERS}).Cost?.[0] === '{usd(api(serving, '', other)['cost']['total_usd'])}'")
    assert_numbers(page, api(serving, "", other))
    page.evaluate("history.back()")
    page.until("location.hash.includes('compare.model=b')")


def test_what_the_api_refuses_and_what_has_no_data_is_said(serving: Pipeline, traffic: Traffic, page: Page) -> None:
    page.open(f"{serving.url}/#/compare?window=1h&compare=banana")
    text = page.until("document.querySelector('.note.error')?.innerText")
    assert "compare: 'banana' is none of before, yesterday, last_week" in text
    page.open(f"{serving.url}/#/compare?window=1h&model=never-called")
    page.until("document.querySelector('main').innerText.includes('No data on either side')")
    shown = page.until(f"Object.keys({_NUMBERS}).length === 11 && {_NUMBERS}")
    assert shown["Cost"] == ["no data", "no data", "no data"]
    assert "there are no calls of known cost" in page.until("document.querySelector('main').innerText")


def test_two_traces_are_matched_by_the_names_above_each_span(serving: Pipeline, page: Page) -> None:
    call = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 5, "comp_tokens": 1}
    one = [
        span("one", 0, None, name="agent", kind="workflow"),
        span("one", 1, 0, name="search"),
        span("one", 2, 0, name="search"),
        span("one", 3, 2, name="answer", cost_usd=0.25, **call),
    ]
    two = [
        span("two, /", 0, None, name="agent", kind="workflow"),
        span("two, /", 1, 0, name="search", status="error", error="failed"),
        span("two, /", 2, 1, name="answer", cost_usd=0.75, **call),
        span("two, /", 3, 0, name=HOSTILE),
    ]
    send(serving, one)
    send(serving, two)
    page.open(f"{serving.url}/#/compare?trace=one&trace={quote('two, /', safe='')}")
    cells = (
        "[...document.querySelectorAll('.compare-traces tbody tr')].map((row) => "
        "[...row.cells].map((cell) => cell.innerText.trim()))"
    )
    rows = page.until(f"{cells}.length === 4 && {cells}")
    assert [row[0] for row in rows] == ["agent", "searchB ✕ 1".replace("B", " B"), "answer", f"{SHOWN}only in B"]
    assert [row[1:3] for row in rows] == [["1", "1"], ["2", "1"], ["1", "1"], ["–", "1"]]
    assert rows[2][6:] == ["$0.25", "$0.75", "▼ −$0.50 (−66.7 %)"]
    assert rows[0][6:8] == ["$0.25", "$0.75"]
    page.open(f"{serving.url}/#/compare?trace=one")
    assert "trace: is given once" in page.until("document.querySelector('.note.error')?.innerText")
    page.open(f"{serving.url}/#/compare?trace=one&trace=absent")
    assert "trace not found" in page.until("document.querySelector('.note.error')?.innerText")
    assert Path(page.evaluate("location.pathname")).name == ""
