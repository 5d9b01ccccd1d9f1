"""
Receipts for the models of the price tables and for configured prices.

The lines and the rounding add up to the cost exactly, except for seconds of audio, where they do so to 30 decimals.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
from genai_prices.data import providers
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_span
from kit.examples import examples
from kit.prices import priced_units
from tokentrace.pricing import FIELD_UNITS, Pricer, Rate, Receipt
from tokentrace.records import Span, counts_as_cost
from tokentrace.units import SECOND
from tokentrace_api.routes.receipt import render_receipt
from tokentrace_api.store import Telling

pricer = Pricer()
PAIRS: dict[str, tuple[Provider, ModelInfo]] = {
    f"{provider.id}:{model.id}": (provider, model) for provider in providers for model in provider.models
}
NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
HALF_A_NANO = Decimal(5).scaleb(-10)
#: Numbers of tokens: prompt, completion, cache read, cache write, cache write 1h, reasoning.
Counts = tuple[int, int, int, int, int, int]
SOME: Counts = (1003, 517, 301, 203, 101, 57)
#: Units whose price is for 3,600 of them and not for a power of ten, so that a cost may be no finite decimal.
SECONDS = ("audio_seconds", "input_audio_seconds")


def has_a_minimum_charge(name: str) -> bool:
    """Return True for Groq's whisper models, for which genai-prices charges at least ten seconds; no rate shows it."""
    return name.startswith("groq:") and "whisper" in name


def call(name: str, counts: Counts = SOME, at: datetime = NOON, **fields: Any) -> Span:
    provider, _, model = name.partition(":")
    prompt, completion, read, write, write_1h, reasoning = counts
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    ended = (since.days * 86_400 + since.seconds) * SECOND
    return make_span(
        provider=provider,
        model=model,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write_1h,
        reasoning_tokens=reasoning,
        ended_ns=ended,
        arrived_ns=ended,
        **fields,
    )


def priced(span: Span, used_pricer: Pricer = pricer) -> Span:
    """Return *span* with the cost that *used_pricer* computes, as ingest stores it."""
    quote = used_pricer.quote(span)
    return replace(
        span,
        cost_nusd=quote.cost_nusd,
        cost_source=quote.source,
        cost_model=quote.model,
        unpriced_reason=quote.reason,
    )


def assert_adds_up(span: Span, receipt: Receipt) -> None:
    """
    Check that lines and rounding add up to the cost exactly, and that the rounding is at most half a nano-dollar.

    The receipt of a span without a cost must be empty.
    """
    if span.cost_nusd is None:
        assert receipt[:5] == ([], Decimal(0), None, None, True)
        return
    shown = render_receipt(Telling(span), receipt)
    with localcontext() as context:
        context.prec = 400
        assert receipt.cost_usd == Decimal(span.cost_nusd) / 10**9, receipt
        assert sum((line.cost_usd for line in receipt.lines), receipt.rounding_usd) == receipt.cost_usd, receipt
        assert abs(receipt.rounding_usd) <= HALF_A_NANO, receipt
        for line in receipt.lines:
            assert line.amount > 0, line
            assert line.cost_usd * line.per == line.rate_usd * line.amount, line
        # The rendered amounts of money add up too; rates and rounding are written without exponents.
        assert sum((Decimal(line["cost_usd"]) for line in shown["lines"]), Decimal(shown["rounding"])) == Decimal(
            shown["cost_usd"]
        ), shown
        assert "E" not in "".join([shown["rounding"], *(line["rate_usd"] for line in shown["lines"])])


def assert_explained(span: Span, used_pricer: Pricer = pricer) -> Receipt:
    """Price *span* and check that its receipt explains the cost line by line; return the receipt."""
    kept = priced(span, used_pricer)
    receipt = used_pricer.receipt(kept)
    assert receipt.explained, (kept, receipt)
    assert_adds_up(kept, receipt)
    units = [line.unit for line in receipt.lines]
    assert len(set(units)) == len(units)
    assert "as_priced_then" not in units
    return receipt


def conditions(model: ModelInfo) -> list[ConditionalPrice]:
    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


def rates_of(prices: ModelPrice) -> dict[str, Any]:
    return {key: value for key, value in vars(prices).items() if value is not None and not key.startswith("_")}


