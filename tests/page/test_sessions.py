"""The list of sessions in a real browser: cards, filters, order, pages, and exports of all pages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kit.chromium import Page
from kit.page_world import HOSTILE, SHOWN, assert_clean, needs_chromium
from kit.pipeline import Pipeline
from kit.session_world import MANY, report_sessions

pytestmark = needs_chromium
ALL = MANY + 3
_ROWS = "[...document.querySelectorAll('.sessions-list tbody tr')]"
_IDS = f"{_ROWS}.map((row) => (row.querySelector('td.name .dim') ?? row.querySelector('td.name a')).innerText)"
_TEXT = "document.querySelector('main')?.innerText ?? ''"
_CARDS = "[...document.querySelectorAll('.sessions-cards > div')].map((card) => card.innerText.split('\\n'))"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with the sessions of ``kit.session_world``."""
    pipeline = Pipeline(tmp_path_factory.mktemp("sessions"))
    pipeline.start()
    try:
        report_sessions(pipeline)
        yield pipeline
    finally:
        pipeline.stop()


def click(page: Page, text: str) -> None:
    page.evaluate(
        f"[...document.querySelectorAll('main button')].find((each) => each.innerText.trim() === '{text}').click()"
    )


def fill(page: Page, field: str, text: str) -> None:
    page.evaluate(f"document.getElementById('{field}').select()")
    page.type(text)


