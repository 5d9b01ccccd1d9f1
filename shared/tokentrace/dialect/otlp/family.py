"""What a family of emitters does in its own way; everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tokentrace.dialect.otlp.plan import Plans
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Kind

#: (Place, usage object of the provider).
Usage = tuple[str, Mapping[str, Any]]


class KindRule(NamedTuple):
    """
    The kind of a span, and what told it.

    Attributes:
        rule: The attribute or the part of the span that decided.
        model: The model, if the name of the span tells it; "" = it does not.
        is_known: False = nothing says that the span belongs to a call to a model.
    """

    kind: Kind
    rule: str
    model: str = ""
    is_known: bool = True


def no_objects(_view: View) -> Iterator[Usage]:
    """Yield no usage object: the emitter sends none."""
    return iter(())


def counts_cached(_view: View, _provider: str) -> bool:
    """Return False: the emitter counts cached tokens as input, as the conventions ask."""
    return False


def nothing_inside(_view: View, _kind: str) -> None:
    """Read nothing: the emitter puts no facts into objects."""


class Family(NamedTuple):
    """
    A family of emitters.

    Attributes:
        name: The dialect that a reading names.
        plans: How attributes are read.
        kind: Returns the kind of a span.
        objects: Yields the usage objects of the provider, the best first.
        excludes_cached: Returns True if the input of a span leaves out cached tokens for a provider.
        inside: Adds the facts that an object within an attribute tells to the view, for a span of a kind.
    """

    name: str
    plans: Plans
    kind: Callable[[View], KindRule]
    objects: Callable[[View], Iterator[Usage]] = no_objects
    excludes_cached: Callable[[View, str], bool] = counts_cached
    inside: Callable[[View, str], None] = nothing_inside