def starts_of(name: str) -> list[int]:
    """Return the numbers of prompt tokens above which the tiers of the model *name* begin."""
    rates = (value for price in conditions(PAIRS[name][1]) for value in rates_of(price.prices).values())
    return sorted({tier.start for value in rates if isinstance(value, TieredPrices) for tier in value.tiers})


def instants_of(name: str) -> list[datetime]:
    """Return NOON, and for each change of the price of *name* its instant and the second before."""
    moments = {NOON}
    for price in conditions(PAIRS[name][1]):
        edges = []
        if isinstance(price.constraint, StartDateConstraint):
            edges = [datetime.combine(price.constraint.start_date, datetime.min.time(), UTC)]
        elif isinstance(price.constraint, TimeOfDateConstraint):
            edges = [
                datetime.combine(NOON.date(), edge.replace(tzinfo=None), edge.tzinfo or UTC).astimezone(UTC)
                for edge in (price.constraint.start_time, price.constraint.end_time)
            ]
        moments |= {edge + delta for edge in edges for delta in (timedelta(0), timedelta(seconds=-1))}
    return sorted(moment for moment in moments if moment.year >= 2000)


@st.composite
def counts_of(draw: st.DrawFn, around: list[int]) -> Counts:
    """Draw token counts that a span may have; prompt and completion tokens are often close to a number in *around*."""
    sizes = st.one_of(st.integers(0, 10), st.integers(0, 3_000_000), st.integers(0, 2**40))
    if around:
        sizes = st.one_of(sizes, st.sampled_from(around).flatmap(lambda at: st.integers(at - 1, at + 1)))
    prompt, completion = draw(sizes), draw(sizes)
    read = draw(st.integers(0, prompt))
    write = draw(st.integers(0, prompt - read))
    return prompt, completion, read, write, draw(st.integers(0, write)), draw(st.integers(0, completion))


names = st.sampled_from(sorted(PAIRS))


# --- every model of the bundled tables -------------------------------------------------------------------------------


