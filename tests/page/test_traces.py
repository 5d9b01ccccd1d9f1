"""The list of traces in a real browser that can reach only 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest

from kit.chromium import Page
from kit.page_world import BEGIN, HOSTILE, LISTED, SHOWN, assert_clean, names, needs_chromium, send
from kit.pipeline import Pipeline
from kit.sessions import instant

pytestmark = needs_chromium
MINUTES = 12
_MAIN = "document.querySelector('main').innerText"
_CHIPS = "[...document.querySelectorAll('.chip-text')].map((chip) => chip.innerText)"
_OPTIONS = "[...document.querySelectorAll('[role=option]')].map((option) => option.innerText.replace('\\n', ' '))"
_FOCUS = "document.activeElement.innerText"
_RANGE = "from=2026-03-15T14:00:00Z&to=2026-03-15T14:30:00Z"
#: The list has its rows, and nothing of it is that of another address.
_READY = "document.querySelector('.chart canvas') !== null && document.querySelector('.stale') === null"


def call(number: int) -> dict[str, Any]:
    """Return the call of minute *number*: two models by turns, every third one failed, dearer and longer each."""
    start = BEGIN + timedelta(minutes=number)
    failed = {"status": "error", "error": f"429 of minute {number}"} if number % 3 == 0 else {}
    return {
        "trace_id": f"m{number}",
        "name": f"minute {number}",
        "kind": "llm",
        "model": ("gpt-4o", "gpt-4o-mini")[number % 2],
        "user_id": f"u{number % 4}",
        "prompt_tokens": 1000 * (number + 1),
        "comp_tokens": 1,
        "started_at": instant(start),
        "ended_at": instant(start + timedelta(seconds=number + 1)),
        "attributes": {"team": ("blue", "red")[number % 2]},
        **failed,
    }


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with a trace in each of twelve minutes."""
    pipeline = Pipeline(tmp_path_factory.mktemp("minutes"))
    pipeline.start()
    try:
        for number in range(MINUTES):
            send(pipeline, [call(number)])
        yield pipeline
    finally:
        pipeline.stop()


def show(page: Page, serving: Pipeline, query: str, rows: int) -> None:
    page.open(f"{serving.url}/#/traces?{query}")
    page.until(f"{LISTED} === {rows} && {_READY}")


def params(page: Page) -> str:
    found: str = page.evaluate("decodeURIComponent(location.hash.split('?')[1] ?? '')")
    return found


def test_a_filter_is_made_by_keyboard_from_the_values_that_the_spans_have(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, _RANGE, MINUTES)
    page.press("/")
    page.until(f"({_OPTIONS})[0] === 'status'")
    page.type("mod")
    page.press("Enter")
    page.until(f"({_OPTIONS}).length === 3")
    options = page.evaluate(_OPTIONS)
    assert options[0].startswith("gpt-4o-mini 6 spans, last ")
    assert options[1].startswith("gpt-4o 6 spans, last ")
    page.press("ArrowDown")
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).innerText"
    page.until(f"{active}.startsWith('gpt-4o-mini')")
    page.press("Enter")
    page.until(f"{LISTED} === 6 && {_READY}")
    assert page.evaluate(_CHIPS) == ["model = gpt-4o-mini"]
    page.type("model!=gpt-4o")
    page.press("Enter")
    page.type("cost>=much")
    page.press("Enter")
    assert "is no amount of US dollars" in page.until("document.querySelector('#filter-problem')?.innerText")
    page.press("Escape")
    page.type("model=gpt-4o")
    page.press("Enter")
    page.until(f"({_CHIPS}).length === 3")
    assert page.evaluate(_CHIPS) == ["model = gpt-4o-mini", "or model = gpt-4o", "model ≠ gpt-4o"]
    page.evaluate("document.querySelector('[aria-label=\"remove the filter model ≠ gpt-4o\"]').click()")
    page.until(f"{LISTED} === {MINUTES} && {_READY}")
    assert page.evaluate("document.activeElement.id") == "filter"
    assert_clean(page, minutes)


