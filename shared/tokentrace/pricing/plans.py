"""How the calls of one provider and model are priced: a configured price, a row of the price list, or neither."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from tokentrace.pricing import match_rules as rules
from tokentrace.pricing.configured import OwnPrices, Rate, own_sheet
from tokentrace.pricing.matching import Matcher, Name
from tokentrace.pricing.rates import Sheet
from tokentrace.pricing.tables import Found, Tables, Variant, Version, load_tables
from tokentrace.units import DAY

#: Most pairs of provider and model whose plans are cached; a full cache is cleared.
MAX_PLANS = 10_000

#: Most days and contexts that are cached for a plan; a full cache is cleared.
_MAX_CHOSEN = 64

STANDARD = "standard price: no service tier, processing or speed was reported"


class Plan(NamedTuple):
    """
    How calls of one provider and model are priced.

    Attributes:
        source: ``priced`` = by the price list, ``overridden`` = by the configuration, ``free``, ``unpriced``.
        model: ``provider:model@genai-prices-<version>`` or ``key@configuration``, for ``Span.cost_model``.
        matched: The rules that led to the price, in words.
        reason: A word of ``UNPRICED_REASONS`` or ``FREE_REASONS``; "" = priced.
        versions: Prices and their periods, in the order of the list; empty for a configured price.
        variants: Prices of special calls.
        sheet: The only rates of the model; None = they depend on the time.
        notes: What a receipt must say.
        unit_notes: Unit -> what a receipt must say if the unit is charged.
        lacks: Units that are charged on top and are in no price list.
        least_seconds: Seconds of audio that a call with audio is billed for at least.
        thoughts_in_total: Whether tokens of the total beyond prompt and completion are thoughts.
        by_hour: Whether rates depend on the time of day, and not only on the day.
        chosen: (Day since 1970, context) -> the rates, a cache; only used if rates do not depend on the time of day.
    """

    source: str
    model: str = ""
    matched: str = ""
    reason: str = ""
    versions: tuple[Version, ...] = ()
    variants: tuple[Variant, ...] = ()
    sheet: Sheet | None = None
    notes: tuple[str, ...] = ()
    unit_notes: Mapping[str, str] = {}
    lacks: str = ""
    least_seconds: int = 0
    thoughts_in_total: bool = False
    by_hour: bool = False
    chosen: dict[tuple[int, tuple[tuple[str, str], ...] | None], Chosen] = {}  # noqa: RUF012


class Chosen(NamedTuple):
    """
    The rates that apply to one call.

    Attributes:
        sheet: The rates; None = the call names a variant that has no price.
        variant: The variant in words, such as ``processing=batch``; "" = the standard price.
        period: The period of the price in words; "" = always.
        unknown: ``name=value`` of a variant that has no price.
        notes: What a receipt must say.
    """

    sheet: Sheet | None
    variant: str = ""
    period: str = ""
    unknown: str = ""
    notes: tuple[str, ...] = ()


class Plans:
    """
    Finds and caches plans.

    Args:
        rates: Name in any case -> configured price.
        local_providers: Names of providers that run on the user's own machines.
    """

    def __init__(self, rates: Mapping[str, Rate], local_providers: Collection[str] = rules.LOCAL_PROVIDERS) -> None:
        self._own = OwnPrices(rates)
        self._local_providers = local_providers
        self._loaded: tuple[Tables, Matcher] | None = None
        self._plans: dict[tuple[str, str], Plan] = {}
        self._sheets: dict[tuple[int, ...], Sheet] = {}

    @property
    def tables(self) -> Tables:
        """The price list, which is read at the first use."""
        return self._load()[0]

    def plan(self, provider: str, model: str) -> Plan:
        """Return how to price *model* at *provider*, from a cache if possible."""
        key = (provider, model)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._find(provider, model)
        return plan

    def choose(self, plan: Plan, context: Mapping[str, str] | None, at_ns: int) -> Chosen:
        """Return the rates of *plan* for a call that says *context* of itself, at *at_ns* in Unix nanoseconds."""
        key = (at_ns // DAY, tuple(context.items()) if context else None)
        chosen = plan.chosen.get(key)
        if chosen is None:
            chosen = self._choose(plan, context, at_ns)
            if not plan.by_hour:
                if len(plan.chosen) >= _MAX_CHOSEN:
                    plan.chosen.clear()
                plan.chosen[key] = chosen
        return chosen

    def _choose(self, plan: Plan, context: Mapping[str, str] | None, at_ns: int) -> Chosen:
        if not plan.versions:
            notes = (f"the configured price holds for every call, also with {_words(context)}",) if context else ()
            return Chosen(plan.sheet, notes=notes)
        version = plan.versions[0]
        for later in reversed(plan.versions):
            if later.contains(at_ns):
                version = later
                break
        if not context:
            return Chosen(self.sheet((version.price,)), period=version.text(), notes=(STANDARD,))
        said = dict(rules.CONTEXT_ALIASES.get((key, low), (key, low)) for key, low in _lower(context))
        chosen = [
            variant
            for variant in plan.variants
            if variant.contains(at_ns) and all(said.get(key) == value for key, value in variant.when.items())
        ]
        meant = {pair for variant in chosen for pair in variant.when.items()}
        for key, value in sorted(said.items()):
            if (key, value) not in meant and value not in rules.STANDARD_VALUES.get(key, ()):
                return Chosen(None, unknown=f"{key}={value}")
        special: dict[str, str] = {}
        for variant in chosen:
            if self.tables.prices[variant.price]:
                special |= variant.when
        sheet = self.sheet((version.price, *(variant.price for variant in chosen)))
        since = [text for part in (version, *chosen) if (text := part.text())]
        return Chosen(sheet, _words(special), ", ".join(dict.fromkeys(since)))

    def sheet(self, prices: tuple[int, ...]) -> Sheet:
        """Return the rates of the first of *prices*, in which the others replace rates; the earlier ones win."""
        sheet = self._sheets.get(prices)
        if sheet is None:
            tables = self.tables
            rates = dict(tables.prices[prices[0]])
            for index in reversed(prices[1:]):
                rates.update(tables.prices[index])
            sheet = self._sheets[prices] = Sheet(rates, tables.units)
        return sheet

    def _load(self) -> tuple[Tables, Matcher]:
        if self._loaded is None:
            tables = load_tables()
            self._loaded = tables, Matcher(tables, self._local_providers)
        return self._loaded

    def _find(self, provider: str, model: str) -> Plan:
        tables, matcher = self._load()
        if self._own and model:
            names = list(matcher.names(provider, model))
            own = self._own.find(names, provider)
            if own is not None:
                name = f"{own.key}@configuration"
                if own.rate.free:
                    return Plan("free", name, own.step, "free_model")
                sheet, notes = own_sheet(own.rate, names, tables.units)
                thoughts = any(_has_thoughts(name) for name in names)
                return Plan(
                    "overridden",
                    name,
                    own.step,
                    sheet=sheet,
                    unit_notes=notes,
                    thoughts_in_total=thoughts,
                    chosen={},
                )
        matched = matcher.match(provider, model)
        words = "; ".join(matched.name.steps)
        found = matched.found
        if matched.free:
            listed = "" if found is None else f"{found.provider}:{found.model.id}@{tables.version}"
            return Plan("free", listed, words, matched.free)
        if found is None:
            return Plan("unpriced", matched=words, reason=matched.reason)
        row = found.model
        versions = tuple(row.periods())
        return Plan(
            "priced",
            f"{found.provider}:{row.id}@{tables.version}",
            "; ".join([*matched.name.steps, _row_name(found)]),
            versions=versions,
            # A provider that sells another's models at its price does not sell its variants.
            variants=tuple(row.variants) if found.owner == found.provider else (),
            sheet=self.sheet((versions[0].price,)) if len(versions) == 1 and not versions[0].text() else None,
            notes=matched.name.notes,
            lacks=matched.name.lacks,
            least_seconds=row.least_seconds,
            thoughts_in_total=_has_thoughts(Name(found.provider, row.id.lower())),
            by_hour=any(part.band is not None for part in (*versions, *row.variants)),
            chosen={},
        )


def _row_name(found: Found) -> str:
    at = "" if found.owner == found.provider else f" at the price of {found.owner}"
    return f"{found.provider}:{found.model.id}{at}"


def _has_thoughts(name: Name) -> bool:
    """Return True for models of Google's API, whose total counts thoughts that the completion does not."""
    return name.provider == "google" and "gemini" in name.model


def _lower(context: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key.strip().lower(), value.strip().lower()) for key, value in context.items() if value.strip()]


def _words(context: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted((context or {}).items()))
