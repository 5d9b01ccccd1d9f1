"""The site that `make docs` builds: the reference of the Python client shows every public name with its docstring."""

from __future__ import annotations

import html
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tokentrace
from kit.environment import PATIENCE, ROOT

NAMES = sorted(set(tokentrace.__all__) - {"__version__"})


def load_site() -> ModuleType:
    """Return docs/site.py, whose name is that of a module of the standard library."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = load_site()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the Python client."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120 * PATIENCE, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return (Path(site) / "reference" / "python" / "index.html").read_text()


def words(text: str) -> str:
    """Return letters and digits alone, because Markdown changes the rest."""
    return " ".join(re.findall(r"\w+", text))


def section(page: str, anchor: str) -> str:
    """Return the words between a heading and the next one of an object."""
    _, _, rest = page.partition(f'id="{anchor}"')
    return words(html.unescape(re.sub(r"<[^>]+>", " ", re.split(r'<h[2-6] id="', rest)[0])))


def description(value: Any) -> str:
    """Return the words of a docstring before its first section."""
    return words(re.split(r"^(?:Args|Attributes|Returns|Raises):$", inspect.getdoc(value) or "", flags=re.MULTILINE)[0])


def test_every_public_name_is_in_one_topic() -> None:
    listed = [name for _, _, names in SITE.TOPICS for name in names]
    assert sorted(listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_a_public_name_and_its_methods_with_their_docstrings(page: str, name: str) -> None:
    value = getattr(tokentrace, name)
    assert description(value)
    assert description(value) in section(page, SITE.place_of(name))
    if inspect.isclass(value):
        hidden = SITE.INTERNAL.get(name, ())
        for method, member in inspect.getmembers(value, inspect.isroutine):
            is_ours = (getattr(member, "__module__", None) or "").startswith("tokentrace")
            if is_ours and not method.startswith("_") and method not in hidden:
                assert description(member) in section(page, f"tokentrace.{name}.{method}"), method
        for method in hidden:
            assert f'id="tokentrace.{name}.{method}"' not in page


def test_the_page_shows_the_topics_in_their_order_and_the_tables_of_arguments(page: str) -> None:
    headings = [html.unescape(text) for text in re.findall(r"<h2 id=\"[^\"]+\">([^<]+)", page)]
    assert headings == [topic for topic, _, _ in SITE.TOPICS] + ["Ids in log lines"]
    assert "stream_usage_hosts" in section(page, SITE.place_of("instrument"))
    assert "US dollars" in section(page, "tokentrace.Budget")
    assert "route_names" in section(page, "tokentrace.TraceMiddleware")


def test_the_page_shows_no_private_name(page: str) -> None:
    assert re.findall(r'id="tokentrace\.(?:\w+\.)*_\w+"', page) == []
