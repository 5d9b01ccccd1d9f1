"""What is done with a trace on the page, and traces that are unlike others: messages, scores, deletion, open spans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kit.chromium import Page
from kit.page_world import BEGIN, DRAWER, GRID, HOSTILE, ROWS, SHOWN, assert_clean, needs_chromium, send, span
from kit.pipeline import Pipeline
from kit.sessions import instant

pytestmark = needs_chromium
PANEL = "document.querySelector('#panel')?.innerText ?? ''"
CALL = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 1000, "comp_tokens": 200}
MESSAGES = {
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Write to anna@example.com"}]),
    "gen_ai.input.messages": json.dumps([{"role": HOSTILE, "parts": [{"type": "text", "content": HOSTILE}]}]),
    "gen_ai.output.messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "tool_call", "name": HOSTILE, "arguments": {"to": HOSTILE}}]}]
    ),
    "picture": "iVBORw0KGgo9" * 100,
    "team": "search",
}


def conversation() -> list[dict[str, Any]]:
    """Return a trace with the messages of a stranger, a child that lies outside its parent, and idle time."""
    late = BEGIN + timedelta(seconds=50)
    return [
        span("talk", 0, None, name="agent", kind="agent", ended_at=instant(late)),
        span("talk", 1, 0, name="answer", **CALL, attributes=MESSAGES, ttft_ms=150),
        span("talk", 2, 1, name="late child", started_at=instant(late - timedelta(seconds=10)), ended_at=instant(late)),
        span("talk", 3, 0, name="wrap up", started_at=instant(late - timedelta(seconds=5)), ended_at=instant(late)),
    ]


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with the traces of this file."""
    pipeline = Pipeline(tmp_path_factory.mktemp("trace"))
    pipeline.start()
    try:
        send(pipeline, conversation())
        for number in range(3):
            start = BEGIN + timedelta(minutes=number)
            times = {"started_at": instant(start), "ended_at": instant(start + timedelta(seconds=1))}
            send(pipeline, [span(f"row{number}", 0, None, name=f"row {number}", **times, **CALL)])
        send(pipeline, [span("gone", 0, None, name=HOSTILE), span("gone", 1, 0)])
        yield pipeline
    finally:
        pipeline.stop()


def test_messages_are_told_with_their_roles_and_what_was_removed_from_them(working: Pipeline, page: Page) -> None:
    page.open(f"{working.url}/#/traces/talk?span=s1&tab=messages")
    page.until("document.querySelectorAll('.message').length === 3")
    roles = page.evaluate("[...document.querySelectorAll('.message h3')].map((each) => each.textContent)")
    assert roles == ["system", SHOWN, "assistant"]
    text = page.evaluate(PANEL)
    # The role, the text, the name of the tool, and its argument.
    assert text.count(SHOWN) == 4
    assert '{"to":' in text
    assert "1 removed" in text
    assert page.evaluate("document.querySelector('.message mark').textContent") == "[EMAIL_REDACTED]"
    page.evaluate("document.getElementById('tab-attributes').click()")
    attributes = page.until(f"({PANEL}).includes('team') && ({PANEL})")
    assert "base64, 1,200 characters" in attributes
    assert "iVBORw0KGgo9" not in page.evaluate("document.body.innerText")
    link = "[...document.querySelectorAll('#panel a')].filter((each) => each.href.includes('attr.team'))"
    hrefs = page.evaluate(f"{link}.map((each) => decodeURIComponent(each.hash))")
    assert hrefs == ["#/traces?attr.team=search", "#/traces?not.attr.team=search"]
    page.evaluate("document.getElementById('tab-json').click()")
    assert "base64, 1200 characters" in page.until(f"({PANEL}).includes('gen_ai') && ({PANEL})")
    assert page.evaluate("document.querySelectorAll('img, script:not([src]), a[href^=javascript]').length") == 0
    assert_clean(page, working)


def test_the_lines_of_a_receipt_add_up_exactly_to_its_sum_and_to_the_cost_of_the_span(
    working: Pipeline, page: Page
) -> None:
    page.open(f"{working.url}/#/traces/talk?span=s1&tab=receipt")
    page.until("document.querySelector('#panel tfoot') !== null")
    cells = "[...document.querySelectorAll('#panel tbody tr, #panel tfoot tr')].map((row) => row.lastChild.textContent)"
    *lines, total = [Decimal(text.replace("−", "-").replace("$", "")) for text in page.evaluate(cells)]
    assert len(lines) == 2
    assert sum(lines) == total
    cost = working.get("/traces/talk/spans/s1").json()["cost_usd"]
    assert float(total) == cost
    assert "exact: computed from the price table" in page.evaluate(PANEL)
    assert_clean(page, working)


