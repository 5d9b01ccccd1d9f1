"""Who may use the page: a login that ends, a server below a prefix, and requests of other sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.chromium import Page
from kit.page_world import LISTED, needs_chromium, send
from kit.pipeline import Pipeline, http
from kit.reverse_proxy import published

pytestmark = needs_chromium
TOKEN = "the-token"
_FIELD = "document.getElementById('token') !== null"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline that needs a token, with one trace."""
    pipeline = Pipeline(tmp_path_factory.mktemp("access"), env={"TOKENTRACE_AUTH_TOKEN": TOKEN})
    pipeline.start()
    try:
        span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "name": "first", "trace_id": "t1"}
        assert pipeline.post("/spans", span, {"Authorization": f"Bearer {TOKEN}"}).status == 202
        yield pipeline
    finally:
        pipeline.stop()


def log_in(page: Page, token: str) -> None:
    page.until(_FIELD)
    # The heading takes the focus once the page is drawn, which may be while the token is typed.
    while page.evaluate("document.getElementById('token').value") != token:
        page.evaluate("document.getElementById('token').select()")
        page.type(token)
    page.evaluate("document.getElementById('token').focus()")
    page.press("Enter")


def test_a_login_that_has_expired_is_asked_for_again_and_leads_back(keyed: Pipeline, page: Page) -> None:
    page.open(f"{keyed.url}/#/traces?model=gpt-4o")
    log_in(page, "wrong")
    assert "token: is wrong" in page.until("document.querySelector('.note.error')?.innerText")
    log_in(page, TOKEN)
    page.until(f"{LISTED} === 1")
    [cookie] = page.call("Network.getCookies")["cookies"]
    assert 11 * 3600 < cookie["expires"] - page.evaluate("Date.now() / 1000") <= 12 * 3600 + 60
    # What a browser does with a cookie at its end.
    page.call("Network.clearBrowserCookies")
    page.press("r")
    log_in(page, TOKEN)
    page.until(f"{LISTED} === 1")
    assert page.evaluate("location.hash") == "#/traces?model=gpt-4o"


def test_a_cookie_that_the_server_does_not_know_leads_to_the_login(keyed: Pipeline, page: Page) -> None:
    cookie = {"name": f"tokentrace-{keyed.port}", "value": "v1.forged.0.0", "url": keyed.url}
    page.call("Network.setCookie", **cookie)
    page.open(f"{keyed.url}/#/sessions")
    log_in(page, TOKEN)
    page.until("document.querySelector('h1')?.innerText === 'Sessions'")
    assert page.evaluate("location.hash") == "#/sessions"


def test_everything_works_below_a_prefix_behind_a_proxy(keyed: Pipeline, page: Page) -> None:
    with published(keyed.port, "/tools/trace/") as url:
        assert http("GET", url.replace("/tools/trace/", "/")).status == 404
        page.open(f"{url}#/traces")
        log_in(page, TOKEN)
        page.until(f"{LISTED} === 1")
        page.evaluate("document.querySelector('td.name a').click()")
        page.until("document.querySelector('[role=treegrid]') !== null")
        assert page.evaluate("location.pathname") == "/tools/trace/"
        for name in ("overview", "sessions", "alerts", "health"):
            page.open(f"{url}#/{'' if name == 'overview' else name}")
            page.until("document.querySelector('main h1') !== null")
        asked = [one for one in page.requested() if one.startswith("http")]
        assert asked
        assert [one for one in asked if not one.startswith(url)] == []
        rule = {"name": "r", "metric": "total_cost", "op": "gt", "threshold": 1, "window": "1h"}
        page.evaluate(
            "fetch('./alerts', {method: 'POST', headers: {'Content-Type': 'application/json'}, "
            f"body: JSON.stringify({rule!r})}}).then((answer) => {{ window.made = answer.status }})"
        )
        assert page.until("window.made") == 201


def test_a_page_of_another_origin_can_change_nothing_with_the_login_of_a_browser(
    keyed: Pipeline, page: Page, tmp_path: Path
) -> None:
    """The other origin is another server of this machine: to a browser, another port is another origin."""
    other = Pipeline(tmp_path / "other")
    other.start()
    try:
        send(other, [{"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "trace_id": "t1"}])
        page.open(f"{keyed.url}/#/traces")
        log_in(page, TOKEN)
        page.until(f"{LISTED} === 1")
        # The policy of our own page forbids such a request, so it is made from a document without one.
        page.open(f"{other.url}/healthz")
        page.until("document.readyState === 'complete'")
        body = '{"name":"evil","metric":"total_cost","op":"gt","threshold":1,"window":"1h"}'
        page.evaluate(
            f"fetch('{keyed.url}/alerts', {{method: 'POST', mode: 'no-cors', credentials: 'include', "
            f"headers: {{'Content-Type': 'text/plain'}}, body: '{body}'}}).then(() => 1, () => 1)"
        )
        statuses = [
            told["response"]["status"]
            for method, told in page.events
            if method == "Network.responseReceived" and told["response"]["url"] == f"{keyed.url}/alerts"
        ]
        assert statuses == [403]
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        names = [rule["name"] for rule in http("GET", f"{keyed.url}/alerts", headers=bearer).json()]
        assert "evil" not in names
    finally:
        other.stop()
