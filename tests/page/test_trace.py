"""A trace and the receipt of a span in a real browser that can reach only 127.0.0.1."""

from __future__ import annotations

import json

import pytest

from kit.chromium import Page
from kit.page_world import DRAWER, GRID, LISTED, MANY, ROWS, SELECTED, SHOWN, assert_clean, names, needs_chromium
from kit.pipeline import Pipeline

pytestmark = needs_chromium


def test_the_list_leads_by_keyboard_to_the_receipt_of_the_dearest_span(serving: Pipeline, page: Page) -> None:
    page.prefer("light")
    page.open(serving.url + "/#/traces")
    page.until(f"{LISTED} === 3")
    assert "research-agent" in names(page)
    at = names(page).index("research-agent")
    page.press(*["j"] * (at + 1), "Enter")
    page.until(f"{GRID} !== null")
    page.press("$")
    page.until(f"({SELECTED}).includes('dear answer')")
    page.press("Enter")
    receipt = serving.get("/traces/many/spans/s5055/receipt").json()
    text = page.until(f"({DRAWER}).includes('input tokens') && ({DRAWER})")
    assert f"Cost ${receipt['cost_usd']}" in text
    for line in receipt["lines"]:
        assert f"${line['cost_usd']}" in text
    assert page.evaluate("document.activeElement.textContent") == "receipt"
    page.press("ArrowRight")
    page.until("document.activeElement.textContent === 'messages'")
    page.press("Escape")
    page.until(f"document.activeElement === {GRID}")
    page.press("e")
    page.until(f"({SELECTED}).includes('failed call')")
    page.press("Home", "1")
    page.until(f"{ROWS} === 1")
    page.press("ArrowRight")
    page.until(f"{ROWS} > 10")
    page.press("g", "t")
    page.until(f"{LISTED} === 3")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert_clean(page, serving)


