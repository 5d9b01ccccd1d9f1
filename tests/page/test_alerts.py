"""The pages of alerts in a real browser: rules are made, changed, silenced and deleted, and receivers hear of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kit.chromium import Page
from kit.page_world import HOSTILE, SHOWN, assert_clean, needs_chromium
from kit.pipeline import Pipeline
from kit.receiver import CALL, Receiver, Reply, make_rule, path_of

pytestmark = needs_chromium

FILE_RULE = """
alerts:
  - {name: of the file, metric: span_count, op: gte, threshold: 1000, window: 5m}
"""
MAIN = "document.querySelector('main')?.innerText"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(lambda sent: Reply(400 if sent.path == "/refuses" else 200)) as serving:
        yield serving


@pytest.fixture(scope="module")
def alerting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Yield a pipeline without rules. The spans of each test have a caller of its own."""
    pipeline = Pipeline(tmp_path_factory.mktemp("alerts"))
    config = f'alert_delivery: {{allow_hosts: ["127.0.0.1"]}}\nhttp_server: {{public_url: "{pipeline.url}"}}\n'
    (pipeline.directory / "tokentrace.yml").write_text(config)
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


def make(pipeline: Pipeline, name: str, delivery: dict[str, Any] | None = None, **more: Any) -> None:
    rule = make_rule(name, delivery, **{"eval_interval": "1s", "filter": {"caller": name[:20]}, **more})
    assert pipeline.post("/alerts", rule).status == 201


def report(pipeline: Pipeline, name: str, *users: str) -> None:
    spans = [{**CALL, "caller": name[:20], "user_id": user} for user in users or ("ann",)]
    assert pipeline.post("/spans", spans).status == 202


def status(pipeline: Pipeline, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = pipeline.get(path_of(name, "/status")).json()
    return shown


def fill(page: Page, selector: str, text: str) -> None:
    """Write *text* instead of what the field has."""
    page.evaluate(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus(); field.select() }})()"
    )
    page.call("Input.insertText", text=text)


def choose(page: Page, selector: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const menu = document.querySelector({json.dumps(selector)}); menu.value = {json.dumps(value)}; "
        "menu.dispatchEvent(new Event('change', { bubbles: true })) })()"
    )


def click(page: Page, text: str, within: str = "body") -> None:
    """Click the button or link with this text."""
    page.until(
        f"(() => {{ const found = [...document.querySelectorAll({json.dumps(within + ' :is(button, a)')})]"
        f".find((each) => each.innerText.trim() === {json.dumps(text)}); found?.click(); return !!found }})()"
    )


def row(name: str) -> str:
    """The text of the row of a rule in the list."""
    return (
        "[...document.querySelectorAll('.alerts-rules tbody tr')]"
        f".find((row) => row.querySelector('a').innerText === {json.dumps(name)})?.innerText"
    )


def shows(expression: str, *texts: str) -> str:
    return " && ".join(f"({expression} ?? '').includes({json.dumps(text)})" for text in texts)


def test_without_a_rule_the_page_leads_to_the_first_one_with_a_preview(tmp_path: Path, page: Page) -> None:
    (tmp_path / "tokentrace.yml").write_text(FILE_RULE)
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    try:
        page.open(pipeline.url + "/#/alerts/of%20the%20file")
        page.until(shows(MAIN, "The configuration file has this rule", "threshold: 1000"))
        assert "edit" not in page.evaluate("[...document.querySelectorAll('main .bar a')].map((a) => a.innerText)")
        click(page, "delete…")
        page.until(shows("document.querySelector('dialog[open]')?.innerText", "of the file", "comes back"))
        click(page, "delete of the file")
        page.until(shows(MAIN, "There is no rule yet"))
        assert pipeline.get("/alerts").json() == []
        report(pipeline, "any", *["ann"] * 3)
        click(page, "more than $1 an hour for one user")
        page.until("document.querySelector('#rule-metric')?.value === 'total_cost'")
        assert page.evaluate("document.querySelector('#rule-group_by').value") == "user_id"
        page.until(shows("document.querySelector('.alerts-would')?.innerText", "fired 0 times"))
        page.evaluate("document.querySelector('.alerts-rule summary').click()")
        fill(page, "#rule-eval_interval", "1s")
        fill(page, "#rule-threshold", "0.000001")
        page.until(shows("document.querySelector('.alerts-would')?.innerText", "fired 1 time"))
        page.until(
            "document.querySelectorAll('.alerts-events li').length === 1 && document.querySelector('.chart-flag')"
        )
        fill(page, "#rule-threshold", "much")
        page.until(shows("document.querySelector('#rule-threshold-error')?.innerText", "rule.threshold: 'much' is not"))
        fill(page, "#rule-threshold", "0.000001")
        click(page, "create", "form")
        page.until(shows("document.querySelector('#rule-name-error')?.innerText", "rule.name: required"))
        assert page.evaluate("document.activeElement.id") == "rule-name"
        page.call("Input.insertText", text="user spend")
        page.press("Enter")
        page.until("location.hash === '#/alerts/user%20spend'")
        [made] = pipeline.get("/alerts").json()
        assert (made["name"], made["group_by"], made["threshold"]) == ("user spend", "user_id", 0.000001)
        page.until(shows("document.querySelector('.rule-instances')?.innerText", "ann", "firing, warning"))
        page.until(shows("document.querySelector('header')?.innerText", "●1"))
        # Chromium logs each answer of 400, which the page shows beside its field.
        assert page.problems(400) == []
    finally:
        pipeline.stop()


