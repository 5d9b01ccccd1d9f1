"""Documentation of the names that applications import from ``tokentrace``: parameters, results, errors and units."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tokentrace

#: End of a parameter's or attribute's name -> word that its description must contain.
UNITS = {
    "timeout": "seconds",
    "_ns": "nanoseconds",
    "_ms": "milliseconds",
    "_s": "seconds",
    "_nusd": "nano-dollars",
    "_usd": "us dollars",
    "_bytes": "bytes",
}
#: Functions that make rules. Their parameters are keys of a rule, which docs/how-to/write-alert-rules.md describes.
RULE_FUNCTIONS = {"cost_spike", "error_rate_spike", "latency_regression", "quality_drop"}


def sections(documentation: str) -> dict[str, dict[str, str]]:
    """Return section -> name -> text of a docstring; the text before its sections or names has the key ""."""
    parsed: dict[str, dict[str, str]] = {"": {"": ""}}
    section, names = "", [""]
    for line in inspect.cleandoc(documentation).splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            section, names = line[:-1], [""]
            parsed[section] = {"": ""}
            continue
        entry = re.match(r"    (\w+(?:, \w+)*): ", line)
        if entry and section in ("Args", "Attributes", "Raises"):
            names = entry[1].split(", ")
            parsed[section].update(dict.fromkeys(names, ""))
        for name in names:
            parsed[section][name] += line + "\n"
    return parsed


def raised(function: Any) -> set[str]:
    """Return the names of the exceptions that the body of *function* creates and raises."""
    if function.__code__.co_filename == "<string>":
        return set()  # written by dataclass
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call.func) for call in calls}


def names_of_parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def missing_units(entries: dict[str, str]) -> Iterator[str]:
    """Yield the names in *entries*, a map from name to description, whose description lacks the unit."""
    for name, text in entries.items():
        for end, word in UNITS.items():
            if name.endswith(end) and word not in text.lower():
                yield f"{name}: does not say {word}"


def problems_of_function(function: Callable[..., Any]) -> Iterator[str]:
    """Yield what the docstring of *function* lacks."""
    documented = sections(function.__doc__ or "")
    if not documented[""][""].strip():
        yield "no docstring"
        return
    arguments = documented.get("Args", {})
    yield from (f"no Args entry for {name}" for name in names_of_parameters(function) if name not in arguments)
    returned = inspect.signature(function).return_annotation
    if returned not in (None, "None") and "Returns" not in documented:
        yield "no Returns section"
    yield from (
        f"no Raises entry for {error}" for error in raised(function) if error not in documented.get("Raises", {})
    )
    yield from missing_units(arguments)


def problems_of_class(kind: type) -> Iterator[str]:
    """Yield what the docstrings of *kind*, its ``__init__`` and its public methods lack."""
    documented = sections(kind.__doc__ or "")
    if not documented[""][""].strip():
        yield "no docstring"
    fields: tuple[str, ...] = getattr(kind, "__struct_fields__", ()) or getattr(kind, "_fields", ())
    attributes = documented.get("Attributes", {})
    yield from (f"no Attributes entry for {field}" for field in fields if field not in attributes)
    yield from missing_units(attributes)
    if "__init__" in vars(kind) and not fields and not getattr(kind, "_is_protocol", False):
        init, arguments = vars(kind)["__init__"], documented.get("Args", {})
        yield from (f"no Args entry for {name}" for name in names_of_parameters(init) if name not in arguments)
        errors = documented.get("Raises", {})
        yield from (f"no Raises entry for {error}" for error in raised(init) if error not in errors)
        yield from missing_units(arguments)
    for name, member in members(kind).items():
        if name.startswith("_") or name in fields:
            continue
        if isinstance(member, property) and not (member.__doc__ or "").strip():
            yield f"{name}: no docstring"
        elif inspect.isfunction(member):
            yield from (f"{name}: {problem}" for problem in problems_of_function(member))


def members(kind: type) -> dict[str, Any]:
    """Return the members of *kind* by name, with those of its bases in this project; class methods as functions."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] == "tokentrace":
            found |= vars(base)
    return {name: getattr(member, "__func__", member) for name, member in found.items()}


@pytest.mark.parametrize("name", sorted(set(tokentrace.__all__) - RULE_FUNCTIONS - {"__version__"}))
def test_a_public_name_documents_its_parameters_results_errors_and_units(name: str) -> None:
    value = getattr(tokentrace, name)
    problems = problems_of_class(value) if inspect.isclass(value) else problems_of_function(value)
    assert list(problems) == []


@pytest.mark.parametrize("name", sorted(RULE_FUNCTIONS))
def test_a_function_that_makes_a_rule_documents_its_threshold_and_its_errors(name: str) -> None:
    rule = getattr(tokentrace, name)
    documented = sections(rule.__doc__ or "")
    assert "*threshold*" in documented[""][""]
    assert raised(rule) <= set(documented.get("Raises", {}))


def test_every_name_in_the_list_of_exports_exists_and_the_version_has_three_numbers() -> None:
    missing = [name for name in tokentrace.__all__ if not hasattr(tokentrace, name)]
    assert missing == []
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", tokentrace.__version__)


def undocumented(timeout: float) -> int:
    """Do something."""
    if timeout < 0:
        raise ValueError("negative")
    return 1


def without_unit(timeout: float) -> None:
    """
    Do something.

    Args:
        timeout: How long.
    """


def test_the_check_looks_at_inherited_methods_and_class_methods() -> None:
    assert {"start", "span", "extract", "from_file"} <= members(tokentrace.Tracer).keys()
    assert inspect.isfunction(members(tokentrace.Tracer)["from_file"])


def test_the_check_finds_missing_parameters_results_errors_and_units() -> None:
    assert list(problems_of_function(undocumented)) == [
        "no Args entry for timeout",
        "no Returns section",
        "no Raises entry for ValueError",
    ]
    assert list(problems_of_function(without_unit)) == ["timeout: does not say seconds"]
