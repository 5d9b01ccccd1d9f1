"""Documents: the links, settings, variables and tests in them exist, and their lists of fields match the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from tokentrace.config import Settings, build, parse_yaml
from tokentrace.records import (
    Annotation,
    Batch,
    ChatMessage,
    ReporterStats,
    Score,
    SessionEnd,
    Span,
    Started,
    Tombstone,
)
from tokentrace_alerter.service import Config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
NAMES = [str(file.relative_to(ROOT)) for file in DOCUMENTS]
RECORDS = (Batch, Span, ReporterStats, Started, Score, ChatMessage, SessionEnd, Tombstone, Annotation)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
VARIABLE = re.compile(r"\b(?:TOKENTRACE|TRACE)_[A-Z_]+\b")
SCHEME = re.compile(r"[a-z]+:")
KEY = re.compile(r"`([a-z_]+(?:\.[A-Za-z_<>-]+)+)`")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """Return the text of a document without its blocks of code."""
    return FENCE.sub("", read(name))


def anchors(file: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of *file*."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse(read(file))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@cache
def source_variables() -> set[str]:
    """Return the environment variables that the sources of programs and tests name."""
    folders = ("shared", "services", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file != Path(__file__)]
    return {word for file in files for word in VARIABLE.findall(file.read_text(encoding="utf-8"))}


def is_setting(key: str, kind: inspect.Type) -> bool:
    """Return True if *key*, names with dots between them, leads to a setting within *kind*."""
    if isinstance(kind, inspect.Metadata):
        return is_setting(key, kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(is_setting(key, member) for member in kind.types)
    if isinstance(kind, inspect.ListType):
        return is_setting(key, kind.item_type)
    if not key:
        return True
    name, _, rest = key.partition(".")
    if isinstance(kind, inspect.DictType):
        return is_setting(rest, kind.value_type)
    if isinstance(kind, inspect.StructType):
        return any(is_setting(rest, field.type) for field in kind.fields if field.encode_name == name)
    return False


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (document, text) of every block of code in *language*."""
    return [(name, text) for name in NAMES for tag, text in FENCE.findall(read(name)) if tag == language]


def leads_somewhere(name: str, target: str) -> bool:
    """Return True if the link *target* in the document *name* leads to a file and, if it names one, a heading."""
    path, _, anchor = target.partition("#")
    file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
    return file.exists() and file.is_relative_to(ROOT) and (not anchor or anchor in anchors(file))


def test_every_relative_link_leads_to_a_file_or_a_heading() -> None:
    links = [(name, target) for name in NAMES for target in LINK.findall(prose(name)) if not SCHEME.match(target)]
    assert len(links) > 50
    assert [link for link in links if not leads_somewhere(*link)] == []


def test_every_test_that_a_document_names_exists() -> None:
    named = [(name, file, test) for name in NAMES for file, test in TEST.findall(read(name))]
    assert len(named) > 30
    assert [names for names in named if not (ROOT / names[1]).is_file() or names[2] not in functions(names[1])] == []


def test_every_jetstream_fact_names_a_test() -> None:
    facts = re.split(r"^(?=\*\*)", prose("docs/explanation/jetstream.md"), flags=re.MULTILINE)[1:]
    assert len(facts) > 20
    assert [fact.splitlines()[0] for fact in facts if not TEST.search(fact)] == []


def test_every_setting_that_a_document_names_exists() -> None:
    schema = inspect.type_info(Settings)
    assert isinstance(schema, inspect.StructType)
    sections = {field.encode_name for field in schema.fields}
    named = [(name, key) for name in NAMES for key in KEY.findall(prose(name)) if key.partition(".")[0] in sections]
    assert len(named) > 30
    assert [(name, key) for name, key in named if not is_setting(key, schema)] == []


def test_a_setting_that_does_not_exist_would_be_noticed() -> None:
    schema = inspect.type_info(Settings)
    assert is_setting("pricing.models.<model>.prompt_per_1m", schema)
    assert is_setting("alerts.delivery.url", schema)
    assert not is_setting("nats.shard", schema)
    assert not is_setting("nats.shards.more", schema)


def test_every_environment_variable_that_a_document_names_occurs_in_the_sources() -> None:
    named = [(name, word) for name in NAMES for word in VARIABLE.findall(read(name))]
    assert len(named) > 10
    assert [(name, word) for name, word in named if word not in source_variables()] == []


@pytest.mark.parametrize(("name", "text"), blocks("yaml"), ids=[name for name, _ in blocks("yaml")])
def test_every_yaml_block_is_a_valid_configuration(name: str, text: str) -> None:
    settings = build(parse_yaml(text, name, environ={}), name)
    assert len(Config.of(settings).rules) == len(settings.alerts)


@pytest.mark.parametrize("record", RECORDS)
def test_the_wire_format_page_lists_every_field_in_its_order(record: type[msgspec.Struct]) -> None:
    page = read("docs/explanation/wire-format.md")
    section = page.partition(f"\n### {record.__name__}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    assert rows == [(str(number), field) for number, field in enumerate(record.__struct_fields__)]


def test_the_decisions_are_numbered_without_a_gap_and_listed() -> None:
    files = sorted(file.name for file in (DOCS / "decisions").glob("[0-9]*.md"))
    assert [name[:4] for name in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    listed = re.findall(r"^\| \[\d{4}\]\(([^)]+)\)", read("docs/decisions/README.md"), re.MULTILINE)
    assert listed == files


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, todo = set[Path](), [DOCS / "README.md"]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        targets = [target.partition("#")[0] for target in LINK.findall(prose(str(file.relative_to(ROOT))))]
        pages = [(file.parent / target).resolve() for target in targets if target.endswith(".md")]
        todo += [page for page in pages if page.is_relative_to(DOCS)]
    assert sorted(set(DOCS.rglob("*.md")) - seen) == []


def test_the_index_and_the_site_list_every_guide_and_explanation() -> None:
    pages = sorted(
        str(file.relative_to(DOCS)) for name in ("how-to", "explanation") for file in (DOCS / name).glob("*.md")
    )
    assert len(pages) > 15
    assert [page for page in pages if f"({page})" not in read("docs/README.md")] == []
    assert [page for page in pages if f"- {page}\n" not in read("mkdocs.yml")] == []


def test_no_document_cites_a_page_that_is_not_in_the_repository() -> None:
    assert [(name, cited) for name in NAMES for cited in re.findall(r"\b(?:SPEC|DESIGN)\b.{0,20}", read(name))] == []
