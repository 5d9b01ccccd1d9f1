"""Every page of the page, with hostile names in it: what to open, when it is drawn, and what axe says about it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from kit.chromium import Page
from kit.environment import ROOT
from kit.http_spans import assert_accepted
from kit.page_world import HOSTILE
from kit.pipeline import Pipeline
from kit.sessions import instant

AXE = ROOT / "services" / "api" / "page" / "node_modules" / "axe-core" / "axe.min.js"
TAGS = ("wcag2a", "wcag2aa", "wcag21aa", "wcag22aa")
#: Ids are printable ASCII, so these are as hostile as an id can be.
ID = "<img src=x onerror=alert(4)>'\"&{}/../%2e"
TRACE, SPAN, SESSION, USER = f"trace{ID}", "s1", f"session{ID}", f"user{ID}"
RULE = f"rule {HOSTILE}"
#: The name of a rule that is silenced.
QUIET = "silenced"
#: The id of a session that has not ended.
ACTIVE = "active"
_MINUTE = timedelta(minutes=1)


class World:
    """
    A pipeline with demo traffic, with a trace, a session, a user, a version and a rule of hostile names, with a rule
    that is silenced and a session that has not ended.

    Attributes:
        now: An instant shortly after everything was sent.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        flags = ["--url", pipeline.url, "--history", "2h", "--rate", "0.05", "--seed", "5", "--for", "1s"]
        subprocess.run([sys.executable, "-m", "tokentrace_standalone", "demo", *flags], check=True, capture_output=True)
        spans = list(_hostile_spans(datetime.now(UTC) - 2 * _MINUTE))
        running = {"trace_id": ACTIVE, "session_id": ACTIVE, "name": "turn", "kind": "tool", "latency_ms": 5}
        assert_accepted(pipeline.post("/spans", [running]), 1)
        assert_accepted(pipeline.post("/spans", spans), len(spans))
        self._message()
        rule = {"metric": "total_cost", "op": "gte", "threshold": 0, "window": "1h", "eval_interval": "1s"}
        grouped = {"group_by": "user_id", "filter": {"model": HOSTILE}}
        answer = pipeline.post("/alerts", {"name": RULE, **rule, **grouped})
        assert answer.status == 201, answer.body
        trace = f"/traces/{quote(TRACE, safe='')}"
        pipeline.until(lambda: pipeline.get(trace).json()["span_count"] == len(spans), "the hostile trace is stored")
        pipeline.until(lambda: pipeline.get("/alerts/events?limit=1").json()["events"], "a rule has fired")
        answer = pipeline.post("/alerts", {"name": QUIET, **rule, "level": "critical"})
        assert answer.status == 201, answer.body
        silence = {"duration": "1h", "by": HOSTILE, "comment": HOSTILE}
        answer = pipeline.post(f"/alerts/{quote(QUIET, safe='')}/silence", silence)
        assert answer.status == 200, answer.body
        self.now = datetime.now(UTC)

    def _message(self) -> None:
        message = {"sessionId": SESSION, "traceId": SPAN, "role": "user", "content": HOSTILE}
        assert self.pipeline.post("/api/traces/messages", message).status == 200

    @property
    def pages(self) -> dict[str, str]:
        """The name of each page and state -> its address behind the URL of the server."""
        first, last = (quote(instant(self.now - ago), safe="") for ago in (60 * _MINUTE, 0 * _MINUTE))
        fixed = f"from={first}&to={last}"
        trace, session, rule = (quote(name, safe="") for name in (TRACE, SESSION, RULE))
        one = f"/#/traces/{trace}?span={SPAN}"
        return {
            "overview": f"/#/?{fixed}",
            "metric": f"/#/metric/total_cost?{fixed}&groupby=model",
            "metric by user": f"/#/metric/total_cost?{fixed}&groupby=user_id",
            "quality": f"/#/metric/quality_score?{fixed}&groupby=model",
            "traces": f"/#/traces?{fixed}",
            "traces, filtered": f"/#/traces?{fixed}&model={quote(HOSTILE, safe='')}",
            "traces, none": f"/#/traces?{fixed}&model=absent",
            "traces, wrong": f"/#/traces?{fixed}&min_cost=much",
            "calls": f"/#/calls?{fixed}&order=cost",
            "trace": f"/#/traces/{trace}",
            "receipt": f"{one}&tab=receipt",
            "attributes": f"{one}&tab=attributes",
            "messages": f"{one}&tab=messages",
            "scores": f"{one}&tab=scores",
            "json": f"{one}&tab=json",
            "compare": f"/#/compare?{fixed}&by=model",
            "sessions": "/#/sessions",
            "session": f"/#/sessions/{session}",
            "session, active": f"/#/sessions/{ACTIVE}",
            "alerts": "/#/alerts",
            "rule": f"/#/alerts/{rule}",
            "rule, silenced": f"/#/alerts/{QUIET}",
            "new rule": "/#/alerts?new=1",
            "health": "/#/health",
            "login": "/#/login",
            "no such page": "/#/nowhere",
        }


