"""One pipeline and its traces for the tests of a file, and a tab of a browser for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit import chromium
from kit.chromium import Browser, Page
from kit.page_world import HOSTILE, many, send, span
from kit.pipeline import Pipeline


# Of a file, not of the whole run: an idle pipeline and an idle browser take some percent of a core until they end.
@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """
    Yield a pipeline with three traces of ``BEGIN``. A test that reports more spans starts a pipeline of its own.

    The traces: 10,000 spans; a span whose every text is hostile; and an orphan with a circle.
    """
    pipeline = Pipeline(tmp_path_factory.mktemp("page"))
    pipeline.start()
    try:
        send(pipeline, many())
        hostile = {"name": HOSTILE, "status": "error", "error": HOSTILE, "model": HOSTILE, "kind": "llm"}
        attributes = {"attributes": {HOSTILE: HOSTILE, "link": "javascript:alert(3)", "long": "x" * 32_768}}
        tokens = {"prompt_tokens": 1, "comp_tokens": 1}
        send(pipeline, [span("hostile", 0, None, **hostile, **attributes, **tokens)])
        send(pipeline, [span("loop/ %", 0, None), span("loop/ %", 1, 7), span("loop/ %", 2, 3), span("loop/ %", 3, 2)])
        yield pipeline
    finally:
        pipeline.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield one browser for all tests of a file."""
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Yield a tab that shares no storage with that of another test."""
    with browser.page() as opened:
        yield opened
