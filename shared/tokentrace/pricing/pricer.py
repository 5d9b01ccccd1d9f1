"""
Computes the cost of spans, without opening a network connection.

How it works. The names that a span gives lead to a configured price or to a row of the price list (``matching``,
``plans``). Rates become vectors of integers (``rates``). The cost of a span is one exact sum over everything that it
used, rounded once, half to even, to nano-dollars. Property tests compare the costs with those of genai-prices.

The result has one of these sources:

* ``reported``: the cost that the span reports is kept. A reported 0 is ignored, because clients report 0 for models
  that they do not know, unless the span says that the 0 is meant, or the provider is in ``trust_zero``.
* ``free``: the call costs nothing, and the reason is one of ``FREE_REASONS``.
* ``overridden``: a configured price. ``priced``: a price of the list, used if no price is configured.
* ``zero_ignored``: as the two before, for a span whose reported cost of 0 was ignored.
* ``partly_priced``: the cost lacks a part, which the reason names.
* ``unpriced``: no cost; the reason is one of ``UNPRICED_REASONS``.
* "": the span is no model call and has no cost; its cost is 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from tokentrace.pricing import match_rules as rules
from tokentrace.pricing.configured import Rate
from tokentrace.pricing.counting import Counts, charges_of, counts_of, fields_of, has_usage
from tokentrace.pricing.plans import Chosen, Plan, Plans
from tokentrace.pricing.rates import FIELD_UNITS, Sheet, Vector, round_half_even
from tokentrace.pricing.receipt import Receipt, receipt_of, reported_receipt
from tokentrace.pricing.work import Quote, Work
from tokentrace.records import FREE_REASONS, MAX_COST_NUSD, MODEL_KINDS, Span, event_time, exact_amounts

_MAX_REASON = 256


class Pricer:
    """
    Prices spans.

    Args:
        overrides: Name in any case -> configured price; it takes precedence over the price list.
        trust_zero: Providers, in any case, whose reported cost of 0 is kept.
        local_providers: Providers, in any case, that run on the user's own machines: their calls are free.
    """

    def __init__(
        self,
        overrides: Mapping[str, Rate] | None = None,
        trust_zero: Collection[str] = (),
        local_providers: Collection[str] = rules.LOCAL_PROVIDERS,
    ) -> None:
        self._plans = Plans(overrides or {}, local_providers)
        self._trust_zero = frozenset(provider.lower() for provider in trust_zero)

    @property
    def version(self) -> str:
        """The version of the price list, such as ``genai-prices-0.2.3``."""
        return self._plans.tables.version

    def quote(self, span: Span, at_ns: int | None = None) -> Quote:
        """
        Return the cost that *span* reports, or the price of what it used if it reports none or an ignored 0.

        Args:
            at_ns: Time whose prices apply, Unix nanoseconds; None = the span's event time.
        """
        prompt, completion, reported = span.prompt_tokens, span.completion_tokens, span.cost_nusd
        if (
            (prompt or completion)
            and not reported
            and not span.usage
            and not span.usage_state
            and span.reasoning_tokens <= completion
            and span.total_tokens in (0, prompt + completion)
            and not (reported == 0 and self._keeps_zero(span))
        ):
            plan = self._plans.plan(span.provider, span.model)
            if (plan.source == "priced" or plan.source == "overridden") and not plan.lacks:
                sheet, context = plan.sheet, span.pricing_context
                if sheet is None or context:
                    sheet = self._plans.choose(plan, context, event_time(span) if at_ns is None else at_ns).sheet
                if sheet is not None:
                    vector = sheet.vector(prompt)
                    if (vector.prices_input or not prompt) and (vector.prices_output or not completion):
                        return _quote_fields(plan, vector, span)
        return self.work(span, at_ns).quote

    def work(self, span: Span, at_ns: int | None = None) -> Work:
        """Return the quote of *span* with everything that led to it."""
        reported = span.cost_nusd
        is_model_call, used = span.kind in MODEL_KINDS, has_usage(span)
        if reported is not None and (reported > 0 or self._keeps_zero(span) or not (is_model_call or used)):
            reason = span.unpriced_reason if reported == 0 and span.unpriced_reason in FREE_REASONS else ""
            return Work(Quote(reported, "reported", span.cost_model, reason))
        if not is_model_call and (not used or not (span.model or span.usage)):
            return Work(Quote(0, "", "", ""))
        plan = self._plans.plan(span.provider, span.model)
        if plan.source == "free":
            return Work(Quote(0, "free", plan.model, plan.reason), plan)
        if not used:
            if span.usage_state == "none":
                return Work(Quote(0, "free", plan.model, "no_tokens_used"), plan)
            return Work(Quote(None, "unpriced", plan.model, "no_usage"), plan)
        if plan.source == "unpriced":
            return Work(Quote(None, "unpriced", "", plan.reason), plan)
        return self._price(plan, span, event_time(span) if at_ns is None else at_ns)

    def rates(self, span: Span, at_ns: int) -> tuple[Sheet | None, Chosen | None, Plan]:
        """Return the rates for calls like *span* at *at_ns*, whatever they used, and how the rates were found."""
        plan = self._plans.plan(span.provider, span.model)
        if plan.source in ("free", "unpriced"):
            return None, None, plan
        chosen = self._plans.choose(plan, span.pricing_context, at_ns)
        return chosen.sheet, chosen, plan

    def receipt(self, span: Span) -> Receipt:
        """Return the receipt for the cost of *span*, which was priced before, here or by another ingest."""
        if span.cost_source == "reported":
            return reported_receipt(span.cost_nusd)
        # The stored cost is not what the span reported, so it must not be taken for that.
        return receipt_of(self.work(replace(span, cost_nusd=None, cost_source="")), span.cost_nusd)

    def _keeps_zero(self, span: Span) -> bool:
        return span.cost_source == "reported" or span.provider.lower() in self._trust_zero

    def _price(self, plan: Plan, span: Span, at_ns: int) -> Work:
        chosen = self._plans.choose(plan, span.pricing_context, at_ns)
        sheet = chosen.sheet
        if sheet is None:
            return Work(_unpriced(plan, f"unknown_variant:{chosen.unknown}"), plan, None, chosen)
        is_input_only = not sheet.vectors[0].prices_output and sheet.vectors[0].prices_input
        counted = counts_of(span, plan.thoughts_in_total, is_input_only, plan.least_seconds)
        if counted.contradiction:
            return Work(_unpriced(plan, "usage_contradicts_itself"), plan, None, chosen)
        if not counted.counts:
            return Work(_unpriced(plan, "no_split"), plan, None, chosen)
        charges = charges_of(sheet, counted.counts, span.usage)
        if charges.is_contradictory:
            return Work(_unpriced(plan, "usage_contradicts_itself"), plan, None, chosen)
        if charges.unknown:
            reason = _named("ambiguous_usage", charges.unknown)
            return Work(_unpriced(plan, reason), plan, None, chosen)
        missing = [name for name in sorted(_asked(counted, span)) if not sheet.has_rate(name)]
        if missing and len(missing) == len(counted.counts):
            base = sheet.vectors[0]
            has_token_rate = base.prices_input or base.prices_output or not _TOKENS.issuperset(missing)
            reason = _named("no_rate", missing) if has_token_rate else "no_token_rate"
            return Work(_unpriced(plan, reason), plan, None, chosen)
        input_tokens = int(charges.counts.get("input_tokens", 0))
        vector = sheet.vector(input_tokens)
        total = vector.constant + sum(
            rate * count for name, count in charges.counts.items() if (rate := vector.units.get(name))
        )
        cost = round_half_even(total, vector.denominator)
        if cost > MAX_COST_NUSD:
            return Work(_unpriced(plan, "over_bounds"), plan, None, chosen)
        if plan.lacks and not counted.counts.get(plan.lacks):
            missing.append(plan.lacks)
        reason = _partly(missing, charges.is_ambiguous, counted.unclassified, span.usage_state)
        source = "partly_priced" if reason else ("zero_ignored" if span.cost_nusd == 0 else plan.source)
        unit_notes = [note for unit, note in plan.unit_notes.items() if charges.counts.get(unit)]
        notes = (*chosen.notes, *plan.notes, *counted.notes, *unit_notes)
        if charges.is_ambiguous:
            notes = (*notes, "cached tokens are not split by kind: this is the lowest price that the counts allow")
        return Work(Quote(cost, source, plan.model, reason), plan, sheet, chosen, charges.charged, input_tokens, notes)


_TOKENS = frozenset(FIELD_UNITS)


def _quote_fields(plan: Plan, vector: Vector, span: Span) -> Quote:
    """Return the quote of a span that has token counts and nothing else."""
    rates = vector.fields
    total = rates[0] * span.prompt_tokens + rates[1] * span.completion_tokens + vector.constant
    if span.cache_read_tokens or span.cache_write_tokens or span.reasoning_tokens:
        total += sum(rate * count for rate, count in zip(rates[2:], fields_of(span)[2:], strict=True))
    if total < 0:
        return _unpriced(plan, "usage_contradicts_itself")
    cost = round_half_even(total, vector.denominator)
    if cost > MAX_COST_NUSD:
        return _unpriced(plan, "over_bounds")
    return Quote(cost, "zero_ignored" if span.cost_nusd == 0 else plan.source, plan.model, "")


def _asked(counted: Counts, span: Span) -> set[str]:
    """Return the units that the span used, without those that only the rules of the provider added."""
    added = {"audio_seconds", "input_audio_seconds"} - set(exact_amounts(span.usage or {}))
    return set(counted.counts) - added


def _partly(missing: list[str], is_ambiguous: bool, unclassified: int, usage_state: str) -> str:
    """Return why a cost lacks a part; "" = it is complete."""
    if missing:
        return _named("no_rate", sorted(missing))
    if is_ambiguous:
        return "ambiguous_usage"
    if unclassified:
        return f"unclassified_tokens:{unclassified}"
    return {"partial": "partial_usage", "missing": "partial_usage", "estimated": "estimated_usage"}.get(usage_state, "")


def _unpriced(plan: Plan, reason: str) -> Quote:
    return Quote(None, "unpriced", plan.model, reason[:_MAX_REASON])


def _named(word: str, units: Collection[str]) -> str:
    """Return the reason *word* with the units that it is about."""
    return f"{word}:{','.join(units)}"[:_MAX_REASON]
