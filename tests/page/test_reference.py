"""``/docs`` in a real browser that can reach only 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.chromium import Page
from kit.page_world import needs_chromium
from kit.pipeline import Pipeline, http

pytestmark = needs_chromium
_BLOCKS = "document.querySelectorAll('.opblock').length"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("docs"), env={"TOKENTRACE_AUTH_TOKEN": "the-key"})
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


def operations_of(serving: Pipeline) -> int:
    document = http("GET", serving.url + "/openapi.json", headers={"Authorization": "Bearer the-key"}).json()
    return sum(len(item) for item in document["paths"].values())


def test_the_reference_asks_for_the_token_shows_every_operation_and_expands_one(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/docs")
    page.until("document.getElementById('token-form')?.hidden === false")
    page.evaluate("document.getElementById('token').value = 'the-key'")
    page.evaluate("document.querySelector('#token-form button').click()")
    page.until(f"{_BLOCKS} === {operations_of(serving)}")
    page.evaluate("document.querySelector('#operations-spans-postSpans button.opblock-summary-control').click()")
    page.until(
        "document.querySelector('#operations-spans-postSpans .opblock-body textarea, "
        "#operations-spans-postSpans .opblock-body .highlight-code') !== null"
    )
    text = page.evaluate("document.querySelector('#operations-spans-postSpans').innerText")
    assert "Idempotency-Key" in text
    assert "gpt-4o" in text
    # The page first requests the document without the token, and this request is refused.
    problems = page.problems(401)
    assert problems == []
    assert {url.split("/")[2] for url in page.requested() if url.startswith("http")} == {f"127.0.0.1:{serving.port}"}


def test_a_wrong_token_is_refused_and_the_page_says_so(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/docs")
    page.until("document.getElementById('token-form')?.hidden === false")
    page.evaluate("document.getElementById('token').value = 'wrong'")
    page.evaluate("document.querySelector('#token-form button').click()")
    assert page.until("document.getElementById('problem').textContent") == "The token is wrong."
    assert page.evaluate(_BLOCKS) == 0


def test_the_policy_of_the_page_allows_no_other_origin_and_its_files_need_no_token(serving: Pipeline) -> None:
    answer = serving.get("/docs")
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; ")
    assert "http" not in policy
    for name in ("init.js", "swagger-ui-bundle.js", "swagger-ui.css"):
        assert serving.get(f"/docs/{name}").status == 200, name
    assert serving.get("/docs/x.js").status == 401
    assert http("GET", serving.url + "/docs/x.js", headers={"Authorization": "Bearer the-key"}).status == 404
    assert serving.get("/openapi.json").status == 401
