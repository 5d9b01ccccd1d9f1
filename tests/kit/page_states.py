"""What can be opened on the pages of ``kit.every_page``: menus, dialogs, forms with errors. Each state is for axe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from kit.chromium import Page
from kit.page_numbers import chart

#: JavaScript: an open dialog.
_DIALOG = "document.querySelector('dialog[open]') !== null"


class State(NamedTuple):
    """
    A state of a page.

    Attributes:
        opened: Brings a page that is drawn into the state, and waits for it.
    """

    name: str
    opened: Callable[[Page], None]


def _click(selector: str, text: str, shown: str) -> Callable[[Page], None]:
    """Click the first element that *selector* finds and whose text begins with *text*, until *shown* is true."""

    def act(page: Page) -> None:
        found = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find((one) => one.innerText.startsWith({text!r}))"
        )
        page.until(f"{found} !== undefined")
        page.evaluate(f"{found}.click()")
        page.until(shown)

    return act


def _press(focus: str, keys: list[str], shown: str) -> Callable[[Page], None]:
    """Give the element that the JavaScript *focus* finds the focus, and press *keys*, until *shown* is true."""

    def act(page: Page) -> None:
        page.evaluate(f"{focus}.focus()")
        page.press(*keys)
        page.until(shown)

    return act


def _filled(fields: dict[str, str], button: str, shown: str) -> Callable[[Page], None]:
    """Write into fields, by selector, of the open dialog or else the page, press *button*, until *shown* is true."""

    def act(page: Page) -> None:
        root = "(document.querySelector('dialog[open]') ?? document)"
        for selector, value in fields.items():
            page.evaluate(
                f"(() => {{ const field = {root}.querySelector({json.dumps(selector)}); field.value = {value!r};"
                "field.dispatchEvent(new Event('input', {bubbles: true})) })()"
            )
        if button:
            buttons = f"[...{root}.querySelectorAll('button')]"
            page.evaluate(f"{buttons}.find((one) => one.innerText === {button!r}).click()")
        page.until(shown)

    return act


def _then(*acts: Callable[[Page], None]) -> Callable[[Page], None]:
    def act(page: Page) -> None:
        for one in acts:
            one(page)

    return act


def _fixed_range(page: Page) -> None:
    page.evaluate(
        "(() => { const range = document.getElementById('range'); range.value = 'fixed';"
        "range.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    page.until(_DIALOG)


_silence = _click("main button", "silence…", _DIALOG)
_FILTER = "document.getElementById('filter')"
_COST = chart("Cost by")
_LATENCY = chart("Latency")
#: Page of ``World.pages`` -> its states, in the order in which they are opened.
STATES: dict[str, tuple[State, ...]] = {
    "overview": (
        State("filter menu", _press(_FILTER, [], "document.querySelector('.filter-menu [role=option]') !== null")),
        State(
            "filter values",
            _press(_FILTER, [*"model", "Enter"], "document.querySelector('.filter-menu [role=option]') !== null"),
        ),
        State("range dialog", _fixed_range),
        State("keys", _press("document.querySelector('h1')", ["?"], _DIALOG)),
        State("values of a step", _press(_LATENCY, ["ArrowRight"], "document.querySelector('.chart-tip') !== null")),
        State("table of a chart", _press(_COST, ["T"], "document.querySelector('.chart-table td') !== null")),
    ),
    "metric": (
        State(
            "distribution as a table",
            _click(".panel button", "table", "document.querySelector('.chart-table td') !== null"),
        ),
    ),
    "traces": (
        State("filter menu", _press(_FILTER, ["a"], "document.querySelector('.filter-menu [role=option]') !== null")),
        State(
            "a filter that is none",
            _press(_FILTER, [*"a=b", "Enter"], "document.querySelector('[role=alert]') !== null"),
        ),
        State(
            "columns", _click("summary", "columns", "document.querySelectorAll('.traces-columns input').length > 12")
        ),
        State("export", _click("summary", "export", "document.querySelector('.traces-export a') !== null")),
        State(
            "menu of a cell", _click("td button.traces-cell", "", "document.querySelector('[role=menuitem]') !== null")
        ),
        State(
            "selected",
            _press("document.querySelector('td.name a')", ["x"], "document.querySelector('.traces-compared') !== null"),
        ),
        State("keys", _press("document.querySelector('h1')", ["?"], _DIALOG)),
    ),
    "trace": (
        State(
            "drawer",
            _press(
                "document.querySelector('[role=treegrid]')",
                ["Enter"],
                "document.querySelector('aside #panel') !== null",
            ),
        ),
        State("statistics by name", _click("main button", "by name", "location.hash.includes('names=')")),
        State(
            "hits", _press(_FILTER, ["i"], "document.querySelector('.tools-of-spans [role=status]')?.innerText !== ''")
        ),
        State(
            "lanes",
            _press(
                "document.querySelector('[role=treegrid]')",
                ["d", "p"],
                "document.querySelector('[role=grid]') !== null",
            ),
        ),
        State("keys", _press("document.querySelector('h1')", ["?"], _DIALOG)),
        State("delete dialog", _click("main button", "delete…", _DIALOG)),
    ),
    "session, active": (State("end dialog", _click("main button", "End session", _DIALOG)),),
    "alerts": (
        State("silence dialog", _silence),
        State(
            "silence refused",
            _then(
                _silence,
                _filled(
                    {"[name=duration]": "long"},
                    "silence",
                    "document.querySelector('dialog[open] [role=alert]') !== null",
                ),
            ),
        ),
    ),
    "rule": (State("delete dialog", _click("main button", "delete…", _DIALOG)),),
    "new rule": (
        State("refused", _filled({}, "create", "document.querySelector('.alerts-rule [aria-invalid=true]') !== null")),
        State(
            "preview",
            _filled(
                {"#rule-threshold": "1", "#rule-metric": "total_cost"},
                "",
                "document.querySelector('.alerts-preview [role=application]') !== null",
            ),
        ),
    ),
    "login": (
        State("refused", _filled({"#token": "wrong"}, "Log in", "document.querySelector('.note.error') !== null")),
    ),
}


def leave(page: Page) -> None:
    """Close what a state has opened, without leaving the page."""
    page.evaluate(
        "document.querySelectorAll('dialog[open]').forEach((one) => one.close());"
        "document.querySelectorAll('details[open]').forEach((one) => { one.open = false });"
        "document.activeElement.blur()"
    )
    page.press("Escape")