def test_a_score_is_added_and_removed_and_a_wrong_one_is_refused_in_the_words_of_the_api(
    working: Pipeline, page: Page
) -> None:
    page.open(f"{working.url}/#/traces/row0?tab=scores")
    page.until("document.getElementById('score-value') !== null")
    for written, answer in (("7", "value"), ("", "value"), ("good", "value")):
        page.evaluate("document.getElementById('score-value').select()")
        if written:
            page.type(written)
        else:
            page.evaluate("document.getElementById('score-value').value = ''")
            page.evaluate("document.getElementById('score-value').dispatchEvent(new Event('input', { bubbles: true }))")
        page.evaluate("document.getElementById('score-value').focus()")
        page.press("Enter")
        assert answer in page.until(f"({PANEL}).includes('answered 400') && ({PANEL})")
        page.evaluate("document.querySelector('#panel .note.error button').click()")
        page.until("document.querySelector('#panel .note.error') === null")
    assert "eval.score" not in working.get("/traces/row0/spans/s0").json().get("attributes", {})
    page.evaluate("document.getElementById('score-value').select()")
    page.type("0.75")
    page.press("Enter")
    page.until("document.querySelector('#panel table')?.innerText.includes('0.750')")
    assert working.get("/traces/row0/spans/s0").json()["attributes"]["eval.score"] == 0.75
    page.evaluate("document.querySelector('#panel table button').click()")
    page.until("document.querySelector('#panel table') === null")
    assert "eval.score" not in working.get("/traces/row0/spans/s0").json().get("attributes", {})
    unexpected = page.problems(400)
    assert unexpected == []


def test_the_trace_before_and_after_are_those_of_the_filtered_list(working: Pipeline, page: Page) -> None:
    page.open(f"{working.url}/#/traces/row1?model=gpt-4o&not.name=row+0")
    around = "document.querySelector('.around')?.innerText.replace(/\\s+/g, ' ')"
    page.until(f"({around})?.includes('2 of 3')")
    page.evaluate("[...document.querySelectorAll('.around a')].find((each) => each.innerText.includes('prev')).click()")
    page.until("location.hash.startsWith('#/traces/row2?') && document.querySelector('h1').innerText === 'row 2'")
    page.until(f"({around})?.includes('1 of 3')")
    assert "model=gpt-4o&not.name=row+0" in page.evaluate("location.hash")
    page.evaluate("history.back()")
    page.until(f"({around})?.includes('2 of 3')")
    page.evaluate("[...document.querySelectorAll('.around a')].find((each) => each.innerText.includes('next')).click()")
    page.until("document.querySelector('h1').innerText === 'agent'")
    page.until(f"({around})?.includes('3 of 3') && document.querySelectorAll('.around a').length === 1")
    page.open(f"{working.url}/#/traces/talk?model=none")
    page.until(f"({around})?.includes('not among the 0 of the list')")
    assert_clean(page, working)


def test_idle_time_is_compressed_when_asked_and_a_child_outside_its_parent_is_marked(
    working: Pipeline, page: Page
) -> None:
    page.open(f"{working.url}/#/traces/talk")
    page.until(f"{ROWS} === 4")
    label = page.evaluate("document.getElementById('row-2').querySelector('.label').title")
    assert "ends 49.0 s after its parent" in label
    assert page.evaluate("document.querySelectorAll('.gap').length") == 0
    left = "parseFloat(document.getElementById('row-2').querySelector('.bar-of').style.left)"
    assert page.evaluate(left) == pytest.approx(80, abs=0.1)
    page.evaluate("[...document.querySelectorAll('button')].find((each) => each.innerText.includes('idle')).click()")
    page.until("document.querySelectorAll('.axis .gap').length === 1")
    assert "idle, compressed" in page.evaluate("document.querySelector('.axis .gap').title")
    assert page.evaluate(left) < 20
    assert "idle=compressed" in page.evaluate("location.hash")
    assert_clean(page, working)


