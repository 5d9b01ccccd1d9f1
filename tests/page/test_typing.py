"""What one types stays in its field, however late the page gets to its own work."""

from __future__ import annotations

import pytest

from kit.chromium import Page
from kit.page_world import GRID, needs_chromium
from kit.pipeline import Pipeline

pytestmark = needs_chromium
#: JavaScript: types into the field `#filter` as its last letter does, and waits until all is drawn that does not wait
#: for a picture. A busy browser draws no picture for long, so nothing here lets it draw one.
_WITHIN_ONE_PICTURE = """
(async () => {
  const drawn = async () => { for (let turn = 0; turn < 50; turn++) await null }
  const field = () => document.querySelector('#filter')
  const type = async (text) => {
    field().focus()
    field().value += text
    field().dispatchEvent(new Event('input', { bubbles: true }))
    await drawn()
  }
  %s
  return field().value
})()
"""


@pytest.mark.parametrize("changes", [["by depth", "by depth"], ["critical path", "by name", "by depth"]])
def test_a_letter_typed_right_after_changes_of_the_address_stays(
    serving: Pipeline, page: Page, changes: list[str]
) -> None:
    page.open(serving.url + "/#/traces/many")
    page.until(f"{GRID} !== null && document.querySelector('#filter') !== null")
    clicks = "".join(
        f"[...document.querySelectorAll('main button')].find((each) => each.innerText === '{text}').click();"
        "await drawn();"
        for text in changes
    )
    assert page.evaluate(_WITHIN_ONE_PICTURE % f"{clicks} await type('d'); await type('e')") == "de"
    page.until("location.hash.includes('find=de')")
    assert page.evaluate("document.querySelector('#filter').value") == "de"
    page.type("ar")
    page.until("location.hash.includes('find=dear')")
    assert page.evaluate("document.querySelector('.tools-of-spans [role=status]').innerText") == "1 hit"


def test_the_first_letter_of_a_filter_of_sessions_stays(serving: Pipeline, page: Page) -> None:
    page.open(serving.url + "/#/traces?q=none")
    page.until("document.querySelector('.empty') !== null")
    shown = "location.hash = '#/sessions'; dispatchEvent(new HashChangeEvent('hashchange')); await drawn();"
    assert page.evaluate(_WITHIN_ONE_PICTURE % f"{shown} await type('c')") == "c"
    page.until("document.querySelector('.sessions-cards dd') !== null")
    page.type("hat")
    assert page.evaluate("[document.activeElement.id, document.activeElement.value]") == ["filter", "chat"]
    # A search is a change of the address, under which one goes on typing.
    search = "document.querySelector('.sessions-filters').requestSubmit(); await drawn();"
    assert page.evaluate(_WITHIN_ONE_PICTURE % f"{search} await type('s')") == "chats"
    page.press("Enter")
    page.until("location.hash === '#/sessions?label=chats'")
    assert page.evaluate("document.querySelector('#filter').value") == "chats"
