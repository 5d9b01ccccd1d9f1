"""What all pages share, in a real browser that can reach only 127.0.0.1: the zone and the login."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.chromium import Page
from kit.every_page import resize
from kit.page_world import DRAWER, LISTED, needs_chromium
from kit.pipeline import Pipeline

pytestmark = needs_chromium


@pytest.mark.parametrize(
    ("zone", "offset", "shown"),
    [
        ("UTC", "UTC", "2026-03-15 14:00:00.000"),
        ("Asia/Kolkata", "UTC+05:30", "2026-03-15 19:30:00.000"),
        ("America/New_York", "UTC-04:00", "2026-03-15 10:00:00.000"),
    ],
)
def test_times_are_in_the_zone_of_the_browser_and_addresses_are_not(
    serving: Pipeline, page: Page, zone: str, offset: str, shown: str
) -> None:
    page.call("Emulation.setTimezoneOverride", timezoneId=zone)
    address = f"{serving.url}/#/traces?from=2026-03-15T13:59:00Z&to=2026-03-15T14:01:00Z"
    page.open(address)
    page.until(f"{LISTED} === 3")
    assert page.evaluate("document.querySelector('td.time').innerText") == shown
    page.open(f"{serving.url}/#/traces/many?span=s0&tab=receipt")
    assert f"{shown} {offset}" in page.until(f"({DRAWER}).includes('started') && ({DRAWER})")
    assert f"{shown} {offset}" in page.evaluate("document.querySelector('main .bar').innerText")


def test_in_a_narrow_window_the_header_takes_two_rows_and_all_of_it_can_be_reached(
    serving: Pipeline, page: Page
) -> None:
    resize(page, 320, 640)
    page.open(serving.url + "/#/health")
    page.until("document.querySelector('main h1')?.innerText === 'Health'")
    assert page.evaluate("document.querySelector('header').offsetHeight") <= 90
    is_seen = "((box) => box.left >= 0 && box.right <= document.documentElement.clientWidth)"
    # The link of the page that is shown is seen without scrolling, also when those before it get wider.
    here = f"{is_seen}(document.querySelector('header [aria-current]').getBoundingClientRect())"
    page.until(here)
    page.evaluate("document.querySelector('header nav a').append(' and all the others')")
    page.until(here)
    page.open(serving.url + "/#/?window=1h")
    page.until("document.querySelector('#range') !== null")
    reached = []
    page.evaluate("document.querySelector('header a').focus()")
    while page.evaluate("document.activeElement.closest('header') !== null"):
        page.until(f"{is_seen}(document.activeElement.getBoundingClientRect())")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText.split(/\\s/)[0]"))
        page.press("Tab")
    assert reached[:6] == ["Overview", "Traces", "Compare", "Sessions", "Alerts", "Health"]
    assert reached[-3:] == ["zone", "theme", "?"]
    assert "range" in reached


def test_the_first_span_appears_by_itself_after_a_login_that_no_script_can_read(tmp_path: Path, page: Page) -> None:
    pipeline = Pipeline(tmp_path / "keyed", env={"TOKENTRACE_AUTH_TOKEN": "the-token"})
    pipeline.start()
    try:
        page.open(pipeline.url + "/#/traces?model=gpt-4o")
        page.until("document.getElementById('token') !== null")
        for token, expected in (
            ("wrong", "document.querySelector('.note.error')?.innerText.includes('token: is wrong')"),
            ("the-token", "document.querySelector('.empty')?.innerText.includes('without model')"),
        ):
            page.evaluate("document.getElementById('token').select()")
            page.type(token)
            page.press("Enter")
            page.until(expected)
        assert page.evaluate("location.hash") == "#/traces?model=gpt-4o"
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("JSON.stringify([Object.keys(localStorage), Object.keys(sessionStorage)])") == "[[],[]]"
        [cookie] = page.call("Network.getCookies")["cookies"]
        assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (
            f"tokentrace-{pipeline.port}",
            True,
            "Strict",
        )
        page.evaluate("document.querySelector('.empty button').click()")
        page.until("document.querySelector('.empty')?.innerText.includes('Waiting')")
        bearer = {"Authorization": "Bearer the-token"}
        page.until("performance.getEntriesByType('resource').length > 0")
        first = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "name": "first span"}
        for _ in range(3):
            assert pipeline.post("/spans", first, bearer).status == 202
        page.until("document.querySelector('td.name')?.innerText === 'first span'")
        page.evaluate("[...document.querySelectorAll('button')].find((b) => b.innerText === 'Log out').click()")
        page.until("document.getElementById('token') !== null")
        assert page.call("Network.getCookies")["cookies"] == []
        unexpected = page.problems(401)
        assert unexpected == []
    finally:
        pipeline.stop()
