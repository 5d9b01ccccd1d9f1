"""A span as the mapping reads it: its attributes sorted into facts and free attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokentrace.dialect.otlp.model import OtlpSpan
from tokentrace.dialect.otlp.plan import PREFIX, Kept, Numbered, Plans, kept_of
from tokentrace.dialect.otlp.values import encoded, plain, unquoted
from tokentrace.units import is_number

#: Objects with one key that say nothing: ``llm.input_messages.0.message.content``.
_WRAPPERS = frozenset(
    {"annotation", "document", "embedding", "evaluation", "message", "message_content", "tool", "tool_call"}
)


class View:
    """
    The facts of one span.

    Attributes:
        span: The span as its emitter sent it.
        facts: Slot of ``ladders`` -> what the span tells.
        get: Returns a fact; None if nothing tells it.
        free: Attributes that no ladder knows, and those that are kept, as a record can hold them.
    """

    __slots__ = ("_others", "_told", "facts", "free", "get", "span")

    get: Callable[[str], Any]

    def __init__(self, span: OtlpSpan, plans: Plans) -> None:
        self.span = span
        given = span.attributes
        plan = plans.of(given)
        if plan.numbered:
            given = {**given, **_collapsed_families(plan.numbered, given)}
        facts: dict[str, Any] = {}
        told: dict[str, str] = {}
        for slot, ladder in plan.facts:
            for name, read in ladder:
                meaning = read(given[name])
                if meaning is not None:
                    facts[slot] = meaning
                    told[slot] = name
                    break
        free: dict[str, Any] = {}
        for kept in plan.kept:
            _keep(kept, given[kept.name], free)
        self.facts, self.get, self._told, self.free, self._others = facts, facts.get, told, free, plan.others

    @property
    def ignored(self) -> tuple[str, ...]:
        """
        Names of the attributes that the record does not hold, because another one told the same fact or the value says
        nothing.
        """
        telling = set(self._told.values())
        return tuple([name for name in self._others if name not in telling])

    def name(self, slot: str) -> str:
        """Return the name of the attribute that tells the fact *slot*; "" if none does."""
        return self._told.get(slot, "")

    def keep(self, key: str, value: Any) -> None:
        """Keep what an object within an attribute says under *key* as an attribute, if there is none of this name."""
        keep(key, value, self.free)

    def add(self, slot: str, value: Any, name: str) -> None:
        """Add what an object within an attribute tells, if no attribute tells it."""
        if value is not None and value != "" and slot not in self.facts:
            self.facts[slot] = value
            self._told[slot] = name


def keep(key: str, value: Any, free: dict[str, Any]) -> None:
    """Add *value* under *key* to *free*, as a record can hold it, if it says something and *free* has no such key."""
    _keep(kept_of(key), value, free)


def _keep(kept: Kept, value: Any, free: dict[str, Any]) -> None:
    _, key, is_score, is_custom = kept
    if value.__class__ is str:
        if is_custom and value[:1] == '"':
            value = unquoted(value) or value
    elif value.__class__ is not bool:
        value = plain(value)
        if is_score and is_number(value) and not 0 <= value <= 1:
            key = PREFIX + key
    if key and value is not None and value != "":
        free.setdefault(key, value)


class _Node(dict[str, Any]):
    """A part of a flattened name -> what is under it; an emitter's own object is a value and never changed."""


def _collapsed_families(numbered: tuple[Numbered, ...], given: Mapping[str, Any]) -> dict[str, str]:
    """Return each numbered family -> its attributes as one JSON."""
    families: dict[str, _Node] = {}
    for name, family, path in numbered:
        # Vectors are large and say nothing to a reader.
        if path[-1] != "vector":
            _put(families.setdefault(family, _Node()), path, given[name])
    return {family: encoded(_collapsed(node)) for family, node in families.items()}


def _put(node: _Node, path: tuple[str, ...], value: Any) -> None:
    """Put *value* at *path*; if there is a value where a node should be, or the reverse, it stays beside it."""
    for depth, part in enumerate(path[:-1]):
        inner = node.setdefault(part, _Node())
        if not isinstance(inner, _Node):
            node[".".join(path[depth:])] = value
            return
        node = inner
    last = path[-1]
    beside = node.get(last)
    if isinstance(beside, _Node):
        beside[""] = value
    else:
        node[last] = value


def _collapsed(value: Any) -> Any:
    """Return *value* with lists instead of nodes whose keys are numbers, and without wrappers."""
    if not isinstance(value, _Node):
        return value
    if len(value) == 1 and (only := next(iter(value))) in _WRAPPERS:
        return _collapsed(value[only])
    if value and all(key.isdecimal() and len(key) < 10 for key in value):
        return [_collapsed(value[key]) for key in sorted(value, key=int)]
    return {key: _collapsed(item) for key, item in value.items()}
