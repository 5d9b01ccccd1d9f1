"""Faults that tests plant in the product, to show that a comparison notices them."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from types import FunctionType
from typing import NamedTuple

import pytest


class Mutant(NamedTuple):
    """
    A changed expression in one function.

    Attributes:
        where: ``module:function`` or ``module:Class.method``.
        old: Text in the source of the function; all occurrences are replaced.
        new: What replaces it.
    """

    where: str
    old: str
    new: str


def plant(mutant: Mutant, patch: pytest.MonkeyPatch) -> None:
    """Change the code of a function until *patch* is undone, for everyone who has imported it."""
    module_name, _, path = mutant.where.partition(":")
    module = importlib.import_module(module_name)
    function: object = module
    for name in path.split("."):
        function = inspect.getattr_static(function, name)
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert mutant.old in source, f"{mutant.where} does not hold {mutant.old!r}; plant the fault elsewhere"
    made: dict[str, FunctionType] = {}
    flags = annotations.compiler_flag
    code = compile(source.replace(mutant.old, mutant.new), f"<mutant of {mutant.where}>", "exec", flags=flags)
    exec(code, module.__dict__, made)
    patch.setattr(function, "__code__", made[path.rpartition(".")[2]].__code__)
