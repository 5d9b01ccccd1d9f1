"""The architecture that ARCHITECTURE.md describes: no cyclic imports, and import contracts that report violations."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from kit.environment import ROOT

SOURCES = [ROOT / "shared", *sorted(path for path in (ROOT / "services").iterdir() if path.is_dir())]


def modules(sources: list[Path]) -> dict[str, Path]:
    """Return module name -> file of every Python file under *sources*."""
    found = {}
    for source in sources:
        for file in source.rglob("*.py"):
            parts = file.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(file: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules among *known* that *file* imports by absolute name, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
    return found & known.keys()


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not (strongly connected components)."""

    def reachable(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for module in graph[todo.pop()]:
                if module not in seen:
                    seen.add(module)
                    todo.append(module)
        return seen

    reach = {module: reachable(module) for module in graph}
    found = {frozenset(m for m in reach[module] if module in reach[m]) for module in graph if module in reach[module]}
    return sorted(sorted(cycle) for cycle in found)


@pytest.mark.long
def test_no_modules_import_each_other_in_a_cycle() -> None:
    known = modules(SOURCES)
    assert len(known) > 100
    graph = {name: imports_of(file, known) - {name} for name, file in known.items()}
    assert cycles(graph) == []


def test_a_cycle_of_three_modules_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


VIOLATIONS = {
    "a clock in the core": ("shared/tokentrace/rollup/series.py", "import time", "the core knows no clock and no I/O"),
    "an import of a module behind its package": (
        "services/api/tokentrace_api/live_tail.py",
        "from tokentrace.rollup.series import SeriesTable",
        "tokentrace.rollup is imported through its face",
    ),
    "a service that imports another": (
        "services/api/tokentrace_api/live_tail.py",
        "import tokentrace_alerter.machine",
        "services never import each other",
    ),
    "a lower package that imports a higher one": (
        "shared/tokentrace/records/position.py",
        "import tokentrace.config",
        "floors inside shared",
    ),
    "nats outside the bus": ("shared/tokentrace/service/retry.py", "import nats", "only bus.jetstream imports nats"),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what import-linter says about a copy of the sources with all ``VIOLATIONS``."""
    copy = tmp_path_factory.mktemp("violations")
    for folder in ("shared", "services"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    head = "from __future__ import annotations\n"
    for file, line, _ in VIOLATIONS.values():
        text = (copy / file).read_text()
        assert head in text
        (copy / file).write_text(text.replace(head, f"{head}\n{line}\n", 1))
    paths = [str(copy / source.relative_to(ROOT)) for source in SOURCES]
    result = subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "lint-imports"), "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_contract_reports_the_violation(name: str, reports: str) -> None:
    file, line, contract = VIOLATIONS[name]
    assert any(contract in report and "BROKEN" in report for report in reports.splitlines()), reports
    # Below the table, each broken contract has a section with the imports that break it.
    sections = re.split(r"\n(?=[^\n]+\n-+\n)", reports)
    (section,) = [section for section in sections if section.startswith(contract) and "\n---" in section]
    importer = Path(file).with_suffix("").parts[2 if file.startswith("services") else 1 :]
    imported = line.split()[1]
    assert f"{'.'.join(importer)} -> {imported} (l." in section, section


def test_files_have_fewer_than_500_lines() -> None:
    folders = ("shared", "services", "bench", "examples", "docs", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert [str(file.relative_to(ROOT)) for file in files if len(file.read_text().splitlines()) >= 500] == []


#: Modules that may ask the host for the time of day: the clock that replaces it, the default of a record's time, the
#: broker in memory, applications that report spans, and the commands that a person types.
MAY_ASK_THE_HOST = (
    "tokentrace.bad_data",
    "tokentrace.bus.clock",
    "tokentrace.bus.memory.",
    "tokentrace.client.",
    "tokentrace_standalone.",
    # How a log line shows its time, and the end of the name under which a damaged file is kept.
    "tokentrace.service.logs",
    "tokentrace_api.store.catalog",
    # Which price list is meant if no time is named.
    "tokentrace_api.routes.prices",
)
ASKS_THE_HOST = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}


def asks_for_the_time_of_day(text: str) -> list[str]:
    """Return the expressions in *text* that read the host's clock, such as ``time.time_ns``."""
    return [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime", "date")
        and node.attr in ASKS_THE_HOST
    ]


@pytest.mark.long
def test_no_service_asks_the_host_for_the_time_of_day() -> None:
    found = {
        name: asked
        for name, file in modules(SOURCES).items()
        if not name.startswith(MAY_ASK_THE_HOST) and (asked := asks_for_the_time_of_day(file.read_text()))
    }
    assert found == {}
    assert asks_for_the_time_of_day("import time\nx = time.time_ns()\n") == ["time.time_ns"]
    assert asks_for_the_time_of_day("def f(): return datetime.now(tz=UTC), time.monotonic()") == ["datetime.now"]