def test_a_replay_without_an_answer_says_why_it_waits(alerting: Pipeline, page: Page) -> None:
    """It does so after 15 s, which are none here."""
    source = "window.setTimeout = ((real) => (act, ms) => real(act, ms === 15000 ? 0 : ms))(window.setTimeout)"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.call("Fetch.enable", patterns=[{"urlPattern": "*/alerts/preview*"}])
    page.open(alerting.url + "/#/alerts?new=1&metric=span_count")
    page.until("document.querySelector('#rule-threshold') !== null")
    assert not page.evaluate(shows(MAIN, "one at a time"))
    fill(page, "#rule-threshold", "1")
    page.until(shows(MAIN, "Still no answer: rules are replayed one at a time", "A shorter time is read sooner."))
    [held] = [told["requestId"] for method, told in page.events if method == "Fetch.requestPaused"]
    page.call("Fetch.disable")
    assert held
    page.until(shows("document.querySelector('.alerts-would')?.innerText", "fired 0 times"))
    page.until(f"!({shows(MAIN, 'one at a time')})")
    assert page.problems() == []


def test_the_list_says_who_is_woken_and_a_dead_webhook_shows_by_itself(
    alerting: Pipeline, receiver: Receiver, page: Page
) -> None:
    make(
        alerting, "refused", {"type": "webhook", "url": f"{receiver.url}/refuses"}, level="critical", group_by="user_id"
    )
    make(alerting, HOSTILE[:100], {"type": "webhook", "url": f"{receiver.url}/geheim"})
    page.open(alerting.url + "/#/alerts")
    page.until(shows(row("refused"), f"http://127.0.0.1:{receiver.port}/...", "nothing delivered yet"))
    report(alerting, "refused", "ann", "bob")
    report(alerting, HOSTILE)
    page.until(shows(row("refused"), "✕ dead 2×", "● firing, critical", "2 of 2 fire", "1 ≥ 1"))
    page.until(shows("document.querySelector('header')?.innerText", "✕1", "rule reaches no receiver"))
    shown = alerting.get("/alerts").json()
    assert page.evaluate("document.querySelectorAll('.alerts-rules tbody tr').length") == len(shown)
    assert "geheim" not in page.evaluate("document.body.innerText")
    hostile = SHOWN[: page.evaluate(f"{len(SHOWN)}")]
    page.until(
        "[...document.querySelectorAll('.alerts-rules a')].some((a) => a.innerText.startsWith("
        f"{json.dumps(hostile[:40])}))"
    )
    choose(page, "#alerts-outcome", "dead")
    page.until("document.querySelectorAll('.alerts-history tbody tr').length === 2")
    assert page.evaluate("location.hash") == "#/alerts?outcome=dead"
    choose(page, "#filter", "refused")
    page.until("location.hash === '#/alerts?outcome=dead&rule=refused'")
    dead = page.until(
        shows(
            "document.querySelector('.alerts-history')?.innerText", "dead after 1 attempt", "HTTP 400", "user_id = ann"
        )
        + " && document.querySelector('.alerts-history').innerText"
    )
    page.open("about:blank")
    page.open(alerting.url + "/#/alerts?outcome=dead&rule=refused&colour=red")
    page.until(shows(MAIN, "colour: not understood"))
    page.until(f"document.querySelector('.alerts-history')?.innerText === {json.dumps(dead)}")
    page.press("j", "Enter")
    page.until("location.hash === '#/alerts/refused'")
    page.until(shows("document.querySelector('.rule-deliveries')?.innerText", "dead: HTTP 400"))
    assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
    assert_clean(page, alerting)


