"""What every page promises, over the table of pages: nothing leaves, text stays text, and all can be used by all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.chromium import Browser, Page
from kit.every_page import (
    AXE,
    RULE,
    World,
    findings,
    is_at,
    prefer,
    resize,
    settle,
    show,
    text_of,
    watch_policy,
)
from kit.examples import WHOLE
from kit.page_states import STATES, leave
from kit.page_world import SHOWN, needs_chromium
from kit.pipeline import Pipeline

pytestmark = needs_chromium
#: (Theme, width) that pages are looked at with; all of them in the profile that tries everything.
LOOKS = [("light", 1280), ("dark", 1280), ("light", 320), ("dark", 320)]
#: Requests for data that the overview may make.
MOST_REQUESTS = 8
#: Pages on which something of the hostile trace has to be seen.
SHOWING = (
    "traces",
    "calls",
    "trace",
    "receipt",
    "attributes",
    "messages",
    "json",
    "metric",
    "sessions",
    "session",
    "alerts",
    "rule",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pipeline = Pipeline(tmp_path_factory.mktemp("everywhere"))
    pipeline.start()
    try:
        yield World(pipeline)
    finally:
        pipeline.stop()


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """Yield one tab for all tests: each page is a new document in it."""
    with browser.page() as opened:
        watch_policy(opened)
        yield opened


class Seen(NamedTuple):
    """
    What was seen of a page in one of its looks.

    Attributes:
        problems: Requests elsewhere, violations of the policy, errors, and text that became something else.
        findings: What axe finds, also in each state of the page and, in these, in both themes.
        wide: Name of the page or of a state that is wider than a window of 320 pixels -> its width.
        moving: With reduced motion, the number of running animations, and how the page scrolls.
        headings, title: The number of first headings, and the title of the document.
    """

    name: str
    problems: list[str]
    findings: list[str]
    wide: dict[str, int]
    moving: tuple[int, str]
    headings: int
    title: str


@pytest.fixture(scope="module")
def seen(world: World, tab: Page) -> list[Seen]:
    """Look at every page once, or in all four looks in the profile that tries everything."""
    found = []
    for number, (name, address) in enumerate(world.pages.items()):
        for scheme, width in LOOKS if WHOLE else [LOOKS[number % len(LOOKS)]]:
            look = f"{name}, {scheme}, {width} px"
            prefer(tab, scheme)
            resize(tab, width)
            show(tab, world.pipeline.url + address)
            problems = [f"{look}: {one}" for one in mistakes_in_text(tab, name)]
            headings, title = tab.evaluate("[document.querySelectorAll('h1').length, document.title]")
            told = [f"{look}: {one}" for one in accessibility(tab)]
            prefer(tab, scheme, motion=False)
            running = "document.getAnimations().filter((one) => one.playState === 'running').length"
            moving = tab.evaluate(f"[{running}, getComputedStyle(document.documentElement).scrollBehavior]")
            resize(tab, 320)
            wide = {look: width_of(tab)}
            for state in STATES.get(name, ()):
                resize(tab, width)
                state.opened(tab)
                settle(tab)
                for other in ("light", "dark"):
                    prefer(tab, other)
                    told += [f"{name}, {state.name}, {other}, {width} px: {one}" for one in accessibility(tab)]
                resize(tab, 320)
                wide[f"{look}, {state.name}"] = width_of(tab)
                leave(tab)
            problems += [f"{look}: {one}" for one in problems_of(world, tab)]
            too_wide = {name: width for name, width in wide.items() if width > 320}
            found.append(Seen(look, problems, told, too_wide, tuple(moving), headings, title))
    return found


def accessibility(tab: Page) -> list[str]:
    """Return what axe finds; nothing if it is not installed."""
    return findings(tab) if AXE.is_file() else []


def width_of(tab: Page) -> int:
    """Return the width of the page once charts have been drawn for the width of the window."""
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    width: int = tab.evaluate("document.scrollingElement.scrollWidth")
    return width


def test_nothing_leaves_and_what_strangers_wrote_is_text_on_every_page(world: World, seen: list[Seen]) -> None:
    """Every request is to the server, the policy is never violated, and hostile text is shown as it was written."""
    assert [one for each in seen for one in each.problems] == []
    assert RULE in [rule["name"] for rule in world.pipeline.get("/alerts").json()]


def problems_of(world: World, tab: Page) -> list[str]:
    """Return which requests, violations of the policy and errors of the page in *tab* should not have been."""
    # Forms that the API refuses are among the states.
    found = tab.problems(400)
    found += [f"violates the policy: {one}" for one in tab.evaluate("window.violations")]
    asked = [url for url in tab.requested() if url.startswith("http")]
    found += [f"asks {url}" for url in asked if not is_at(world.pipeline, url)]
    found += [] if asked else ["asks nothing"]
    return found + [f"{method}" for method, _ in tab.events if method == "Page.javascriptDialogOpening"]


def mistakes_in_text(tab: Page, name: str) -> list[str]:
    """Return where the page *name*, which is open in *tab*, does not show foreign text as text."""
    made = tab.evaluate("document.querySelectorAll('main img, main script, a[href^=javascript]').length")
    found = [f"{made} elements made of text"] if made else []
    text = text_of(tab)
    found += ["turns text around"] if "\u202e" in text else []
    expected = f"rule {SHOWN}" if name in ("alerts", "rule") else SHOWN
    return found + ([f"does not show {expected}"] if name in SHOWING and expected not in text else [])


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed, so accessibility is not tested: make page")
def test_axe_finds_nothing_on_any_page_nor_in_any_menu_dialog_or_form(seen: list[Seen]) -> None:
    """WCAG 2.2 AA, in both themes, at 1280 and 320 px."""
    assert [one for each in seen for one in each.findings] == []


def test_no_page_is_wider_than_a_narrow_window(seen: list[Seen]) -> None:
    assert {name: width for each in seen for name, width in each.wide.items()} == {}


def test_with_reduced_motion_nothing_moves_on_any_page(seen: list[Seen]) -> None:
    assert {each.name: each.moving for each in seen if each.moving != (0, "auto")} == {}


def test_each_page_has_one_heading_and_a_title(seen: list[Seen]) -> None:
    assert {each.name: each.headings for each in seen if each.headings != 1} == {}
    assert [each.name for each in seen if "tokentrace" not in each.title] == []


def test_axe_notices_a_planted_fault(world: World, tab: Page, tmp_path: Path) -> None:
    """So that an axe that does not run is not taken for a page without findings."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make page")
    show(tab, world.pipeline.url + world.pages["health"])
    tab.evaluate("document.querySelector('main').appendChild(document.createElement('button')).id = 'planted'; 0")
    assert any(one.startswith("button-name") and "planted" in one for one in findings(tab))


