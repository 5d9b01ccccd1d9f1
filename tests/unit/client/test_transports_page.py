"""The page about transports names every option of every transport with its default."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import tokentrace
from kit.environment import ROOT

PAGE = (ROOT / "docs" / "how-to" / "transports.md").read_text(encoding="utf-8")
#: Classes whose options the page lists.
LISTED = ("FileTransport", "HttpTransport", "StdoutTransport")


def documented(name: str) -> dict[str, str]:
    """Return option -> default, as text, of the table about the transport *name*."""
    (table,) = re.findall(rf"^\| Option of `{name}` .*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {row[0].strip("`"): row[1].strip("`") for row in rows}


def options(name: str) -> dict[str, str]:
    """Return option -> default, as text, of the class *name*."""
    kind: Any = getattr(tokentrace, name)
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: "required" if p.default is inspect.Parameter.empty else str(p.default) for p in parameters}


@pytest.mark.parametrize("name", LISTED)
def test_the_page_lists_the_options_of_a_transport_with_their_defaults(name: str) -> None:
    assert documented(name) == options(name)


def test_the_page_names_every_transport_of_the_package() -> None:
    for name in (name for name in tokentrace.__all__ if name.endswith("Transport")):
        assert f"`{name}`" in PAGE


def test_the_page_names_every_counter() -> None:
    for counter in tokentrace.Stats._fields:
        assert f"| `{counter}` |" in PAGE