def test_the_critical_path_is_outlined_and_costs_of_parents_are_sums(working: Pipeline, page: Page) -> None:
    page.open(f"{working.url}/#/traces/talk")
    page.until(f"{ROWS} === 4")
    assert page.evaluate("document.querySelectorAll('.critical').length") == 0
    page.press("p")
    page.until("document.querySelectorAll('.critical').length > 0")
    assert "path=critical" in page.evaluate("location.hash")
    cost = "[...document.querySelectorAll('.row')].map((row) => row.querySelector('.number').textContent)"
    agent, answer, late, _ = page.evaluate(cost)
    assert agent == answer == "$0.0045"
    assert late == "$0"
    page.press("p")
    page.until("document.querySelectorAll('.critical').length === 0")
    assert_clean(page, working)


def test_a_trace_is_deleted_after_one_question_that_names_it(working: Pipeline, page: Page) -> None:
    page.open(f"{working.url}/#/traces/gone")
    page.until(f"{ROWS} === 2")
    button = "[...document.querySelectorAll('button')].find((each) => each.innerText === '{}').click()"
    page.evaluate(button.format("delete…"))
    dialog = "document.querySelector('dialog.confirm[open]')?.innerText"
    asked = page.until(dialog)
    assert SHOWN in asked
    assert "gone, 2 spans" in asked
    assert page.evaluate("document.activeElement.innerText") == "keep it"
    page.press("Enter")
    page.until("document.querySelector('dialog.confirm[open]') === null")
    assert working.get("/traces/gone").status == 200
    page.evaluate(button.format("delete…"))
    page.until(dialog)
    page.evaluate(button.format("delete the trace"))
    told = page.until(f"({dialog})?.includes('Deleted') && ({dialog})")
    assert "2 ended spans are deleted" in told
    assert "The log will have discarded its records of them by" in told
    assert working.get("/traces/gone").status == 404
    page.evaluate(button.format("to the traces"))
    page.until("location.hash.startsWith('#/traces') && document.querySelector('h1').innerText !== 'gone'")
    assert_clean(page, working)


def test_open_spans_grow_with_the_clock_until_they_end(working: Pipeline, page: Page) -> None:
    started = working.post("/api/traces/start", {"name": "running", "sessionId": "open", "traceId": "running"})
    assert started.status in (200, 201, 202)
    working.until(lambda: working.get("/traces/running").status == 200, "it is open")
    page.open(f"{working.url}/#/traces/running")
    page.until(f"{ROWS} === 1")
    assert "duration: open" in page.evaluate("document.querySelector('.row .lane').title")
    assert page.evaluate("document.querySelector('.bar-of.unfinished') !== null")
    ticks = "[...document.querySelectorAll('.tick')].map((each) => each.innerText).join()"
    first = page.evaluate(ticks)
    page.until(f"{ticks} !== {json.dumps(first)}")
    assert working.post("/api/traces/running/end", {"status": "ok"}).status in (200, 202)
    page.until("document.querySelector('.bar-of.unfinished') === null && document.querySelector('.bar-of') !== null")
    assert_clean(page, working)


def test_a_download_holds_every_span(working: Pipeline, page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.open(f"{working.url}/#/traces/talk")
    page.until(f"{GRID} !== null && {ROWS} === 4")
    page.evaluate("[...document.querySelectorAll('button')].find((each) => each.innerText === 'download').click()")
    page.until("document.querySelector('p[role=status]').innerText.includes('downloaded')")
    working.until(lambda: (folder / "talk.json").is_file(), "the file is there")
    saved = json.loads((folder / "talk.json").read_text())
    assert saved == working.get("/traces/talk").json()
    assert_clean(page, working)


def test_statistics_by_name_lead_to_the_longest_span(working: Pipeline, page: Page) -> None:
    page.open(f"{working.url}/#/traces/talk?names=shown")
    page.until("document.querySelector('section table') !== null")
    rows = page.evaluate(
        "[...document.querySelectorAll('section tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    assert ["answer", "llm", "1", "$0.0045", "1.00 s", "1.00 s", "0"] in rows
    assert page.evaluate("document.querySelector('section th[aria-sort]').innerText").startswith("self time")
    page.evaluate(
        "[...document.querySelectorAll('section td button')].find((b) => b.innerText === 'late child').click()"
    )
    page.until("location.hash.includes('span=s2')")
    page.evaluate("history.back()")
    page.until("!location.hash.includes('span=s2')")
    page.open(f"{working.url}/#/traces/talk?tab=wrong&span=s1")
    page.until("document.querySelector('.chip.wrong')?.innerText.startsWith('tab: not understood')")
    assert page.evaluate(DRAWER) == ""
    assert_clean(page, working)