def _hostile_spans(start: datetime) -> Iterator[dict[str, Any]]:
    """Yield a workflow, a call below it, and a tool below that; all of them hostile."""
    for number, kind in enumerate(("workflow", "llm", "tool")):
        tokens = {"model": HOSTILE, "provider": HOSTILE, "prompt_tokens": 9, "comp_tokens": 1, "cost_usd": 0.25}
        yield {
            "trace_id": TRACE,
            "span_id": f"s{number}",
            "parent_span_id": f"s{number - 1}" if number else None,
            "name": HOSTILE,
            "kind": kind,
            "caller": HOSTILE,
            "status": "error",
            "error": HOSTILE,
            "session_id": SESSION,
            "user_id": USER,
            "started_at": instant(start + timedelta(seconds=number)),
            "ended_at": instant(start + timedelta(seconds=20 - number)),
            "attributes": {
                HOSTILE: HOSTILE,
                "label": HOSTILE,
                "version": HOSTILE,
                "eval.score": 0.5,
                "link": "javascript:alert(3)",
                "long": "x" * 32_000,
            },
            **(tokens if kind == "llm" else {}),
        }


#: JavaScript: what shows that a page still waits for something.
_LOADING = (
    "document.querySelector('.stale') !== null || "
    "[...document.querySelectorAll('.outline, [aria-busy=true]')].some((one) => one.innerText.includes('Loading'))"
)
_DRAWN = f"document.querySelector('main h1') !== null && !({_LOADING})"


def show(page: Page, url: str) -> None:
    """Open *url* in a new document and wait until the page has drawn all answers that it asked for."""
    page.open("about:blank")
    page.events.clear()
    page.open(url)
    page.until(_DRAWN)
    settle(page)


def settle(page: Page) -> None:
    """Wait until no request is under way and nothing is loading, twice in a row."""
    quiet, deadline = 0, time.monotonic() + 60
    while quiet < 2:
        assert time.monotonic() < deadline, f"{page.requested()[-5:]} are not answered"
        time.sleep(0.1)
        is_quiet = page.evaluate(_DRAWN) and not _under_way(page.events)
        quiet = quiet + 1 if is_quiet else 0


def _under_way(events: Sequence[tuple[str, dict[str, Any]]]) -> set[str]:
    """Return the ids of the requests without an end; those of an event stream have none and do not count."""
    begun = {told["requestId"] for method, told in events if method == "Network.requestWillBeSent"}
    ended = ("Network.loadingFinished", "Network.loadingFailed")
    streams = {
        told["requestId"]
        for method, told in events
        if method == "Network.responseReceived" and told["response"]["mimeType"] == "text/event-stream"
    }
    return begun - {told["requestId"] for method, told in events if method in ended} - streams


def findings(page: Page) -> list[str]:
    """Return what axe finds on the page as it is, as ``rule: element``; axe is loaded into a world of its own."""
    frame = page.call("Page.getFrameTree")["frameTree"]["frame"]["id"]
    world = page.call("Page.createIsolatedWorld", frameId=frame, worldName="axe")["executionContextId"]
    page.call("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8") + ";0", contextId=world)
    options = json.dumps({"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations"]})
    run = (
        f"axe.run(document, {options}).then((found) => found.violations.flatMap((one) => "
        "one.nodes.map((node) => `${one.id}: ${node.html.slice(0, 160)} ${node.failureSummary.slice(0, 240)}`)))"
    )
    answer = page.call("Runtime.evaluate", expression=run, contextId=world, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in answer, answer
    found: list[str] = answer["result"]["value"]
    return found


def resize(page: Page, width: int, height: int = 900) -> None:
    """Give the page a window of *width* times *height* pixels."""
    size = {"width": width, "height": height, "screenWidth": width}
    page.call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **size)


def prefer(page: Page, scheme: str, *, motion: bool = True) -> None:
    """Let the system prefer *scheme*, ``light`` or ``dark``, and reduced motion unless *motion*."""
    reduced = "no-preference" if motion else "reduce"
    features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", reduced)]
    page.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features])


def watch_policy(page: Page) -> None:
    """Note violations of the policy in every later document."""
    source = (
        "window.violations = []; document.addEventListener('securitypolicyviolation', "
        "(event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`))"
    )
    page.call("Page.addScriptToEvaluateOnNewDocument", source=source)


def text_of(page: Page) -> str:
    """Return the text of the page, with the titles and names that show on hover or are read out."""
    text: str = page.evaluate(
        "document.body.innerText + [...document.querySelectorAll('[title], [aria-label]')]"
        ".map((one) => `\\n${one.title} ${one.ariaLabel ?? ''}`).join('')"
    )
    return text


def is_at(pipeline: Pipeline, url: str) -> bool:
    """Return whether *url* is of *pipeline*."""
    return url.split("/")[2] == f"127.0.0.1:{pipeline.port}"
