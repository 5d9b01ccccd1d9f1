"""The checked-in price list: it is what genai-prices says, and it is read without genai-prices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.data_snapshot import get_snapshot
from genai_prices.data_units import unit_data
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.prices import PAIRS
from tokentrace.pricing import load_tables

ROOT = Path(__file__).parents[2]
FILE = ROOT / "shared/tokentrace/pricing/prices.json"
_WITHOUT_SERVER = """
import builtins, json, sys
real = builtins.__import__
def only_msgspec(name, *args, **kwargs):
    if name.partition(".")[0] in {blocked!r}:
        raise ImportError(name)
    return real(name, *args, **kwargs)
builtins.__import__ = only_msgspec
from tokentrace.pricing import Pricer, load_tables
from tokentrace.records import Span
loaded_early = load_tables.cache_info().currsize
quote = Pricer().quote(Span(model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128))
print(json.dumps([loaded_early, quote, sorted(set(sys.modules) & set({blocked!r}))]))
"""


def test_the_checked_in_price_list_is_what_make_prices_writes() -> None:
    done = subprocess.run(
        [sys.executable, "tools/make_prices.py", "--stdout"], cwd=ROOT, capture_output=True, check=True, timeout=120
    )
    assert done.stdout.decode() == FILE.read_text(encoding="utf-8"), "run: make prices"


def test_the_price_list_has_every_provider_model_and_unit_and_is_small() -> None:
    tables = load_tables()
    assert tables.version == f"genai-prices-{genai_prices.__version__}"
    assert set(tables.units) == set(unit_data)
    document = json.loads(FILE.read_bytes())
    listed = {provider["id"]: [row[0] for row in provider["models"]] for provider in document["providers"]}
    assert listed == {provider.id: [model.id for model in provider.models] for provider in providers}
    assert FILE.stat().st_size < 300_000


def test_prices_need_nothing_but_msgspec_and_are_read_at_the_first_use() -> None:
    blocked = ["genai_prices", "pydantic", "numpy", "duckdb", "fastapi", "yaml", "httpx", "structlog"]
    code = _WITHOUT_SERVER.format(blocked=blocked)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    name = f"openai:gpt-4o@genai-prices-{genai_prices.__version__}"
    assert json.loads(done.stdout) == [0, [2_560_000, "priced", name, ""], []]


def found_by_us(provider: str, model: str) -> tuple[str, str] | None:
    found = load_tables().find(provider, model)
    return None if found is None else (found.provider, found.model.id)


def found_by_genai_prices(provider: str, model: str) -> tuple[str, str] | None:
    try:
        where, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return where.id, info.id


def test_every_model_is_found_as_genai_prices_finds_it() -> None:
    for provider, model in PAIRS:
        assert found_by_us(provider.id, model.id) == found_by_genai_prices(provider.id, model.id), model.id


@pytest.mark.story
@settings(max_examples=examples(1000), deadline=None)
@given(st.data())
def test_names_near_those_of_models_are_found_as_genai_prices_finds_them(data: st.DataObject) -> None:
    provider = data.draw(st.sampled_from(sorted({provider.id for provider, _ in PAIRS})))
    model = data.draw(st.sampled_from(sorted({model.id for _, model in PAIRS})))
    ending = data.draw(st.sampled_from(["", "-20251211", "-2025-12-11", "-latest", ":free", "-v1:0", "@20240620", "x"]))
    start = data.draw(st.sampled_from(["", "us.", "openai/", "models/", "ft:", "x"]))
    name = start + model[: data.draw(st.integers(1, len(model)))] + ending
    for asked in (name, name.upper()):
        assert found_by_us(provider, asked) == found_by_genai_prices(provider, asked), asked
