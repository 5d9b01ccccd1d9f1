"""
How the attributes of a span are read, by their names alone.

Emitters send the same names again and again, so the names of a span are sorted once into a plan: which attribute tells
which fact, and which ones are kept. A further span with these names is read with the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokentrace.dialect.otlp.ladders import CUSTOM, IGNORED_FAMILIES, NUMBERED, OWN_KEYS, Read, Table

#: What the key of an emitter's attribute gets that would mean something else in a record.
PREFIX = "otlp."
#: Most parts of a flattened name; the rest stays one part.
_MAX_PARTS = 10
#: Most names in the cached plans of a family together, about; a full cache is cleared.
_MAX_CACHED = 50_000


class Kept(NamedTuple):
    """
    An attribute that stays one.

    Attributes:
        name: Its name.
        key: Its key in the record.
        is_score: True = a number out of bounds gets a prefix.
        is_custom: True = an application chose the name, and a text may be JSON.
    """

    name: str
    key: str
    is_score: bool = False
    is_custom: bool = False


class Numbered(NamedTuple):
    """An attribute of a numbered family such as ``gen_ai.prompt.*``, and where in the family it is."""

    name: str
    family: str
    path: tuple[str, ...]


class Plan(NamedTuple):
    """
    How attributes with some names are read.

    Attributes:
        facts: (Slot of ``ladders``, (name, how its value is read) in the order in which they are asked).
        kept: The attributes that stay ones.
        numbered: The attributes that are collapsed into one for each family, under whose name a fact asks for it.
        others: Names of the attributes that the record does not hold unless a fact is told by them.
    """

    facts: tuple[tuple[str, tuple[tuple[str, Read], ...]], ...]
    kept: tuple[Kept, ...]
    numbered: tuple[Numbered, ...]
    others: tuple[str, ...]


class Plans:
    """
    The plans of a family of emitters.

    Attributes:
        table: Name of an attribute -> what is done with it.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._plans: dict[tuple[str, ...], Plan] = {}
        #: Number of names in the plans together.
        self.size = 0

    def of(self, names: Iterable[str]) -> Plan:
        """Return the plan for attributes with *names*."""
        given = tuple(names)
        plan = self._plans.get(given)
        if plan is None:
            self.size += len(given) + 1
            if self.size > _MAX_CACHED:
                self._plans.clear()
                self.size = len(given) + 1
            plan = self._plans[given] = self._plan(given)
        return plan

    def _plan(self, names: tuple[str, ...]) -> Plan:
        told: dict[str, list[tuple[int, str, Read]]] = {}
        kept: list[Kept] = []
        numbered: list[Numbered] = []
        others: list[str] = []
        for name in names:
            entry = self.table.get(name)
            if entry is None:
                part = _numbered(name)
                if part is not None:
                    numbered.append(part)
                elif name and not name.startswith(IGNORED_FAMILIES):
                    kept.append(kept_of(name))
                else:
                    others.append(name)
                continue
            if entry.key:
                kept.append(Kept(name, entry.key))
            else:
                others.append(name)
            for slot, rank, read in entry.places:
                told.setdefault(slot, []).append((rank, name, read))
        for family in dict.fromkeys(part.family for part in numbered):
            for slot, rank, read in self.table[family].places:
                told.setdefault(slot, []).append((rank, family, read))
        facts = tuple(
            (slot, tuple((name, read) for _, name, read in sorted(ladder, key=lambda step: step[0])))
            for slot, ladder in told.items()
        )
        return Plan(facts, tuple(kept), tuple(numbered), tuple(others))


def kept_of(name: str) -> Kept:
    """Return how an attribute is kept whose name is in no table."""
    key = next((name[len(prefix) :] for prefix in CUSTOM if name.startswith(prefix)), None)
    is_custom = key is not None
    key = name if key is None else key
    if key.startswith("tt.") or key in OWN_KEYS:
        # It would mean something in a record that the emitter does not know.
        key = PREFIX + key
    return Kept(name, key, is_score=key.startswith("eval."), is_custom=is_custom)


def _numbered(name: str) -> Numbered | None:
    for prefix in NUMBERED:
        if name.startswith(prefix):
            path = tuple(name[len(prefix) :].split(".", _MAX_PARTS))
            return Numbered(name, f"{prefix}*", path) if path[0].isdecimal() else None
    return None