@pytest.mark.story
@pytest.mark.long
def test_the_receipt_of_every_model_adds_up() -> None:
    """Groq's whisper models are included: they charge no tokens, so their minimum of ten seconds does not apply."""
    for name in PAIRS:
        for counts in (SOME, (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (7, 5, 7, 0, 0, 5), (9, 1, 0, 9, 9, 0)):
            for at in instants_of(name)[:3]:
                assert_explained(call(name, counts, at))


@settings(max_examples=examples(2000), deadline=None)
@given(names, st.data())
def test_the_receipt_of_any_tokens_adds_up_around_changes_of_price(name: str, data: st.DataObject) -> None:
    counts = data.draw(counts_of(starts_of(name)))
    assert_explained(call(name, counts, data.draw(st.sampled_from(instants_of(name)))))


@cache
def units_of(name: str) -> list[str]:
    """Return the units for which the model *name* has a price and a span has no field, except ``requests``."""
    units = {unit for price in conditions(PAIRS[name][1]) for unit in priced_units(price.prices)}
    return sorted(units - {*FIELD_UNITS, "requests"})


MODELS_WITH_OTHER_UNITS = sorted(name for name in PAIRS if units_of(name))
OTHER_UNITS = ("web_searches", "input_image_tokens", "output_image_tokens", "input_characters", "bananas", "requests")


@settings(max_examples=examples(1500), deadline=None)
@given(st.sampled_from(MODELS_WITH_OTHER_UNITS), st.data())
def test_the_receipt_of_any_usage_adds_up(name: str, data: st.DataObject) -> None:
    """Groq's whisper models and seconds of audio are excluded here and tested below."""
    units = [unit for unit in (*units_of(name), *OTHER_UNITS) if unit not in SECONDS]
    usage = data.draw(st.dictionaries(st.sampled_from(units), st.integers(0, 10**6), max_size=4))
    counts = data.draw(counts_of(starts_of(name)))
    assume(not has_a_minimum_charge(name))
    assert_explained(call(name, counts, data.draw(st.sampled_from(instants_of(name))), usage=usage))


BY_THE_HOUR = sorted(
    name for name in MODELS_WITH_OTHER_UNITS if {*units_of(name)} & {*SECONDS} and not has_a_minimum_charge(name)
)


@settings(max_examples=examples(200), deadline=None)
@given(st.sampled_from(BY_THE_HOUR), st.sampled_from(SECONDS), st.integers(0, 10**6))
def test_the_receipt_of_seconds_of_audio_adds_up_to_30_decimals(name: str, unit: str, seconds: int) -> None:
    kept = priced(call(name, (0, 0, 0, 0, 0, 0), usage={unit: seconds}))
    receipt = pricer.receipt(kept)
    assert receipt.explained
    if kept.cost_nusd is None:
        return
    assert abs(receipt.rounding_usd) <= HALF_A_NANO
    with localcontext() as context:
        context.prec = 400
        added = sum((line.cost_usd for line in receipt.lines), receipt.rounding_usd)
        assert abs(added - Decimal(kept.cost_nusd) / 10**9) < Decimal(1).scaleb(-30)


def model_with_an_endless_price() -> str:
    """Return a model for which 1,000 seconds of audio cost an amount that is no finite decimal."""
    for name in BY_THE_HOUR:
        (price, *_) = conditions(PAIRS[name][1])
        rate = price.prices.audio_hours
        endless = isinstance(rate, Decimal) and (Fraction(rate) * 1000 / 3600).denominator % 3 == 0
        if endless and units_of(name)[0] == "audio_seconds":
            return name
    raise AssertionError("for no model do 1,000 seconds cost an amount that is no finite decimal")


def test_the_receipt_of_a_cost_that_is_no_finite_decimal_adds_up() -> None:
    name = model_with_an_endless_price()
    kept = priced(call(name, (0, 0, 0, 0, 0, 0), usage={units_of(name)[0]: 1000}))
    receipt = pricer.receipt(kept)
    assert [line.per for line in receipt.lines] == [3600]
    with localcontext() as context:
        context.prec = 400
        assert sum((line.cost_usd for line in receipt.lines), receipt.rounding_usd) == receipt.cost_usd


@pytest.mark.parametrize("unit", SECONDS)
def test_the_receipt_of_groqs_whisper_says_that_ten_seconds_are_billed(unit: str) -> None:
    checked = 0
    for name in filter(has_a_minimum_charge, PAIRS):
        for seconds, billed in ((1, 10), (9, 10), (10, 10), (11, 11)):
            kept = priced(call(name, (0, 0, 0, 0, 0, 0), usage={unit: seconds}))
            if kept.cost_nusd:
                checked += 1
                receipt = pricer.receipt(kept)
                assert receipt.explained
                assert [line.amount for line in receipt.lines] == [billed]
                assert (f"{seconds} s of audio are billed as 10 s" in receipt.assumed) is (seconds < 10)
    assert checked


# --- what the lines say ----------------------------------------------------------------------------------------------


def test_the_lines_have_the_rates_of_the_table_and_charge_cached_tokens_once() -> None:
    receipt = assert_explained(call("openai:gpt-4o", (512, 128, 100, 0, 0, 64)))
    assert [line[:4] for line in receipt.lines] == [
        ("input_tokens", 412, 1_000_000, Decimal("2.5")),
        ("cache_read_tokens", 100, 1_000_000, Decimal("1.25")),
        ("output_tokens", 128, 1_000_000, Decimal(10)),
    ]
    assert receipt.tier is None


def test_the_receipt_names_the_tier_that_was_charged() -> None:
    checked = 0
    for name in PAIRS:
        if len(conditions(PAIRS[name][1])) > 1 or not pricer.quote(call(name)).model.startswith(f"{name}@"):
            continue
        starts = starts_of(name)
        for below, start in zip([0, *starts], starts, strict=False):
            checked += 1
            assert assert_explained(call(name, (start, 1, 0, 0, 0, 0))).tier == below
            above = assert_explained(call(name, (start + 1, 1, 0, 0, 0, 0)))
            assert above.tier == start
            (price,) = conditions(PAIRS[name][1])
            rate = rates_of(price.prices)["input_mtok"]
            if isinstance(rate, TieredPrices) and any(tier.start == start for tier in rate.tiers):
                shown = {line.unit: line.rate_usd for line in above.lines}
                assert shown["input_tokens"] == next(tier.price for tier in rate.tiers if tier.start == start)
    assert checked > 10


@pytest.mark.parametrize("kind", ["llm", "tool", "agent", "http"])
@pytest.mark.parametrize("nusd", [0, 1, 7_000_000_001, 10**15])
def test_the_receipt_of_a_reported_cost_is_one_line_also_for_roll_up_kinds(kind: str, nusd: int) -> None:
    tokens = SOME if nusd else (0, 0, 0, 0, 0, 0)
    kept = priced(call("openai:gpt-4o", tokens, kind=kind, cost_nusd=nusd, cost_source="reported"))
    receipt = pricer.receipt(kept)
    assert_adds_up(kept, receipt)
    assert [(line.unit, line.amount, line.per) for line in receipt.lines] == [("reported", 1, 1)]
    shown = render_receipt(Telling(kept), receipt)
    assert (shown["confidence"], shown["counted"]) == ("reported", counts_as_cost(kind))
    assert (Decimal(shown["cost_usd"]), shown["rounding"]) == (Decimal(nusd).scaleb(-9), "0")


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (call("openai:no-such-model"), "unknown_model"),
        (call(":"), "no_model"),
        (call("openai:whisper-1"), "no_token_rate"),
        (call("openai:gpt-4o", (0, 0, 0, 0, 0, 0), total_tokens=9), "no_split"),
        (call("openai:gpt-4o", (2**40, 2**40, 0, 0, 0, 0)), "over_bounds"),
    ],
)
def test_the_receipt_of_an_unpriced_span_has_a_reason_and_no_lines(span: Span, reason: str) -> None:
    kept = priced(span)
    receipt = assert_explained(span)
    shown = render_receipt(Telling(kept), receipt)
    assert (shown["cost_usd"], shown["lines"], shown["confidence"], shown["reason"]) == (None, [], "unpriced", reason)