def choose(page: Page, field: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const field = document.getElementById('{field}'); field.focus(); field.value = '{value}'; "
        "field.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )


def ids(page: Page) -> list[str]:
    found: list[str] = page.evaluate(_IDS)
    return found


def all_sessions(serving: Pipeline, query: str = "") -> list[dict[str, Any]]:
    """Return the sessions of all pages of the API, which are read one by one."""
    sessions: list[dict[str, Any]] = []
    for number in range(1, 100):
        answer = serving.get(f"/api/sessions?limit=7&page={number}&{query}").json()
        sessions += answer["sessions"]
        if number >= answer["pages"]:
            return sessions
    raise AssertionError("there is no end")


def test_cards_and_rows_are_those_of_the_api_and_nothing_divides_by_zero(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions")
    page.until(f"{_ROWS}.length === 20 && {_CARDS}.length === 4")
    summary = serving.get("/api/sessions/summary").json()
    cards = page.evaluate(_CARDS)
    assert [card[0] for card in cards] == ["Sessions", "Active", "Cost", "Mean duration"]
    assert cards[0][1] == str(summary["totalSessions"]) == str(ALL)
    assert cards[1][1] == str(summary["activeSessions"])
    assert cards[2][1] == f"${summary['totalCost']:.3f}"
    # No session was ended: that mean is not 0, there is none.
    assert summary["avgDuration"] == 0
    assert cards[3][1:] == ["–", "no session was ended"]
    assert ids(page) == [session["sessionId"] for session in serving.get("/api/sessions").json()["sessions"]]
    assert "page 1 of 3" in page.evaluate(_TEXT)
    page.open(serving.url + "/#/sessions?label=cmd")
    row = page.until(f"{_ROWS}.length === 1 && {_ROWS}[0].innerText")
    assert "\t0 ms\t" in row
    assert "NaN" not in row
    assert_clean(page, serving)


def test_every_filter_is_a_parameter_of_the_api_and_stays_in_the_address(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions")
    page.until(f"{_ROWS}.length === 20")
    page.press("/")
    page.until("document.activeElement.id === 'filter'")
    page.type("chat")
    fill(page, "sessions-userId", "user-1")
    fill(page, "sessions-minCost", "0.0035")
    fill(page, "sessions-maxCost", "0.0105")
    fill(page, "sessions-minSpans", "2")
    fill(page, "sessions-maxSpans", "3")
    page.press("Enter")
    page.until("location.hash.includes('maxSpans=3')")
    choose(page, "sessions-status", "active")
    page.until("location.hash.includes('status=active')")
    choose(page, "sessions-source", "spans")
    page.until("location.hash.includes('source=spans')")
    assert page.evaluate("document.activeElement.id") == "sessions-source"
    given = {name: value for name, [value] in parse_qs(page.evaluate("location.hash").partition("?")[2]).items()}
    wanted = {"label": "chat", "userId": "user-1", "minCost": "0.0035", "maxCost": "0.0105", "minSpans": "2"}
    assert given == wanted | {"maxSpans": "3", "status": "active", "source": "spans"}
    query = "&".join(f"{name}={value}" for name, value in given.items())
    expected = [session["sessionId"] for session in all_sessions(serving, query)]
    assert 0 < len(expected) < 20
    page.until(f"JSON.stringify({_IDS}) === '{json.dumps(expected, separators=(',', ':'))}'")
    last = next(url for url in reversed(page.requested()) if "/api/sessions?" in url)
    assert {name: value for name, [value] in parse_qs(urlsplit(last).query).items()} == given
    # The cards are those of the filtered sessions.
    page.until(f"({_CARDS})[0]?.[1] === '{len(expected)}'")
    shown, address = page.evaluate(_TEXT), page.evaluate("location.href")
    page.open("about:blank")
    page.open(address)
    page.until(f"{_ROWS}.length === {len(expected)} && {_CARDS}.length === 4")
    assert page.evaluate(_TEXT) == shown
    assert page.evaluate("document.getElementById('sessions-maxSpans').value") == "3"
    click(page, "clear")
    page.until(f"{_ROWS}.length === 20 && !location.hash.includes('?')")
    page.evaluate("history.back()")
    page.until(f"{_ROWS}.length === {len(expected)}")
    assert_clean(page, serving)


def test_the_range_of_the_header_bounds_the_start_of_sessions(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions?from=2026-03-15T14:00:10Z&to=2026-03-15T14:00:12Z")
    page.until(f'JSON.stringify({_IDS}) === \'["small-12","small-11","small-10"]\'')
    page.until(f"({_CARDS})[0]?.[1] === '3'")
    page.open(serving.url + "/#/sessions?window=1h")
    page.until(f"JSON.stringify({_IDS}) === '[\"talk\"]'")


@pytest.mark.parametrize("order", ["cost", "duration", "tokens", "spans"])
def test_a_click_on_a_head_sorts_all_pages(serving: Pipeline, page: Page, order: str) -> None:
    page.open(serving.url + "/#/sessions?page=2")
    page.until(f"{_ROWS}.length === 20")
    click(page, order)
    page.until(f"location.hash === '#/sessions?order={order}'")
    expected = [each["sessionId"] for each in all_sessions(serving, f"order={order}")]
    page.until(f"JSON.stringify({_IDS}) === '{json.dumps(expected[:20], separators=(',', ':'))}'")
    heads = "[...document.querySelectorAll('th[aria-sort=descending]')].map((head) => head.innerText)"
    assert page.evaluate(heads) == [f"{order} ▾"]
    click(page, "next ›")
    page.until(f"JSON.stringify({_IDS}) === '{json.dumps(expected[20:40], separators=(',', ':'))}'")
    click(page, "last »")
    page.until(f"JSON.stringify({_IDS}) === '{json.dumps(expected[40:], separators=(',', ':'))}'")
    assert "page 3 of 3" in page.evaluate(_TEXT)


def test_exports_hold_all_pages_as_the_api_has_them_and_no_formula(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions?order=cost&page=2")
    page.until(f"{_ROWS}.length === 20")
    hrefs = page.evaluate("[...document.querySelectorAll('main a[download]')].map((link) => link.getAttribute('href'))")
    exported = serving.get(hrefs[0].removeprefix("."))
    assert exported.headers["content-disposition"] == 'attachment; filename="sessions.json"'
    expected = all_sessions(serving, "order=cost")
    assert len(expected) == ALL
    assert exported.json() == expected
    table = serving.get(hrefs[1].removeprefix("."))
    assert table.body.startswith(b"\xef\xbb\xbfsession_id,")
    rows = list(csv.DictReader(io.StringIO(table.body.decode("utf-8-sig"), newline="")))
    assert [row["session_id"] for row in rows] == [session["sessionId"] for session in expected]
    for row, session in zip(rows, expected, strict=True):
        cost = session["totalCostUSD"]
        assert row["cost_usd"] == ("" if cost is None else str(cost))
        assert (row["spans"], row["started_at"]) == (str(session["totalSpans"]), session["startedAt"])
        assert row["error"] == session.get("error", {}).get("message", "")
        assert (row["messages"], row["duration_ms"]) == (str(session["messageCount"]), str(session["duration"]))
    [hostile] = [row for row in rows if row["session_id"] == "hostile"]
    assert hostile["label"] == "'=cmd|' /C calc'!A0" + HOSTILE
    assert hostile["user_id"] == "'=1+1"
    assert not [text for row in rows for text in row.values() if text[:1] in "=+-@\t\r" and text]
    # A filtered list exports what it shows, of all pages.
    page.open(serving.url + "/#/sessions?status=error")
    page.until(f"{_ROWS}.length === 7")
    [link, _] = page.evaluate(
        "[...document.querySelectorAll('main a[download]')].map((link) => link.getAttribute('href'))"
    )
    assert serving.get(link.removeprefix(".")).json() == all_sessions(serving, "status=error")
    assert serving.get("/api/sessions/export?format=xml").status == 400
    assert serving.get("/api/sessions/export?label=absent").json() == []


def test_hostile_texts_are_text_and_what_is_not_understood_is_told(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions?label=cmd&colour=red")
    row = page.until(f"{_ROWS}.length === 1 && {_ROWS}[0].innerText")
    assert SHOWN in row
    assert "colour: not understood" in page.evaluate(_TEXT)
    page.open(serving.url + "/#/sessions?minCost=much")
    note = page.until("document.querySelector('.note.error')?.innerText")
    assert serving.get("/api/sessions?minCost=much").json()["error"] in note
    page.open(serving.url + "/#/sessions?label=absent")
    assert "No session matches." in page.until("document.querySelector('.empty')?.innerText")
    assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
    click(page, "without label = absent")
    page.until(f"{_ROWS}.length === 20")


def test_keys_lead_through_the_list(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions?status=error")
    page.until(f"{_ROWS}.length === 7")
    page.press("j", "j")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2
    page.press("End", "k")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 6
    name = ids(page)[5]
    page.press("Enter")
    page.until(f"location.hash.startsWith('#/sessions/{name}')")
    page.press("g", "s")
    page.until(f"{_ROWS}.length === 20")
    assert page.evaluate("document.activeElement.tagName") == "H1"


def test_a_new_session_moves_no_row_before_it_is_asked_for(tmp_path: Path, page: Page) -> None:
    pipeline = Pipeline(tmp_path / "live")
    pipeline.start()
    call = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "latency_ms": 20}
    try:
        page.open(pipeline.url + "/#/sessions")
        assert "No span has one yet" in page.until(f"({_TEXT}).includes('session_id') && ({_TEXT})")
        assert pipeline.post("/spans", {**call, "session_id": "first"}).status == 202
        page.until(f"JSON.stringify({_IDS}) === '[\"first\"]'")
        assert pipeline.post("/spans", {**call, "session_id": "second"}).status == 202
        page.until("[...document.querySelectorAll('main button')].some((each) => each.innerText === '↑ 1 new')")
        assert ids(page) == ["first"]
        page.press("r")
        page.until(f"{_ROWS}.length === 2")
    finally:
        pipeline.stop()
