"""
The price list: ``prices.json`` of this package, which ``make prices`` writes from genai-prices.

It is read when the first price is asked for. Nothing but msgspec is needed, so that an application that reports spans
can compute the same costs as ingest.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from tokentrace.units import SECOND

#: A rate in US dollars for ``Unit.per`` units, or with tiers ``[base, (start, rate), ...]``.
Rate = Decimal | list[Decimal | tuple[int, Decimal]]
_DAY_NS = 86_400 * SECOND
_EPOCH_DAY = date(1970, 1, 1).toordinal()


class Unit(msgspec.Struct, frozen=True):
    """
    Something that is counted and priced.

    Attributes:
        per: Number of units that a rate is for.
        dimensions: What a unit is. A unit whose dimensions are a subset of another's includes the other: cached input
            tokens are a part of input tokens.
    """

    per: int
    dimensions: dict[str, str]


class Period(msgspec.Struct, frozen=True, rename={"since": "from"}):
    """
    When prices apply; the default is always.

    Attributes:
        since: First day, in UTC.
        band: Start and end of a part of the day, in UTC; the end may be earlier than the start.
    """

    since: date | None = None
    band: tuple[time, time] | None = None

    def contains(self, at_ns: int) -> bool:
        """Return True if the prices apply at *at_ns*, Unix nanoseconds."""
        if self.since is not None:
            return at_ns // _DAY_NS >= self.since.toordinal() - _EPOCH_DAY
        if self.band is None:
            return True
        start, end = self.band
        now, first, last = at_ns % _DAY_NS, _of_day(start), _of_day(end)
        return first <= now < last if first <= last else now >= first or now < last

    def text(self) -> str:
        """Return the period in words; "" = always."""
        if self.since is not None:
            return f"since {self.since.isoformat()}"
        if self.band is not None:
            return f"from {self.band[0].isoformat()} to {self.band[1].isoformat()} UTC"
        return ""


class Version(Period, frozen=True, kw_only=True):
    """
    The prices of a model in a period.

    Attributes:
        price: Index in ``Tables.prices``.
    """

    price: int


class Variant(Period, frozen=True, kw_only=True):
    """
    Prices that replace those of a version for some calls.

    Attributes:
        when: What a call must say of itself, such as ``{"service_tier": "flex"}``.
        price: Index in ``Tables.prices``.
    """

    when: dict[str, str]
    price: int


class ModelRow(msgspec.Struct, frozen=True, array_like=True):
    """
    A model of a provider.

    Attributes:
        versions: Its prices; the last one whose period contains the time applies, or else the first one.
        match: A clause for the names of the model; None = its id in any case.
        variants: Prices of special calls; for each unit, the first one that matches wins.
        least_seconds: Seconds of audio that a call with audio is billed for at least.
    """

    id: str
    versions: int | list[int | Version]
    match: str | list[Any] | dict[str, Any] | None = None
    variants: list[Variant] = msgspec.field(default_factory=list)
    least_seconds: int = 0

    def periods(self) -> list[Version]:
        """Return the versions in the order of the list."""
        rows = [self.versions] if isinstance(self.versions, int) else self.versions
        return [Version(price=row) if isinstance(row, int) else row for row in rows]


class ProviderRow(msgspec.Struct, frozen=True):
    """
    A provider and its models.

    Attributes:
        match: A clause for other names of the provider.
        models_match: A clause for names of models that are this provider's when no provider is named.
        fallback: Providers whose models this one sells at their price unless it has a price of its own.
        api: A regular expression for the addresses of its API.
    """

    id: str
    models: list[ModelRow]
    match: str | list[Any] | dict[str, Any] | None = None
    models_match: str | list[Any] | dict[str, Any] | None = None
    fallback: list[str] = msgspec.field(default_factory=list)
    api: str = ""


class Document(msgspec.Struct, frozen=True):
    """The content of ``prices.json``."""

    version: str
    units: dict[str, Unit]
    prices: list[dict[str, Rate]]
    providers: list[ProviderRow]


class Found(NamedTuple):
    """
    A model of the list.

    Attributes:
        provider: Id of the provider that was asked for.
        owner: Id of the provider that lists the model: *provider*, or one that it falls back to.
    """

    provider: str
    owner: str
    model: ModelRow


class Tables:
    """The price list with its look-ups; they ignore case."""

    def __init__(self, document: Document) -> None:
        self.version = document.version
        self.units = document.units
        self.prices = document.prices
        self._providers = {row.id: row for row in document.providers}
        self._indexes: dict[str, _Index] = {}

    def provider_id(self, name: str) -> str | None:
        """Return the id of the provider called *name*; None if there is none."""
        name = name.lower().strip()
        if name in self._providers:
            return name
        return next((row.id for row in self._providers.values() if row.match and matches(row.match, name)), None)

    def provider_of_url(self, url: str) -> str:
        """Return the id of the provider whose API has the address *url*; "" if there is none."""
        return next((row.id for row in self._providers.values() if row.api and _is_address(row.api, url)), "")

    def providers_of(self, model: str) -> Iterator[str]:
        """Yield the ids of the providers whose names of models have the form of *model*."""
        model = model.lower()
        for row in self._providers.values():
            if row.models_match and matches(row.models_match, model):
                yield row.id

    def find(self, provider: str, model: str) -> Found | None:
        """
        Return the row that prices *model* at *provider*, an id of a provider.

        A date as in ``gpt-5.2-20251211`` is also looked up as ``2025-12-11``.
        """
        model = model.lower()
        for name in dict.fromkeys((model, _with_dashes(model))):
            for owner in (provider, *self._providers[provider].fallback):
                row = self._index(owner).find(name)
                if row is not None:
                    return Found(provider, owner, row)
        return None

    def _index(self, provider: str) -> _Index:
        if provider not in self._indexes:
            self._indexes[provider] = _Index(self._providers[provider].models)
        return self._indexes[provider]


class _Index:
    """Finds the first model of a provider that matches: names that are equal by hash, the other clauses in order."""

    def __init__(self, models: list[ModelRow]) -> None:
        self._models = models
        self._equal: dict[str, int] = {}
        self._clauses: list[tuple[int, Any]] = []
        for index, model in enumerate(models):
            match = "=" + model.id.lower() if model.match is None else model.match
            for part in match if isinstance(match, list) else [match]:
                if isinstance(part, str) and part[0] == "=":
                    self._equal.setdefault(part[1:], index)
                else:
                    self._clauses.append((index, part))

    def find(self, name: str) -> ModelRow | None:
        best = self._equal.get(name, len(self._models))
        for index, clause in self._clauses:
            if index >= best:
                break
            if matches(clause, name):
                best = index
                break
        return self._models[best] if best < len(self._models) else None


def matches(clause: Any, text: str) -> bool:
    """
    Return True if *text*, in lower case, matches *clause*.

    A clause is ``=equal``, ``^start``, ``$end``, ``*part``, ``/regular expression``, a list of which one must match, or
    ``{"and": [...]}``.
    """
    if isinstance(clause, list):
        return any(matches(part, text) for part in clause)
    if isinstance(clause, dict):
        return all(matches(part, text) for part in clause["and"])
    sign, word = clause[0], clause[1:]
    if sign == "=":
        return bool(text == word)
    if sign == "^":
        return text.startswith(word)
    if sign == "$":
        return text.endswith(word)
    if sign == "*":
        return word in text
    return re.search(word, text) is not None


def _is_address(pattern: str, url: str) -> bool:
    """Return True if *url* begins with *pattern* and its host does not go on, as in ``api.openai.com.example.org``."""
    found = re.match(pattern, url)
    return found is not None and (url[found.end() :][:1] in ("", "/", ":", "?") or found[0].endswith(("/", ".")))


def includes(whole: Unit, part: Unit) -> bool:
    """Return True if *part* is counted in *whole* too, or is *whole*."""
    return whole.dimensions.items() <= part.dimensions.items()


def rate_at(rate: Rate, input_tokens: int) -> Decimal:
    """Return the rate of the tier that *input_tokens* reaches; a tier applies above its start."""
    if isinstance(rate, Decimal):
        return rate
    starts = starts_of(rate)
    reached = bisect_left(starts, input_tokens)
    step = rate[reached]
    return step if isinstance(step, Decimal) else step[1]


def starts_of(rate: Rate) -> list[int]:
    """Return the input token counts above which the tiers of *rate* begin, ascending."""
    return [] if isinstance(rate, Decimal) else [step[0] for step in rate if not isinstance(step, Decimal)]


@cache
def load_tables() -> Tables:
    """Return the price list of this package."""
    return Tables(msgspec.json.decode(files("tokentrace.pricing").joinpath("prices.json").read_bytes(), type=Document))


def _of_day(moment: time) -> int:
    seconds = (moment.hour * 60 + moment.minute) * 60 + moment.second
    return seconds * SECOND + moment.microsecond * 1000


_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def _with_dashes(name: str) -> str:
    """Return *name* with dates such as -20251211 written as -2025-12-11; what is no date stays."""

    def dashed(found: re.Match[str]) -> str:
        year, month, day = found.groups()
        try:
            date(int(year), int(month), int(day))
        except ValueError:
            return found.group(0)
        return f"-{year}-{month}-{day}"

    return _COMPACT_DATE.sub(dashed, name)
