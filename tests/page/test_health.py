"""The health page and its mark in the header, in a real browser: what works, what is lost, and what was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.builders import make_span
from kit.chromium import Page
from kit.http_spans import assert_accepted
from kit.page_world import HOSTILE, SHOWN, assert_clean, needs_chromium
from kit.pipeline import Pipeline, SeparateServices
from tokentrace import Reporter

pytestmark = needs_chromium
_TEXT = "document.querySelector('main')?.innerText ?? ''"
_MARK = "document.querySelector('.health-state')?.textContent.trim() ?? ''"
_REFUSED = "document.querySelector('[aria-label=\"Refused spans\"]')"
_REFUSED_ROWS = f"({_REFUSED}?.querySelectorAll('tbody tr').length ?? 0)"
GOOD, BAD_MODEL, HOSTILE_BATCH = 5, 45, 1


def call(number: int, **fields: Any) -> Any:
    identity = {"trace_id": f"t{number}", "span_id": f"s{number}", "name": f"call {number}"}
    times = {"started_ns": 0, "ended_ns": 0, "arrived_ns": 0}
    return make_span(**{**identity, **times, "source": "", "prompt_tokens": 500, "completion_tokens": 100, **fields})


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline that has refused 45 spans without a model, and one with an attribute of a reserved name."""
    pipeline = Pipeline(tmp_path_factory.mktemp("health"))
    pipeline.start()
    try:
        with Reporter(HOSTILE, pipeline.nats_url) as reporter:
            for number in range(GOOD):
                reporter.report(call(number))
            for number in range(BAD_MODEL):
                reporter.report(call(number + 100, model=""))
            reporter.report(call(999, name=HOSTILE, attributes={"tt.own": HOSTILE, "password": "hunter2"}))
        pipeline.until(lambda: pipeline.get("/health").json()["rejected"]["spans"] == BAD_MODEL + 1, "counted")
        pipeline.until(lambda: pipeline.get("/reporters").json()["reporters"][0]["acked"] >= 0, "a reporter is known")
        yield pipeline
    finally:
        pipeline.stop()


def test_a_healthy_pipeline_tells_what_each_part_does_and_what_is_deleted_when(refusing: Pipeline, page: Page) -> None:
    page.open(refusing.url + "/#/health")
    text = page.until(f"({_TEXT}).includes('What is deleted when') && ({_TEXT}).includes('How far back') && ({_TEXT})")
    assert "Every part works." in text
    health, about = refusing.get("/health").json(), refusing.get("/page.json").json()
    parts = page.evaluate("[...document.querySelectorAll('.health-parts tbody tr')].map((row) => row.innerText)")
    assert [part["name"] for part in health["parts"]] == [row.split("\n")[0] for row in parts]
    assert all("● ok" in row for row in parts)
    assert "The log holds the last " in text
    assert "at most 8.00 GiB" in text
    deleted = page.evaluate("document.querySelector('[aria-label=\"What is deleted when\"]').innerText")
    for name in ("shown_for", "log_keeps", "metrics_for", "rejected_for", "alerts_for", "open_for"):
        assert f"\t{about['retention'][name]}" in deleted, name
    lost = page.evaluate("[...document.querySelectorAll('.health-losses tbody tr')].map((row) => row.innerText)")
    numbers = {row.split("\t")[0].split(" messages")[0]: row.split("\t")[-1] for row in lost}
    refused = next(number for name, number in numbers.items() if "Refused spans" in name)
    assert refused == str(BAD_MODEL + 1)
    assert len(lost) == 9
    assert page.evaluate(_MARK).startswith("●")
    assert_clean(page, refusing)


def test_refused_spans_are_listed_by_reason_and_page_with_their_redacted_record(refusing: Pipeline, page: Page) -> None:
    page.open(refusing.url + "/#/health")
    page.until(f"{_REFUSED_ROWS} === 20")
    answer = refusing.get("/rejected?limit=20").json()
    shown = page.evaluate(f"{_REFUSED}.innerText")
    assert "46 spans were refused in all" in shown
    for reason, number in answer["by_reason"].items():
        assert f"{reason} {number}" in shown
    assert all(letter["error"].split(":")[0] in shown for letter in answer["rejected"])
    pages = 1
    while page.evaluate(f"[...{_REFUSED}.querySelectorAll('button')].some((each) => each.innerText === 'older ›')"):
        before = page.evaluate(f"{_REFUSED}.querySelector('tbody').textContent")
        page.evaluate(
            f"[...{_REFUSED}.querySelectorAll('button')].find((each) => each.innerText === 'older ›').click()"
        )
        page.until(f"{_REFUSED}.querySelector('tbody').textContent !== {json.dumps(before)}")
        pages += 1
    assert pages == 3
    assert page.evaluate(_REFUSED_ROWS) == BAD_MODEL + 1 - 40
    # The letter whose texts are hostile: found by its reason, and everything in it is text.
    page.evaluate(
        f"[...{_REFUSED}.querySelectorAll('button')].find((each) => each.innerText === 'attributes 1').click()"
    )
    page.until(f"{_REFUSED_ROWS} === 1 && location.hash.includes('reason=attributes')")
    page.evaluate(f"{_REFUSED}.querySelector('tbody details').open = true")
    record = page.until(f"{_REFUSED}.querySelector('tbody pre').innerText")
    assert SHOWN in record
    assert "hunter2" not in page.evaluate("document.documentElement.innerHTML")
    assert SHOWN in page.evaluate("document.querySelector('[aria-label=\"Who sends spans\"]').innerText")
    address, text = page.evaluate("location.href"), page.evaluate(f"{_REFUSED}.querySelector('tbody').textContent")
    page.open("about:blank")
    page.open(address)
    page.until(f"{_REFUSED_ROWS} === 1")
    assert page.evaluate(f"{_REFUSED}.querySelector('tbody').textContent") == text
    assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
    assert_clean(page, refusing)