def json_answers(tab: Page) -> dict[str, int]:
    """Return path and query -> bytes as transferred, of each JSON answer that the document in *tab* got."""
    urls = {
        told["requestId"]: told["response"]["url"].split("/", 3)[3]
        for method, told in tab.events
        if method == "Network.responseReceived" and told["response"]["mimeType"] == "application/json"
    }
    ended = [told for method, told in tab.events if method == "Network.loadingFinished"]
    return {urls[told["requestId"]]: told["encodedDataLength"] for told in ended if told["requestId"] in urls}


def test_the_overview_asks_little(world: World, tab: Page) -> None:
    """At most 8 requests beside those of the header, which every page makes, and 200 KB of JSON in all."""
    prefer(tab, "light")
    resize(tab, 1280)
    show(tab, world.pipeline.url + world.pages["no such page"])
    of_header = {url.partition("?")[0] for url in json_answers(tab)}
    show(tab, f"{world.pipeline.url}/#/?window=1h")
    answers = json_answers(tab)
    own = [url for url in answers if url.partition("?")[0] not in of_header]
    assert 0 < len(own) <= MOST_REQUESTS, own
    assert len(answers) <= MOST_REQUESTS + len(of_header), sorted(answers)
    assert sum(answers.values()) <= 200_000, answers
