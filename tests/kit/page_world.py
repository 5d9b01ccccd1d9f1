"""What the tests of the page share: the spans that they send, and what they read off the page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from kit.chromium import BINARY, Page
from kit.http_spans import assert_accepted
from kit.pipeline import Pipeline
from kit.sessions import instant

needs_chromium = pytest.mark.skipif(
    BINARY is None, reason="Chromium is not installed, so the page is not tested: apt-get install chromium"
)
BEGIN = datetime(2026, 3, 15, 14, 0, tzinfo=UTC)
MANY = 10_000
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202egnp.exe 👩\u200d💻"
SHOWN = "<img src=x onerror=alert(1)><script>alert(2)</script>\\u202egnp.exe 👩\u200d💻"
#: JavaScript: the number of rows of a trace in the document, its table, the name of the selected row, and the drawer.
ROWS = "document.querySelectorAll('.row').length"
GRID = "document.querySelector('[role=treegrid]')"
SELECTED = "document.querySelector('.row[aria-selected=true] .label')?.title ?? ''"
DRAWER = "document.querySelector('aside')?.innerText ?? ''"
#: JavaScript: the number of rows of the list of traces.
LISTED = "document.querySelectorAll('td.name').length"


def span(trace: str, number: int, parent: int | None, **more: Any) -> dict[str, Any]:
    """Return span s<number> of *trace*, which starts *number* times 10 ms after ``BEGIN`` and lasts a second."""
    start = BEGIN + timedelta(milliseconds=10 * number)
    return {
        "trace_id": trace,
        "span_id": f"s{number}",
        "parent_span_id": None if parent is None else f"s{parent}",
        "name": f"step {number}",
        "kind": "tool",
        "started_at": instant(start),
        "ended_at": instant(start + timedelta(seconds=1)),
        **more,
    }


def many() -> list[dict[str, Any]]:
    """Return a trace of 10,000 spans: a root with 99 steps of a hundred calls each; one call is dear, one failed."""
    spans = [span("many", 0, None, name="research-agent", kind="workflow")]
    spans += [span("many", number, number - number % 100 if number % 100 else 0) for number in range(1, MANY)]
    call = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 400_000, "comp_tokens": 100}
    spans[5055] |= {**call, "name": "dear answer"}
    spans[7077] |= {"status": "error", "error": "429 too many requests", "name": "failed call"}
    return spans


def send(serving: Pipeline, spans: list[dict[str, Any]]) -> None:
    """Report *spans*, all of one trace, and wait until they are stored."""
    for start in range(0, len(spans), 1000):
        part = spans[start : start + 1000]
        assert_accepted(serving.post("/spans", part), len(part))
    trace = spans[0]["trace_id"]
    path = f"/traces/{quote(trace, safe='')}?limit=1&attributes=false"
    serving.until(lambda: serving.get(path).json().get("span_count") == len(spans), f"{trace} is stored", 120)


def assert_clean(page: Page, serving: Pipeline) -> None:
    """
    Check that nothing was refused by the policy, thrown or logged, and that nothing was asked of another host.

    A busy server may answer 503, which the page shows, waits for and asks again; the browser logs each as an error.
    """
    assert page.problems() == []
    hosts = {url.split("/")[2] for url in page.requested() if url.startswith("http")}
    assert hosts == {f"127.0.0.1:{serving.port}"}
    assert not [method for method, _ in page.events if method == "Page.javascriptDialogOpening"]


def names(page: Page) -> list[str]:
    """Return the names of the traces that the list shows."""
    found: list[str] = page.evaluate("[...document.querySelectorAll('td.name a')].map((cell) => cell.innerText)")
    return found
