"""Pricing: the cost of a span by the base rates, by a tier, by a pattern, by a variant and with ``usage``."""

from __future__ import annotations

from decimal import Decimal

from msgspec.structs import replace

from bench.reference import DECODE, at_most
from bench.row import Measured, Plan, Runner
from bench.spans import make_spans
from bench.table import seconds_per_call
from tokentrace.pricing import Pattern, Pricer, Rate
from tokentrace.records import Span

_SPANS = 1000
#: 2026-11-29, when the list has prices for batches; Unix nanoseconds.
_AT_NS = 1_795_910_400 * 10**9

BASE = Plan("price a span by the base rates", "s", DECODE, at_most(2e-6, DECODE))
TIER = Plan("price a span by a tier", "s", DECODE, at_most(2e-6, DECODE))
PATTERN = Plan("price a span by a configured pattern", "s", DECODE, at_most(2e-6, DECODE))
VARIANT = Plan("price a span by a variant", "s", DECODE, at_most(4e-6, DECODE))
USAGE = Plan("price a span with other units", "s", DECODE, at_most(20e-6, DECODE))
PLANS = (BASE, TIER, PATTERN, VARIANT, USAGE)


def run(runner: Runner) -> None:
    """Measure pricing; the limit is decoding a span."""
    own = {"ours": Rate(Decimal(1), Decimal(2), match=Pattern("prefix", "gpt-4o"))}
    plain = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 512, "completion_tokens": 128}
    tiered = {"provider": "anthropic", "model": "claude-sonnet-4-5", "prompt_tokens": 300_000, "completion_tokens": 9}
    runner.row(BASE, lambda: _price(Pricer(), plain))
    runner.row(TIER, lambda: _price(Pricer(), tiered))
    runner.row(PATTERN, lambda: _price(Pricer(own), plain))
    runner.row(VARIANT, lambda: _price(Pricer(), {**plain, "pricing_context": {"processing": "batch"}}))
    runner.row(USAGE, lambda: _price(Pricer(), {**plain, "usage": {"web_searches": 2}}))


def _price(pricer: Pricer, fields: dict[str, object]) -> Measured:
    """Time quotes of spans with *fields*; the first quote, which reads the price list, is not timed."""
    spans: list[Span] = [
        replace(span, total_tokens=0, cost_nusd=None, cost_source="", ended_ns=_AT_NS, arrived_ns=_AT_NS, **fields)
        for span in make_spans(_SPANS)
    ]
    if pricer.quote(spans[0]).cost_nusd is None:
        raise RuntimeError(f"the span has no price: {pricer.quote(spans[0])}")

    def work() -> None:
        for span in spans:
            pricer.quote(span)

    return Measured(seconds_per_call(work) / _SPANS)
