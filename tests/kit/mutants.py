"""Faults that tests plant in the product, to show that a comparison notices them."""

from __future__ import annotations

import __future__

import importlib
import inspect
import textwrap
from types import FunctionType
from typing import NamedTuple

import pytest


class Mutant(NamedTuple):
    """
    One changed expression of one function.

    Attributes:
        where: ``module:function`` or ``module:Class.method``.
        old: Text that the source of the function holds exactly once.
        new: What stands there instead.
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
    assert source.count(mutant.old) == 1, f"{mutant.where} holds {mutant.old!r} {source.count(mutant.old)} times"
    made: dict[str, FunctionType] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(mutant.old, mutant.new), f"<mutant of {mutant.where}>", "exec", flags=flags)
    exec(code, module.__dict__, made)  # noqa: S102 - this is how the mutant gets the names of its module
    patch.setattr(function, "__code__", made[path.rpartition(".")[2]].__code__)