def test_reporters_are_listed_with_what_they_could_not_deliver(refusing: Pipeline, page: Page) -> None:
    page.open(refusing.url + "/#/health")
    row = "document.querySelector('[aria-label=\"Who sends spans\"] tbody tr')"
    page.until(f"{row} !== null")
    [reporter] = refusing.get("/reporters").json()["reporters"]
    cells = page.evaluate(f"[...{row}.querySelectorAll('td.number')].map((cell) => cell.innerText)")
    names = ("processes", "sent", "acked", "queue_depth", "dropped", "failed", "rejected")
    assert cells == [str(reporter[name]) for name in names]
    assert page.evaluate(f"{row}.className") == "wrong"
    assert_clean(page, refusing)


def test_what_the_address_asks_wrongly_is_told(refusing: Pipeline, page: Page) -> None:
    page.open(refusing.url + "/#/health?reason=colour&shape=round")
    text = page.until(f"{_REFUSED}?.querySelector('.note.error') && {_REFUSED}.innerText")
    assert refusing.get("/rejected?reason=colour&limit=20").json()["error"] in text
    assert "shape: not understood" in text
    page.evaluate(f"{_REFUSED}.querySelector('.chip.wrong button').click()")
    page.until("location.hash === '#/health?reason=colour'")


def test_the_mark_in_the_header_and_the_page_name_a_part_that_was_killed(tmp_path: Path, page: Page) -> None:
    services = SeparateServices(tmp_path)
    services.start()
    try:
        services.until(lambda: services.get("/health").json()["parts"][2]["ok"], "the aggregator answers")
        page.open(services.url + "/#/alerts")
        # No alerter was started, which the mark says on every page.
        assert page.until(f"({_MARK}).startsWith('✕') && ({_MARK})") == "✕ is unwell"
        assert "no alerter answers" in page.evaluate("document.querySelector('.health-state').title")
        services.kill_one("aggregator")
        page.press("g", "h")
        rows = "[...document.querySelectorAll('.health-parts tbody tr')].map((row) => row.innerText)"
        page.until(f"({rows}).some((row) => row.startsWith('aggregator') && row.includes('unwell'))")
        parts = services.get("/health").json()["parts"]
        for part, row in zip(parts, page.evaluate(rows), strict=True):
            assert ("✕ unwell" in row) == (not part["ok"]), row
        assert "no aggregator answers" in page.evaluate("document.querySelector('.note.error').innerText")
        text = page.evaluate(_TEXT)
        assert "not known now" in text
        assert page.evaluate("document.querySelectorAll('.health-parts .level-bad').length") == sum(
            not part["ok"] for part in parts
        )
        services.start_one("aggregator")
        services.until(lambda: services.get("/health").json()["parts"][2]["ok"], "the aggregator answers again")
        page.press("r")
        page.until(f"({rows}).some((row) => row.startsWith('aggregator') && row.includes('● ok'))")
        unexpected = page.problems()
        assert unexpected == []
    finally:
        services.stop()


def test_an_empty_pipeline_has_no_faults_and_a_page_without_server_says_so(tmp_path: Path, page: Page) -> None:
    pipeline = Pipeline(tmp_path / "empty")
    pipeline.start()
    try:
        page.open(pipeline.url + "/#/health")
        text = page.until(
            f"({_TEXT}).includes('No reporter has sent') && ({_TEXT}).includes('No span was refused') && "
            f"!({_TEXT}).includes('Loading') && ({_TEXT})"
        )
        assert "The log is empty." in text
        assert "▲" not in text
        assert page.evaluate("document.activeElement.tagName") == "H1"
        assert_accepted(pipeline.post("/spans", [{"kind": "tool", "name": "x"}]), 1)
    finally:
        pipeline.stop()
    page.press("r")
    page.until(f"({_MARK}).startsWith('○')")
    assert "the server cannot be reached" in page.until("document.querySelector('.note.error')?.innerText")