def test_the_strip_and_the_list_say_the_same_and_a_brush_shows_a_part_of_both(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, _RANGE, MINUTES)
    series = minutes.get("/traces/series?since=2026-03-15T14:00:00Z&until=2026-03-15T14:30:00Z").json()
    strip = page.evaluate("document.querySelector('.traces-sums').innerText")
    assert f"{series['trace_count']} traces" in strip
    assert f"{series['error_count']} failed" in strip
    box = page.evaluate(
        "(() => { const box = document.querySelector('.chart .u-over').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height] })()"
    )
    # Half an hour is as wide as the plot: from the fourth minute to the sixth.
    x = [box[0] + box[2] * minute / 30 for minute in (3.4, 5.6)]
    mouse: dict[str, Any] = {"y": box[1] + box[3] / 2, "button": "left", "clickCount": 1}
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x[0], y=mouse["y"])
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=x[0], **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x[1], **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x[1], **mouse)
    page.until(f"!location.hash.includes('14:30') && {LISTED} < {MINUTES} && {_READY}")
    limits = dict(pair.split("=", 1) for pair in params(page).split("&"))
    asked = minutes.get(f"/traces?since={limits['from']}&until={limits['to']}").json()["traces"]
    assert {"m4", "m5"} <= {row["trace_id"] for row in asked} <= {"m3", "m4", "m5", "m6"}
    assert names(page) == [row["name"] for row in asked]
    page.evaluate("document.activeElement.blur()")
    page.press("z")
    page.until(f"{LISTED} === {MINUTES} && {_READY}")
    assert_clean(page, minutes)


def test_a_column_sorts_and_says_so(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, _RANGE, MINUTES)
    for label, order in (("duration", "duration"), ("tokens", "tokens"), ("cost", "cost"), ("started", "started")):
        button = f"[...document.querySelectorAll('.traces-sort')].find((each) => each.innerText.startsWith('{label}'))"
        page.evaluate(f"{button}.click()")
        page.until(f"document.querySelector('th[aria-sort=descending]')?.innerText.startsWith('{label}') && {_READY}")
        rows = minutes.get(f"/traces?order={order}").json()["traces"]
        page.until(f"document.querySelector('td.name a').innerText === {json.dumps(rows[0]['name'])}")
        assert names(page) == [row["name"] for row in rows]
    assert "order" not in params(page)


def test_an_address_shows_the_same_in_another_tab_and_back_finds_the_place(minutes: Pipeline, page: Page) -> None:
    columns = "&".join(f"columns={name}" for name in ("name", "status", "models", "attr.team"))
    show(page, minutes, f"{_RANGE}&attr.team=blue&not.user_id=u0&order=cost&{columns}", 3)
    shown = page.evaluate(_MAIN)
    assert "blue" in shown
    address = page.evaluate("location.href")
    page.open("about:blank")
    page.open(address)
    page.until(f"{LISTED} === 3 && {_READY}")
    assert page.evaluate(_MAIN) == shown
    page.press("j", "j")
    opened = page.evaluate(_FOCUS)
    assert opened == names(page)[1]
    page.press("Enter")
    page.until(f"document.querySelector('h1').innerText === {json.dumps(opened)}")
    for part in ("attr.team=blue", "not.user_id=u0", "order=cost"):
        assert part in params(page)
    page.evaluate("history.back()")
    page.until(f"{LISTED} === 3 && {_READY}")
    page.until(f"{_FOCUS} === {json.dumps(opened)}")
    assert page.evaluate("location.href") == address
    assert page.evaluate(_MAIN) == shown
    page.evaluate("history.forward()")
    page.until(f"document.querySelector('h1').innerText === {json.dumps(opened)}")
    assert_clean(page, minutes)


def test_cells_filter_and_two_traces_are_compared(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, _RANGE, MINUTES)
    page.press("j", "ArrowRight", "f")
    page.until(f"{LISTED} === 8 && {_READY}")
    assert page.evaluate(_CHIPS) == ["status ≠ error", "status ≠ timeout"]
    page.press("j", "ArrowRight", "ArrowRight", "Enter")
    page.until("document.activeElement.role === 'menuitem'")
    assert page.evaluate("[...document.querySelectorAll('[role=menuitem]')].map((item) => item.innerText)") == [
        "only model gpt-4o-mini",
        "without model gpt-4o-mini",
        "copy",
    ]
    page.press("Escape")
    assert page.evaluate(_FOCUS) == "gpt-4o-mini"
    page.press("Enter", "ArrowDown", "Enter")
    page.until(f"{LISTED} === 4 && {_READY}")
    assert page.evaluate(_CHIPS)[-1] == "model ≠ gpt-4o-mini"
    page.press("j", "x", "j", "x")
    link = page.until("document.querySelector('.traces-compared a')?.getAttribute('href')")
    assert link == "#/compare?trace=m10&trace=m8"


def test_an_empty_list_says_when_the_last_one_was_and_which_filters_to_drop(minutes: Pipeline, page: Page) -> None:
    page.open(f"{minutes.url}/#/traces?window=1h&model=gpt-4o&user_id=u2")
    text = page.until(
        "document.querySelector('.empty')?.innerText.includes('ago') && document.querySelector('.empty').innerText"
    )
    assert "No trace matches the filters in this range." in text
    assert "without model = gpt-4o" in text
    assert "without user = u2" in text
    page.evaluate("[...document.querySelectorAll('.empty button')].find((b) => b.innerText.includes('around')).click()")
    page.until(f"{LISTED} === 3 && {_READY}")
    page.open(f"{minutes.url}/#/traces?model=absent")
    assert "without model = absent" in page.until("document.querySelector('.empty')?.innerText")
    page.evaluate("document.querySelector('.empty button').click()")
    page.until(f"{LISTED} === {MINUTES}")