def test_a_rule_is_changed_without_its_secrets_silenced_lifted_and_deleted(
    alerting: Pipeline, receiver: Receiver, page: Page
) -> None:
    delivery = {"type": "webhook", "url": f"{receiver.url}/kept?key=geheim", "headers": {"X-Key": "geheim"}}
    make(alerting, "edited", delivery, threshold=1000)
    page.open(alerting.url + "/#/alerts/edited?edit=1")
    page.until("document.querySelector('#rule-threshold')?.value === '1000'")
    assert page.evaluate("document.querySelector('[aria-label=\"value 1\"]').value") == "edited"
    assert "geheim" not in page.evaluate("document.documentElement.outerHTML")
    fill(page, "#rule-delivery\\.timeout", "1h")
    click(page, "save")
    page.until(
        shows("document.getElementById('rule-delivery.timeout-error')?.innerText", "rule.delivery.timeout: '1h' is not")
    )
    fill(page, "#rule-delivery\\.timeout", "2s")
    fill(page, "#rule-for", "1x")
    page.until(shows("document.querySelector('#rule-for-error')?.innerText", "rule.for: ", "1x"))
    fill(page, "#rule-for", "")
    fill(page, "#rule-threshold", "1")
    click(page, "save")
    page.until("location.hash === '#/alerts/edited'")
    assert status(alerting, "edited")["threshold"] == 1
    click(page, "silence…")
    page.until("document.querySelector('dialog[open] input[name=duration]') !== null")
    fill(page, "dialog[open] input[name=duration]", "soon")
    page.press("Enter")
    page.until(
        shows("document.querySelector('dialog[open] [role=alert]')?.innerText", "duration: 'soon' is not a duration")
    )
    for field, text in (("duration", "2h"), ("by", "ann"), ("comment", "load test <b>41</b>")):
        fill(page, f"dialog[open] input[name={field}]", text)
    page.press("Enter")
    page.until(shows(MAIN, "by ann: load test <b>41</b>", "◐ silenced"))
    silenced = status(alerting, "edited")
    assert (silenced["silenced_by"], silenced["silence_comment"]) == ("ann", "load test <b>41</b>")
    report(alerting, "edited")
    alerting.until(lambda: status(alerting, "edited")["held_back"] == 1, "a firing is held back")
    page.press("r")
    page.open(alerting.url + "/#/alerts")
    page.until(shows(row("edited"), "silenced, would fire", "by ann"))
    page.evaluate("document.querySelector('[aria-label=\"lift the silence of edited\"]').click()")
    page.until(shows(row("edited"), "firing, warning", "✓ delivered"))
    [sent] = [sent for sent in receiver.sent if sent.path.startswith("/kept")]
    assert (sent.path, sent.header("X-Key")) == ("/kept?key=geheim", "geheim")
    link = sent.json()["link"]
    assert link.startswith(f"{alerting.url}/#/alerts/edited?from=")
    page.open("about:blank")
    page.open(link)
    page.until(
        "document.querySelector('#range')?.value === 'fixed' && document.querySelector('.chart canvas') !== null"
    )
    page.until(shows("document.querySelector('.rule-silences')?.innerText", "ann", "load test <b>41</b>"))
    assert [url for url in page.requested() if "/alerts/edited/series?from=" in url]
    click(page, "delete…")
    page.until(
        shows(
            "document.querySelector('dialog[open]')?.innerText",
            "Delete the rule edited?",
            "It fires",
            "does not come back",
        )
    )
    page.press("Escape")
    assert alerting.get(path_of("edited", "/status")).status == 200
    click(page, "delete…")
    click(page, "delete edited")
    page.until("location.hash === '#/alerts'")
    assert alerting.get(path_of("edited", "/status")).status == 404
    page.until(shows("document.querySelector('.alerts-history')?.innerText", "resolved, deleted"))
    page.open(alerting.url + "/#/alerts/edited")
    page.until(shows(MAIN, "no rule is called 'edited'", "history"))


def test_an_address_fills_the_form_and_the_value_is_that_of_the_api(alerting: Pipeline, page: Page) -> None:
    report(alerting, "filled", *["ann"] * 4)
    query = "new=1&metric=span_count&threshold=3&window=1h&groupby=user_id&caller=filled&attr.team=" + quote("a&b")
    page.open(f"{alerting.url}/#/alerts?{query}")
    page.until("document.querySelectorAll('.alerts-line').length === 2")
    lines = page.evaluate(
        "[...document.querySelectorAll('.alerts-line')]"
        ".map((line) => [...line.querySelectorAll('input')].map((each) => each.value))"
    )
    assert lines == [["caller", "filled"], ["attr.team", "a&b"]]
    page.evaluate("document.querySelector('[aria-label=\"remove filter 2\"]').click()")
    page.evaluate("document.querySelector('.alerts-rule summary').click()")
    fill(page, "#rule-eval_interval", "1s")
    page.until(shows("document.querySelector('.alerts-would')?.innerText", "fired 1 time"))
    fill(page, "#rule-name", "filled")
    click(page, "create")
    page.until("location.hash === '#/alerts/filled'")
    page.until(shows(MAIN, "4 > 3"))
    assert status(alerting, "filled")["current_value"] == 4
    definition = alerting.get(path_of("filled", "/definition")).json()["rule"]
    assert definition["filter"] == {"caller": "filled"}
    click(page, "JSON")
    assert json.loads(page.evaluate("document.querySelector('.rule-definition').innerText")) == definition
    traces = page.evaluate(
        "[...document.querySelectorAll('main a')].find((a) => a.innerText === 'ann').getAttribute('href')"
    )
    assert "caller=filled&user_id=ann&from=" in traces
    page.press("g", "a")
    page.until("location.hash === '#/alerts'")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert_clean(page, alerting)
