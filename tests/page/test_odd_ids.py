"""Traces, spans and sessions whose ids mean something else in a URL, such as ``..``, opened by a click in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from kit.chromium import Page
from kit.http_spans import assert_accepted
from kit.page_world import DRAWER, assert_clean, needs_chromium
from kit.pipeline import Pipeline, http

pytestmark = needs_chromium
IDS = [".", "..", "%2E", "%252E%2E", "%2e", "...", "a/b", "/", "a/../b", "50%", "a#b", "a?b=c", "x/timeline", "recent"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline with a trace, a span and a session of each id."""
    pipeline = Pipeline(tmp_path_factory.mktemp("odd"))
    pipeline.start()
    try:
        call = {"model": "gpt-4o", "prompt_tokens": 9, "comp_tokens": 1, "kind": "llm"}
        spans = [{**call, "trace_id": id, "span_id": id, "session_id": id, "name": f"call of {id}"} for id in IDS]
        assert_accepted(pipeline.post("/spans", spans), len(spans))
        pipeline.until(lambda: pipeline.get("/traces?limit=1").json()["total"] == len(IDS), "stored")
        yield pipeline
    finally:
        pipeline.stop()


@pytest.mark.parametrize("id", IDS)
def test_a_trace_its_span_and_its_session_open(odd: Pipeline, page: Page, id: str) -> None:
    title = f"call of {id}"
    page.open(odd.url + "/#/traces")
    link = f"[...document.querySelectorAll('td.name a')].find((each) => each.innerText === '{title}')"
    page.until(f"{link} !== undefined")
    page.evaluate(f"{link}.click()")
    page.until(
        f"document.querySelector('h1').innerText === '{title}' && document.querySelectorAll('.row').length === 1"
    )
    assert page.evaluate("location.hash.split('?')[0]") == f"#/traces/{quote(id, safe='')}"
    page.until("document.querySelector('.around') !== null")
    receipt, messages, attributes = "found as", "The span has no messages", "The span has no attributes"
    tabs = {"receipt": receipt, "messages": messages, "attributes": attributes, "json": '"parent_span_id"'}
    for tab, shown in tabs.items():
        page.open(f"{odd.url}/#/traces/{quote(id, safe='')}?tab={tab}")
        page.until(f"({DRAWER}).includes('{shown}')")
    session = "[...document.querySelectorAll('.facts-of-trace a')][0]"
    page.until(f"{session} !== undefined")
    page.evaluate(f"{session}.click()")
    page.until("document.querySelectorAll('.row').length === 1 && document.querySelector('.sessions-cards') !== null")
    assert page.evaluate("location.hash.split('?')[0]") == f"#/sessions/{quote(id, safe='')}"
    assert_clean(page, odd)


def test_requests_name_dots_by_escapes_that_no_client_removes(odd: Pipeline) -> None:
    """Escaped once, a browser takes them for a step up; so they are escaped twice, and what looks so, once more."""
    for id, name in ((".", "%252E"), ("..", "%252E%252E"), ("%2E", "%25252E"), ("%2e", "%252e"), ("...", "...")):
        answer = odd.get(f"/traces/{name}/timeline")
        assert (answer.status, answer.json()["trace_id"]) == (200, id)
        assert odd.get(f"/traces/{name}/spans/{name}").json()["span_id"] == id
        assert odd.get(f"/api/sessions/{name}/details").json()["sessionId"] == id
    for id, name in (("..", "%252E%252E"), (".", "%252E")):
        deleted = http("DELETE", f"{odd.url}/traces/{name}")
        assert (deleted.status, deleted.json()["trace_id"]) == (200, id)