def test_errors_and_what_is_not_understood_are_told_in_words(minutes: Pipeline, page: Page) -> None:
    page.open(minutes.url + "/#/traces?min_cost=much&colour=red&columns=colour&window=1h&from=x")
    assert "window: cannot stand beside" in page.until("document.querySelector('.note.error')?.innerText")
    wrong = page.evaluate("[...document.querySelectorAll('.chip.wrong')].map((chip) => chip.innerText).join()")
    assert "colour: not understood" in wrong
    assert "there is no column “colour”" in page.evaluate(_MAIN)
    page.open(minutes.url + "/#/traces?min_cost=much")
    page.until("document.querySelector('.note.error')?.innerText.includes(\"min_cost: 'much'\")")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.evaluate("location.hash = '#/traces?min_cost=0'")
    page.until("document.querySelector('.note.error')?.innerText.includes('cannot be reached')")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.evaluate("[...document.querySelectorAll('.note.error button')].forEach((button) => button.click())")
    page.until(f"{LISTED} === {MINUTES}")


def test_an_export_has_the_very_filters_and_every_span(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, f"{_RANGE}&model=gpt-4o&not.user_id=u0", 3)
    page.evaluate("[...document.querySelectorAll('.dropdown summary')].find((s) => s.innerText === 'export').click()")
    page.until("document.querySelectorAll('.traces-export a').length === 2")
    for number, form in enumerate(("jsonl", "csv")):
        fetched = page.evaluate(
            f"fetch(document.querySelectorAll('.traces-export a')[{number}].href).then((answer) => answer.text())"
        )
        wanted = minutes.get(f"/export?model=gpt-4o&not.user_id=u0&format={form}").body.decode()
        assert fetched == wanted
        assert fetched.count("\n") == 3 + number


def test_what_strangers_wrote_is_text_in_chips_menus_columns_and_exports(serving: Pipeline, page: Page) -> None:
    hostile = quote(HOSTILE)
    columns = f"columns=name&columns=status&columns=models&columns=attr.{hostile}&columns=attr.link"
    show(page, serving, f"model={hostile}&{columns}", 1)
    assert page.evaluate(_CHIPS) == [f"model = {SHOWN}"]
    cells = page.evaluate("[...document.querySelectorAll('tbody td')].map((cell) => cell.innerText)")
    assert cells[1:4] == [f"{SHOWN}\n{SHOWN}", "✕ error", SHOWN]
    assert cells[4].startswith(SHOWN[:20])
    assert cells[5] == "javascript:alert(3)"
    assert f"attr.{SHOWN}" in page.evaluate("document.querySelector('thead').innerText")
    page.evaluate("document.querySelector('.chip-text').click()")
    page.until(f"({_OPTIONS}).some((option) => option.startsWith({json.dumps(SHOWN[:30])}))")
    page.press("Escape")
    page.evaluate("document.querySelector('td.traces-text button').click()")
    page.until("document.querySelector('[role=menu]')?.innerText.includes('only model <img')")
    assert page.evaluate("document.querySelectorAll('img, script:not([src]), a[href^=javascript]').length") == 0
    exported = page.evaluate(f"fetch('./export?model={hostile}').then((answer) => answer.json())")
    assert exported["error"] == HOSTILE
    assert_clean(page, serving)


def test_a_hundred_new_traces_wait_behind_a_button_so_that_no_row_moves(minutes: Pipeline, page: Page) -> None:
    show(page, minutes, "model=live-model&model=gpt-4o", 6)
    minutes.until(lambda: b"tokentrace_api_tails 1.0" in minutes.get("/internal/metrics").body, "followed")
    before = names(page)
    page.press("j")
    place = page.evaluate("document.activeElement.getBoundingClientRect().top")
    fresh = [{"model": "live-model", "prompt_tokens": 5, "comp_tokens": 1, "latency_ms": 20, "name": "new"}] * 100
    for start in range(0, 100, 40):
        part = [{**each, "trace_id": f"new{start + at}"} for at, each in enumerate(fresh[start : start + 40])]
        assert minutes.post("/spans", part).status == 202
    page.until("[...document.querySelectorAll('button')].some((each) => each.innerText === '↑ 100 new')")
    assert names(page) == before
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") == place
    page.press("r")
    page.until(f"{LISTED} === 100 && {_READY}")
    assert set(names(page)) == {"new"}
    page.press("l")
    minutes.until(lambda: b"tokentrace_api_tails 0.0" in minutes.get("/internal/metrics").body, "not followed")
    assert_clean(page, minutes)