def test_of_ten_thousand_spans_only_the_rows_in_view_are_in_the_document(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces/many")
    page.until(f"{GRID} !== null && {ROWS} > 0")
    assert page.evaluate(f"{GRID}.getAttribute('aria-rowcount')") == str(MANY + 1)
    most = page.evaluate(f"Math.ceil({GRID}.clientHeight / 28) + 16")
    blank = (
        f"(() => {{ const box = {GRID}.getBoundingClientRect(); return [0.1, 0.5, 0.95].filter((part) => "
        "!document.elementFromPoint(box.left + 40, box.top + part * box.height)?.closest('.row')).length })()"
    )
    for top in (0, 5000, 123_456, 279_000, 10):
        page.evaluate(f"{GRID}.scrollTop = {top}")
        page.until(f"{blank} === 0")
        assert 0 < page.evaluate(ROWS) <= most
    page.press("End")
    page.until(f"({SELECTED}).includes('step 9999')")
    assert page.evaluate(f"document.getElementById({GRID}.getAttribute('aria-activedescendant')) !== null")
    assert page.evaluate(ROWS) <= most
    page.press("Home", "1", "ArrowRight", *["j"] * 40, *["k"] * 7)
    page.until(f"({SELECTED}).startsWith('step 33\\n')")
    assert_clean(page, serving)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_strangers_wrote_is_shown_as_text_in_both_themes(serving: Pipeline, page: Page, scheme: str) -> None:
    page.prefer(scheme)
    page.open(serving.url + "/#/traces")
    page.until(f"{LISTED} === 3")
    assert SHOWN in names(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    for tab in ("messages", "scores", "receipt", "attributes", "json"):
        page.open(f"{serving.url}/#/traces/hostile?span=s0&tab={tab}")
        text = page.until(f"({DRAWER}).includes('error:') && document.querySelector('#panel')?.innerText && ({DRAWER})")
        assert SHOWN in text, tab
        assert SHOWN in page.evaluate(SELECTED)
    panel = page.evaluate("document.querySelector('#panel').innerText")
    assert SHOWN in panel
    assert "javascript:alert(3)" in panel
    assert "more characters" in panel
    assert page.evaluate("document.querySelectorAll('img, script:not([src]), a[href^=javascript]').length") == 0
    assert page.evaluate("document.querySelector('h1').innerText") == SHOWN
    assert_clean(page, serving)


def test_orphans_and_circles_are_roots_with_a_note(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces/loop%2F%20%25")
    page.until(f"{ROWS} === 4")
    text = page.evaluate(f"{GRID}.innerText")
    assert text.count("its parent is not in the trace") == 1
    assert text.count("its parents form a circle") == 1
    assert_clean(page, serving)


def test_an_address_shows_the_same_in_another_tab_and_says_what_it_does_not_understand(
    serving: Pipeline, page: Page
) -> None:
    page.open(serving.url + "/?#/traces?status=error&colour=red")
    page.until(f"{LISTED} === 2")
    assert page.evaluate("document.querySelector('.chip.wrong').innerText").startswith("colour: not understood")
    page.evaluate("[...document.querySelectorAll('td.name a')].find((a) => a.innerText === 'research-agent').click()")
    page.until(f"{GRID} !== null && {ROWS} > 0")
    page.press("2", "e", "Enter")
    page.until(f"({DRAWER}).includes('429 too many') && document.querySelector('#panel')?.innerText")
    address = page.evaluate("location.href")
    assert "status=error" in address
    shown = page.evaluate("document.querySelector('main').innerText")
    page.open("about:blank")
    page.open(address)
    page.until(f"({DRAWER}).includes('429 too many') && document.querySelector('#panel')?.innerText")
    again = page.evaluate("document.querySelector('main').innerText")
    assert _selected_part(again) == _selected_part(shown)
    page.evaluate("[...document.querySelectorAll('main a')].find((a) => a.innerText.includes('traces')).click()")
    page.until(f"{LISTED} === 2")
    assert page.evaluate("document.querySelector('.chip').innerText").startswith("status = error")


def _selected_part(text: str) -> str:
    return text[text.index("429 too many") :][:200]


def test_a_span_with_others_below_it_costs_the_same_in_its_row_and_in_the_drawer(serving: Pipeline, page: Page) -> None:
    page.open(f"{serving.url}/#/traces/many?span=s0&tab=receipt")
    text = page.until(f"({DRAWER}).includes('in it and below it') && ({DRAWER})")
    total = serving.get("/traces/many/timeline?limit=1").json()["total_cost_usd"]
    assert page.evaluate("document.querySelector('.row[aria-selected=true] .number').innerText") == f"${total:.2f}"
    assert f"cost\n${total:.2f} in it and below it" in text
    assert "its own\nnone: what a span of the kind workflow costs is that of the calls below it" in text


def test_keys_that_come_as_soon_as_the_rows_are_there_are_heard(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces")
    page.until(f"{LISTED} === 3")
    # The observer runs right after the page has put rows into the document, before the browser draws them.
    page.evaluate("""new MutationObserver((_, observer) => {
      if (!document.querySelector('.row')) return
      observer.disconnect()
      const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
      for (const key of ['2', 'e', 'Enter']) press(key)
    }).observe(document.body, { childList: true, subtree: true }), location.hash = '#/traces/many'""")
    page.until(f"({DRAWER}).includes('failed call')")


def test_at_most_eight_keys_lead_from_the_list_to_a_receipt_and_no_key_loses_the_focus(
    serving: Pipeline, page: Page
) -> None:
    page.open(serving.url + "/#/traces")
    page.until(f"{LISTED} === 3")
    to_trace = ["j"] * (names(page).index("research-agent") + 1) + ["Enter"]
    page.press(*to_trace)
    page.until(f"{GRID} !== null && {ROWS} > 0")
    page.press("$", "Enter")
    page.until(f"({DRAWER}).includes('input tokens')")
    assert len(to_trace) + 2 <= 8
    # Fold, find, next hit, next error, zoom, a lane for each level and back, the path, the next tab, close.
    for keys, shown in (
        (["Escape", "1"], f"{ROWS} === 1"),
        (["/", *"step 10"], "document.querySelector('.tools-of-spans [role=status]')?.innerText.endsWith('hits')"),
        (["Enter"], "/^1\\/\\d/.test(document.querySelector('.tools-of-spans [role=status]').innerText)"),
        (["Escape", "n"], "/^2\\/\\d/.test(document.querySelector('.tools-of-spans [role=status]').innerText)"),
        (["e"], f"({SELECTED}).includes('failed call')"),
        (["."], "location.hash.includes('zoom=70770-71770')"),
        (["+"], "location.hash.includes('zoom=71020-71520')"),
        (["-", "-", "0"], "!location.hash.includes('zoom=')"),
        (["d"], "document.querySelector('[role=grid]') !== null"),
        (["ArrowRight"], "location.hash.includes('span=s7078')"),
        (["d", "p"], "location.hash.includes('path=critical')"),
        (["Enter"], f"({DRAWER}).includes('step 7078')"),
        (["ArrowRight"], "document.activeElement.textContent === 'messages'"),
        (["Escape"], f"document.querySelector('aside') === null && document.activeElement === {GRID}"),
        (["r"], f"{ROWS} > 0"),
    ):
        for key in keys:
            page.press(key)
            assert page.evaluate("document.activeElement !== document.body"), key
        page.until(shown)
    assert_clean(page, serving)


def test_folds_zoom_search_selection_and_switches_are_in_the_address(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces/many?status=error")
    page.until(f"{GRID} !== null && {ROWS} > 0")
    page.press("2")
    page.until(f"{ROWS} > 10 && location.hash.includes('fold=depth')")
    for keys in (["End", "ArrowRight"], ["j", "j", "j"], ["."], ["p"], ["/", *"step 10"], ["Escape"]):
        page.press(*keys)
    page.evaluate("[...document.querySelectorAll('button')].find((each) => each.innerText === 'by name').click()")
    page.press("Enter")
    page.evaluate(f"{GRID}.focus()")
    page.press("Enter")
    page.until(f"({DRAWER}).includes('sum')")
    for part in (
        "fold=depth%3A2",
        "unfolded=s9900",
        "span=s9903",
        "zoom=99030-100030",
        "find=step+10",
        "path=critical",
        "tab=",
    ):
        page.until(f"location.hash.includes('{part}')")
    # Which rows are seen above and below the selected one is not in the address.
    picture = (
        f"JSON.stringify([{DRAWER}, {SELECTED}, document.querySelector('.facts-of-trace').innerText, "
        "document.getElementById('filter').value, "
        "[...document.querySelectorAll('main [aria-pressed]')].map((each) => each.innerText + each.ariaPressed)])"
    )
    # While the next span loads, the drawer keeps the last one, dimmed.
    page.until(
        f"({DRAWER}).includes('step 9903') && ({DRAWER}).includes('sum') && !document.querySelector('aside .stale')"
    )
    shown = page.evaluate(picture)
    address = page.evaluate("location.href")
    assert "status=error" in address
    page.open("about:blank")
    page.open(address)
    page.until("document.querySelector('.facts-of-trace') !== null && document.querySelector('.around') !== null")
    page.until(f"{picture} === {json.dumps(shown)}")
    page.evaluate("history.replaceState(null, '', location.href)")
    before = page.evaluate("history.length")
    page.press("j", "j")
    page.until("location.hash.includes('span=s9905')")
    assert page.evaluate("history.length") == before
    page.evaluate(
        "[...document.querySelectorAll('.row')].find((row) => row.innerText.trim().startsWith('▾step 9900')).click()"
    )
    page.until("location.hash.includes('span=s9900')")
    assert page.evaluate("history.length") == before + 1
    page.evaluate("history.back()")
    page.until("location.hash.includes('span=s9905')")
    page.until(f"({SELECTED}).startsWith('step 9905')")
    assert_clean(page, serving)


def test_dragging_over_the_minimap_or_the_axis_zooms_and_the_wheel_too(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces/many")
    page.until(f"{GRID} !== null && {ROWS} > 0")
    zoom = "new URLSearchParams(location.hash.split('?')[1]).get('zoom')?.split('-').map(Number)"

    def mouse(kind: str, x: float, y: float, **more: object) -> None:
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(selector: str, one: float, other: float) -> list[float]:
        box = page.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        y = box["top"] + box["height"] / 2
        at = [box["left"] + part * box["width"] for part in (one, other)]
        mouse("mousePressed", at[0], y, button="left", clickCount=1)
        mouse("mouseMoved", sum(at) / 2, y, button="left", buttons=1)
        assert page.until("document.querySelector('.dragged') !== null")
        mouse("mouseMoved", at[1], y, button="left", buttons=1)
        before = page.evaluate(f"JSON.stringify({zoom} ?? null)")
        mouse("mouseReleased", at[1], y, button="left", clickCount=1)
        page.until(f"JSON.stringify({zoom} ?? null) !== {before!r}")
        found: list[float] = page.evaluate(zoom)
        return found

    length = page.evaluate("fetch('traces/many/timeline?limit=1').then((answer) => answer.json())")["duration_ms"]
    assert drag(".minimap", 0.75, 0.25) == pytest.approx([length / 4, length * 3 / 4], rel=0.01)
    assert drag(".axis", 0.5, 1) == pytest.approx([length / 2, length * 3 / 4], rel=0.01)
    box = page.evaluate("document.querySelector('.axis').getBoundingClientRect().toJSON()")
    before = page.evaluate(zoom)
    mouse("mouseWheel", box["left"] + box["width"] / 2, box["top"] + 60, deltaX=0, deltaY=-120, modifiers=2)
    page.until(f"{zoom}[1] - {zoom}[0] < {before[1] - before[0]}")
    assert sum(page.evaluate(zoom)) == pytest.approx(sum(before), rel=0.02)
    page.evaluate("document.querySelector('.axis').dispatchEvent(new MouseEvent('dblclick', { bubbles: true }))")
    page.until(f"{zoom} === undefined")
    assert_clean(page, serving)


def test_at_320_pixels_the_name_stands_above_its_bar_and_nothing_scrolls_sideways(
    serving: Pipeline, page: Page
) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=False)
    page.open(serving.url + "/#/traces/many?span=s5055&tab=receipt")
    page.until(f"({DRAWER}).includes('sum') && {ROWS} > 5")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    name, bar = page.evaluate(
        "['.label', '.lane'].map((part) => document.querySelector(`.row ${part}`).getBoundingClientRect().toJSON())"
    )
    assert name["bottom"] <= bar["top"] + 1
    assert bar["width"] > 200
    assert_clean(page, serving)
