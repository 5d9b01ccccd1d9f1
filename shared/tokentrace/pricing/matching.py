"""Finds who charges for a call and under which name: applies the rules of ``match_rules``, and names each step."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from tokentrace.pricing import match_rules as rules
from tokentrace.pricing.tables import Found, Tables

_MAX_REWRITES = 8
_SUFFIX = re.compile(r":([a-z]+)$")
_PATHS = [(re.compile(pattern), provider) for pattern, provider in rules.PATHS]
_BEDROCK_ID = re.compile(rules.BEDROCK_ID)
_OPEN_WEIGHTS = re.compile(rules.OPEN_WEIGHTS)
_LOCAL_TAG = re.compile(rules.LOCAL_TAG)
_LOCAL_FILE = re.compile(rules.LOCAL_FILE)
_HOSTED_TAG = re.compile(rules.HOSTED_TAG)
#: Vertex AI hosts models that are free at Google's other API.
_HOSTS = re.compile(r"vertex|publishers/")
#: Names with a colon that are no tag of Ollama: fine-tuned models, ids of Bedrock.
_NOT_LOCAL = re.compile(r"^ft:|^arn:|:\d+(?::\d+k)?$|:free$")
_FAMILIES = [(re.compile(pattern), provider) for pattern, provider in rules.FAMILIES]


class Name(NamedTuple):
    """
    A provider and a model under which a price is looked for, in lower case.

    Attributes:
        provider: An id of the price list, a name that is not in the list, or "" = unknown.
        steps: The rules that led from what the span says to this name, in words.
        notes: What a receipt must say about a price that is found under this name.
        lacks: Units that are charged on top and are in no price list; "" = none.
    """

    provider: str
    model: str
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lacks: str = ""


class Match(NamedTuple):
    """
    The row that prices a call, or why there is none.

    Attributes:
        found: The row of the price list; None if there is none, or if the call is free.
        free: A word of ``FREE_REASONS``; "" = not known to be free.
        reason: A word of ``UNPRICED_REASONS``; "" = found or free.
    """

    name: Name
    found: Found | None = None
    free: str = ""
    reason: str = ""


class Matcher:
    """
    Finds rows of the price list.

    Args:
        local_providers: Names, in any case, of providers that run on the user's own machines.
    """

    def __init__(self, tables: Tables, local_providers: Collection[str] = rules.LOCAL_PROVIDERS) -> None:
        self._tables = tables
        self._local = frozenset(name.lower().strip() for name in local_providers)

    def is_local(self, provider: str) -> bool:
        """Return True if *provider* runs on the user's own machines."""
        return provider in self._local

    def match(self, provider: str, model: str) -> Match:
        """Return the row that prices *model* at *provider*, both as a span names them."""
        last = Name("", "")
        for name in self.names(provider, model):
            last = name
            matched = self._try(name)
            if matched is not None:
                return matched
        if not last.model:
            return Match(last, reason="no_model")
        if _LOCAL_TAG.search(last.model) or (not last.provider and _is_local(last.model)):
            return Match(last, reason="local_model")
        if not last.provider and _OPEN_WEIGHTS.search(last.model):
            step = f"{last.model} has a price at several providers, and none is named"
            return Match(last._replace(steps=(*last.steps, step)), reason="unknown_model")
        return Match(last, reason="unknown_model")

    def names(self, provider: str, model: str) -> Iterator[Name]:
        """Yield the names under which a price is looked for, from the span's own to the most reduced."""
        name = Name(provider.strip().lower(), model.strip().lower())
        for _ in range(_MAX_REWRITES):
            name = self._with_provider(name)
            yield name
            shorter = self._rewrite(name)
            if shorter is None:
                return
            name = shorter

    def _with_provider(self, name: Name) -> Name:
        """Return *name* with the provider's id in the price list, if it has one."""
        given = name.provider
        if not given or given in self._local:
            return name
        known = self._provider_id(given)
        if known is None:
            for ending in rules.PROVIDER_ENDINGS:
                stem = given.removesuffix(ending)
                if stem != given and (stem in self._local or self._provider_id(stem) is not None):
                    known = stem if stem in self._local else self._provider_id(stem)
                    break
        if known is None or known == given:
            return name
        step = f"provider {given} -> {known}" if known else f"provider {given} does not say who charges"
        return name._replace(provider=known, steps=(*name.steps, step))

    def _provider_id(self, name: str) -> str | None:
        alias = rules.PROVIDER_ALIASES.get(name)
        if alias is not None:
            return alias
        for ending in rules.PROVIDER_ENDINGS:
            if name.endswith(ending):
                return None if (stem := name.removesuffix(ending)) in self._local else self._provider_id(stem)
        return self._tables.provider_id(name)

    def _try(self, name: Name) -> Match | None:
        """Return what is known under exactly this name; None if nothing is."""
        if name.provider in self._local:
            if _HOSTED_TAG.search(name.model):
                return Match(name, reason="unknown_model")
            return Match(name, free="local_provider")
        if not name.model:
            return None
        if name.model.endswith(":free") and name.provider in ("", "openrouter"):
            return self._at(name, "openrouter") or Match(name, free="free_model")
        if name.provider:
            return self._at(name, name.provider)
        if _is_local(name.model) or _OPEN_WEIGHTS.search(name.model) or self._rewrite(name) is not None:
            return None
        return self._without_provider(name)

    def _at(self, name: Name, provider: str) -> Match | None:
        """Return the row of *provider* for the model."""
        if self._tables.provider_id(provider) != provider:
            return None
        if provider != "openrouter" and _LOCAL_TAG.search(name.model):
            return None
        found = self._tables.find(provider, name.model)
        if found is None:
            return None
        owner, row = found.owner, found.model
        is_free = any(who in ("", owner) and re.search(what, row.id.lower()) for who, what in rules.FREE_MODELS)
        if (
            is_free
            and not _HOSTS.search("; ".join(name.steps))
            and all(not self._tables.prices[version.price] for version in row.periods())
        ):
            return Match(name, found=found, free="free_model")
        return Match(name, found=found)

    def _without_provider(self, name: Name) -> Match | None:
        """Return the row of the only vendor that sells models of this name."""
        listed = list(self._tables.providers_of(name.model))
        families = [provider for family, provider in _FAMILIES if family.search(name.model)]
        for provider in dict.fromkeys([*listed, *families]):
            step = f"model name of {provider}"
            matched = self._at(name._replace(steps=(*name.steps, step)), provider)
            if matched is not None:
                return matched
        return None

    def _rewrite(self, name: Name) -> Name | None:
        """Return *name* reduced by the first rule that applies; None if none does."""
        provider, model = name.provider, name.model
        for pattern, owner in _PATHS:
            if (path := pattern.search(model)) and path["name"] != model:
                into = owner if not provider or (owner in rules.CLOUDS and provider not in rules.CLOUDS) else provider
                return _step(name, into or provider, path["name"], f"path {model.removesuffix(path['name'])}")
        if _BEDROCK_ID.search(model) and provider not in rules.CLOUDS and "/" not in model:
            vendor = re.split(r"\.", re.sub(r"^(?:us|us-gov|eu|apac|au|ca|jp|sa|global)\.", "", model))[0]
            if not provider or provider in (vendor, rules.PROVIDER_ALIASES.get(vendor)):
                return _step(name, "aws", model, "id of Bedrock")
        if (suffix := _SUFFIX.search(model)) and suffix[1] in rules.SUFFIXES and provider in ("", "openrouter"):
            word = suffix[1]
            note = rules.SUFFIXES[word]
            shorter = _step(name, "openrouter", model.removesuffix(f":{word}"), f"openrouter suffix :{word}")
            notes = (*name.notes, note) if note else name.notes
            return shorter._replace(notes=notes, lacks=rules.SUFFIXES_LACK.get(word, name.lacks))
        if (version := re.search(r"@(?=[a-z0-9.-]+$)", model)) and not model.startswith("@"):
            return _step(name, provider, f"{model[: version.start()]}-{model[version.end() :]}", "version after @")
        return self._without_prefix(name)

    def _without_prefix(self, name: Name) -> Name | None:
        head, slash, rest = name.model.partition("/")
        if not slash or not head or not rest:
            return None
        step = f"prefix {head}/"
        if head in self._local:
            return _step(name, head, rest, step) if not name.provider else None
        if name.provider in self._local:
            return None
        owner = rules.PREFIXES.get(head)
        if owner is None:
            return None
        if not name.provider and _OPEN_WEIGHTS.search(rest) and owner not in rules.CLOUDS - {"google"}:
            return None if owner not in ("deepseek", "moonshotai", "zai") else _step(name, owner, rest, step)
        if not name.provider or (owner in rules.CLOUDS and name.provider not in rules.CLOUDS):
            return _step(name, owner, rest, step)
        return _step(name, name.provider, rest, step)


def _is_local(model: str) -> bool:
    """Return True if only local programs use names of this form."""
    return (":" in model and not _NOT_LOCAL.search(model)) or _LOCAL_FILE.search(model) is not None


def _step(name: Name, provider: str, model: str, step: str) -> Name:
    target = f"{provider}:{model}" if provider != name.provider else model
    return name._replace(provider=provider, model=model, steps=(*name.steps, f"{step} -> {target}"))
