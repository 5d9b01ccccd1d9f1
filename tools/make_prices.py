"""
Writes ``shared/tokentrace/pricing/prices.json`` from the tables of the installed genai-prices.

``python tools/make_prices.py`` writes the file; ``--stdout`` prints it instead. The format is that of
``tokentrace.pricing.tables``. Models whose prices are equal share one entry in ``prices``.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
from genai_prices.data import providers
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

TARGET = Path(__file__).parent.parent / "shared/tokentrace/pricing/prices.json"
#: Models whose seconds of audio are billed as at least this many; genai-prices has the rule in its code, not its data.
LEAST_SECONDS = {("groq", "whisper-large-v3"): 10, ("groq", "whisper-large-v3-turbo"): 10}


class Number:
    """A decimal number that is written as it is, without a detour through a float."""

    def __init__(self, value: Decimal) -> None:
        text = f"{value.normalize():f}"
        self.text = text


def clause(match: Any) -> Any:
    """Return a match clause as ``tokentrace.pricing.tables.matches`` reads it."""
    match match:
        case ClauseEquals():
            return "=" + match.equals.lower()
        case ClauseStartsWith():
            return "^" + match.starts_with.lower()
        case ClauseEndsWith():
            return "$" + match.ends_with.lower()
        case ClauseContains():
            return "*" + match.contains.lower()
        case ClauseRegex():
            return "/" + match.regex
        case ClauseOr():
            return [clause(part) for part in match.or_]
        case ClauseAnd():
            return {"and": [clause(part) for part in match.and_]}
    raise TypeError(f"unknown clause {match!r}")


def rate(value: Decimal | TieredPrices) -> Any:
    """Return a rate in US dollars, or ``[base, [start, rate], ...]`` with tiers."""
    if isinstance(value, TieredPrices):
        return [Number(value.base), *([tier.start, Number(tier.price)] for tier in value.tiers)]
    return Number(value)


def utc(moment: time) -> str:
    """Return a time of day in UTC."""
    if moment.tzinfo is not None:
        moment = datetime.combine(date(1970, 1, 1), moment).astimezone(UTC).time()
    return moment.isoformat()


def when(constraint: object) -> dict[str, Any]:
    """Return when prices apply: from a date, or in a band of the day."""
    if isinstance(constraint, StartDateConstraint):
        return {"from": constraint.start_date.isoformat()}
    if isinstance(constraint, TimeOfDateConstraint):
        return {"band": [utc(constraint.start_time), utc(constraint.end_time)]}
    if constraint is None:
        return {}
    raise TypeError(f"unknown constraint {constraint!r}")


class Document:
    """The document while it is built; equal prices are stored once."""

    def __init__(self) -> None:
        self.prices: list[Any] = []
        self._index: dict[str, int] = {}
        self._unit_of = {unit.get("price_key", name): name for name, unit in unit_data.items()}

    def price(self, prices: ModelPrice) -> int:
        """Return the index of *prices* in ``prices``."""
        rates = {
            self._unit_of[key]: rate(value)
            for key, value in vars(prices).items()
            if value is not None and not key.startswith("_")
        }
        key = render(rates)
        if key not in self._index:
            self._index[key] = len(self.prices)
            self.prices.append(rates)
        return self._index[key]

    def model(self, provider: str, model: ModelInfo) -> list[Any]:
        """Return a row of ``tables.ModelRow``; empty values at its end are left out."""
        conditions = model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]
        versions: list[Any] = [
            {"price": self.price(one.prices), **when(one.constraint)} if one.constraint else self.price(one.prices)
            for one in conditions
        ]
        match = clause(model.match)
        variants = [
            {"when": one.when, "price": self.price(one.prices), **when(one.constraint)}
            for one in model.price_variants or ()
        ]
        row = [
            model.id,
            versions[0] if len(versions) == 1 else versions,
            None if match == "=" + model.id.lower() else match,
            variants,
            LEAST_SECONDS.get((provider, model.id), 0),
        ]
        while len(row) > 2 and not row[-1]:
            row.pop()
        return row


def render(value: Any) -> str:
    """Return *value* as compact JSON with exact numbers."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(render, value)) + "]"
    return json.dumps(value)


def document() -> str:
    """Return the text of the file: one line for each model and each price, so that a change is easy to review."""
    made = Document()
    shown = []
    for provider in providers:
        head: dict[str, Any] = {"id": provider.id}
        if provider.provider_match is not None:
            head["match"] = clause(provider.provider_match)
        if provider.model_match is not None:
            head["models_match"] = clause(provider.model_match)
        if provider.api_pattern:
            head["api"] = provider.api_pattern
        if provider.fallback_model_providers:
            head["fallback"] = provider.fallback_model_providers
        models = ",\n".join(render(made.model(provider.id, model)) for model in provider.models)
        shown.append(f'{render(head)[:-1]},"models":[\n{models}]}}')
    units = ",\n".join(
        f"{json.dumps(name)}:{render({'per': unit['per'], 'dimensions': unit['dimensions']})}"
        for name, unit in unit_data.items()
    )
    prices = ",\n".join(map(render, made.prices))
    return (
        f'{{"version":"genai-prices-{genai_prices.__version__}",\n"units":{{\n{units}}},\n'
        f'"prices":[\n{prices}],\n"providers":[\n' + ",\n".join(shown) + "]}\n"
    )


if __name__ == "__main__":
    if "--stdout" in sys.argv[1:]:
        sys.stdout.write(document())
    else:
        TARGET.write_text(document(), encoding="utf-8")
