"""A session in a real browser: its facts, its error, its conversation, the waterfall of its traces, and its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.chromium import Page
from kit.page_world import DRAWER, GRID, HOSTILE, ROWS, SELECTED, SHOWN, assert_clean, needs_chromium
from kit.pipeline import Pipeline
from kit.session_world import LARGE, LONG, report_sessions
from kit.sessions import details, graph

pytestmark = needs_chromium
_TEXT = "document.querySelector('main')?.innerText ?? ''"
_MESSAGES = "[...document.querySelectorAll('.session-message')]"
_CARDS = "[...document.querySelectorAll('.sessions-cards > div')].map((card) => card.innerText.split('\\n'))"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with the sessions of ``kit.session_world``."""
    pipeline = Pipeline(tmp_path_factory.mktemp("session"))
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


def test_three_levels_and_an_open_span_are_shown_with_facts_error_and_stack(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions/talk")
    page.until(f"{ROWS} === 3")
    session, nodes = details(serving, "talk"), graph(serving, "talk")["nodes"]
    assert [node["depth"] for node in nodes] == [0, 1, 2]
    assert {node["trace_id"] for node in nodes} == {session["error"]["trace_id"]}
    levels = "[...document.querySelectorAll('.row')].map((row) => row.getAttribute('aria-level'))"
    assert page.evaluate(levels) == ["1", "2", "3"]
    assert page.evaluate("document.querySelector('h1').innerText") == "Refund"
    cards = page.evaluate(_CARDS)
    assert [card[0] for card in cards] == ["Started", "Duration", "Spans", "Tokens", "Cost"]
    assert cards[2][1:] == ["3", "1 open, 1 with errors"]
    assert cards[3][1] == "1,200 → 300"
    assert cards[4][1:] == ["$0.006", "user ada"]
    # The open span reaches to now, which is the end of the axis, and grows.
    share = f"document.querySelector('.row .bar-of').getBoundingClientRect().width / {GRID}.clientWidth"
    assert page.evaluate(share) > 0.3
    assert "…" in page.evaluate("document.querySelector('.row').innerText")
    text = page.evaluate(_TEXT)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert "quota of the day" in text
    page.evaluate("document.querySelector('.note.error details').open = true")
    assert "refund.py, line 7" in page.evaluate("document.querySelector('.note.error').innerText")
    # A failed session that goes on is not active; only those can be ended here.
    assert "End session" not in text
    click(page, "show its span")
    page.until(f"({SELECTED}).includes('write answer')")
    assert page.evaluate(f"document.activeElement === {GRID}")
    assert_clean(page, serving)


def test_the_conversation_has_roles_spans_redactions_and_pages(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions/talk")
    page.until(f"{_MESSAGES}.length === 50 && {ROWS} === 3")
    texts = page.evaluate(f"{_MESSAGES}.map((message) => message.innerText)")
    assert [text.split("\n")[0] for text in texts[:3]] == ["user", "assistant", "tool"]
    assert "redacted" in texts[0]
    assert "[EMAIL_REDACTED], where is my money?" in texts[0]
    assert "ada@example.com" not in page.evaluate("document.documentElement.innerHTML")
    assert LONG.strip() not in texts[1]
    assert "2,000 more characters" in texts[1]
    assert SHOWN in texts[2]
    page.evaluate(f"[...{_MESSAGES}[1].querySelectorAll('button')].find((each) => each.innerText === 'show').click()")
    page.until(f"{_MESSAGES}[1].innerText.includes({LONG.strip()!r})")
    # Its span is selected in the waterfall below.
    page.evaluate(f"{_MESSAGES}[2].querySelector('.session-span').click()")
    page.until(f"({SELECTED}).includes('look up order')")
    click(page, "later ›")
    page.until(f"{_MESSAGES}.length === 13 && {_MESSAGES}[12].innerText.includes('message 59')")
    assert page.evaluate("document.querySelector('.session-messages').start") == 51
    address = page.evaluate("location.href")
    assert "offset=50" in address
    page.open("about:blank")
    page.open(address)
    page.until(f"{_MESSAGES}.length === 13 && ({SELECTED}).includes('look up order')")
    click(page, "‹ earlier")
    page.until(f"{_MESSAGES}.length === 50")
    page.evaluate("history.back()")
    page.until(f"{_MESSAGES}.length === 13")
    assert_clean(page, serving)


def test_a_session_of_5000_spans_in_five_traces_opens_and_scrolls(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions/large")
    page.until(f"{GRID} !== null && {ROWS} > 0")
    # The row of heads counts as well.
    assert page.evaluate(f"{GRID}.getAttribute('aria-rowcount')") == str(LARGE + 1)
    most = page.evaluate(f"Math.ceil({GRID}.clientHeight / 28) + 16")
    for top in (0, 50_000, 139_000, 100):
        page.evaluate(f"{GRID}.scrollTop = {top}")
        page.until(
            f"(() => {{ const box = {GRID}.getBoundingClientRect(); "
            "const seen = Math.min(box.height, innerHeight - box.top); "
            "return [0.2, 0.8].every((part) => "
            "document.elementFromPoint(box.left + 40, box.top + part * seen)?.closest('.row')) })()"
        )
        assert 0 < page.evaluate(ROWS) <= most
    page.evaluate(f"{GRID}.focus()")
    page.press("End")
    page.until(f"({SELECTED}).includes('step 999 of 4')")
    page.press("Enter")
    drawer = page.until(f"({DRAWER}).includes('step 999 of 4') && ({DRAWER})")
    assert "tool" in drawer
    page.press("Escape")
    page.until("document.querySelector('aside') === null")
    link = page.evaluate("document.querySelector('.session-trace').getAttribute('href')")
    assert link == "#/traces/large-4?span=n999"
    assert_clean(page, serving)


def test_ending_a_session_asks_once_and_is_seen_in_the_list(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/sessions?label=chat+44")
    page.until("document.querySelectorAll('.sessions-list tbody tr').length === 1")
    page.press("j", "Enter")
    page.until("location.hash.startsWith('#/sessions/small-44?')")
    page.until("[...document.querySelectorAll('main button')].some((each) => each.innerText === 'End session')")
    click(page, "End session")
    assert "End the session “chat 44”?" in page.until("document.querySelector('main dialog[open]')?.innerText")
    page.evaluate("document.querySelector('main dialog .bar button:last-child').click()")
    page.until("document.querySelector('main dialog[open]') === null")
    assert details(serving, "small-44")["status"] == "active"
    click(page, "End session")
    page.until("document.querySelector('main dialog[open]') !== null")
    page.evaluate("document.querySelector('main dialog .bar button').click()")
    page.until(f"({_TEXT}).includes('✓ completed')")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    ended = details(serving, "small-44")
    assert ended["status"] == "completed"
    assert "endedAt" in ended
    assert "End session" not in page.evaluate(_TEXT)
    assert "until it was ended" in page.evaluate(_TEXT)
    page.evaluate("document.querySelector('.session-back a').click()")
    # The filters of the list were kept, and the mean is now one of a session.
    page.until("location.hash === '#/sessions?label=chat+44'")
    page.until("document.querySelector('.sessions-list tbody tr')?.innerText.includes('✓ completed')")
    page.until(f"({_CARDS})[3]?.[2] === 'of the 1 that were ended'")
    assert_clean(page, serving)


def test_a_session_without_time_and_with_hostile_texts_is_text_and_divides_by_nothing(
    serving: Pipeline, page: Page
) -> None:
    page.open(serving.url + "/#/sessions/hostile?shape=round&zoom=wide")
    page.until(f"{ROWS} === 1")
    text = page.evaluate(_TEXT)
    assert page.evaluate("document.querySelector('h1').innerText") == "=cmd|' /C calc'!A0" + SHOWN
    assert text.count(SHOWN) >= 3
    assert HOSTILE not in text
    for wrong in ("NaN", "Infinity", "undefined"):
        assert wrong not in text
    assert "shape: not understood" in text
    assert "zoom: not understood" in text
    assert page.evaluate(_CARDS)[1][1] == "0 ms"
    bar = page.evaluate("document.querySelector('.row .bar-of').getBoundingClientRect().width")
    assert 0 < bar < 2000
    assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
    page.open(serving.url + "/#/sessions/absent")
    assert "Session absent not found" in page.until("document.querySelector('.note.error')?.innerText")