# --- configured prices -----------------------------------------------------------------------------------------------

money = st.decimals(0, 1000, places=6)


@settings(max_examples=examples(200), deadline=None)
@given(money, money, st.none() | money, st.integers(0, 2**30), st.integers(0, 2**30), st.data())
@example(Decimal("0.0005"), Decimal(0), None, 1, 0, None)
@example(Decimal("0.0015"), Decimal(0), None, 1, 0, None)
def test_the_receipt_of_a_configured_price_adds_up(
    prompt_rate: Decimal, completion_rate: Decimal, read_rate: Decimal | None, prompt: int, out: int, data: Any
) -> None:
    read = 0 if data is None else data.draw(st.integers(0, prompt))
    configured = Pricer({"mine": Rate(prompt_rate, completion_rate, read_rate)})
    receipt = assert_explained(call(":Mine", (prompt, out, read, 0, 0, 0), usage={"web_searches": 1}), configured)
    assert {line.unit for line in receipt.lines} <= {"input_tokens", "output_tokens", "cache_read_tokens"}


def test_the_receipt_of_a_configured_price_with_many_digits_adds_up() -> None:
    rate = Decimal("0.12345678901234567890123")
    assert_explained(call(":mine", (2**30, 0, 0, 0, 0, 0)), Pricer({"mine": Rate(rate, rate)}))


@settings(max_examples=examples(200), deadline=None)
@given(names, money, st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_receipt_whose_prices_do_not_give_the_cost_is_one_line_with_a_note(
    name: str, rate: Decimal, prompt: int, out: int
) -> None:
    """One pricer has a configured price and the other does not; each writes the receipt of a cost of the other."""
    configured = Pricer({PAIRS[name][1].id: Rate(rate, rate)})
    span = call(name, (prompt, out, 0, 0, 0, 0))
    for cost_pricer, receipt_pricer in ((configured, pricer), (pricer, configured)):
        kept = priced(span, cost_pricer)
        receipt = receipt_pricer.receipt(kept)
        assert_adds_up(kept, receipt)
        if not receipt.explained:
            assert [line.unit for line in receipt.lines] == ["as_priced_then"]
            assert "note" in render_receipt(Telling(kept), receipt)
