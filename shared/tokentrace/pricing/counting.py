"""Turns the fields and the ``usage`` of a span into one count for each priced unit."""

from __future__ import annotations

from typing import NamedTuple

from tokentrace.pricing.rates import FIELD_UNITS, REQUESTS, Amount, Sheet
from tokentrace.records import Span, exact_amounts

_SECONDS = ("audio_seconds", "input_audio_seconds")


class Counts(NamedTuple):
    """
    What a call used.

    Attributes:
        counts: Unit -> count, without zeros; more general units include more specific ones.
        unclassified: Tokens of the total that are neither prompt nor completion.
        notes: What a receipt must say about these counts.
        contradiction: Whether a field and ``usage`` say different numbers.
    """

    counts: dict[str, Amount]
    unclassified: int
    notes: tuple[str, ...]
    contradiction: bool


def fields_of(span: Span) -> tuple[int, int, int, int, int, int]:
    """Return the token counts of *span* in the order of ``FIELD_UNITS``."""
    return (
        span.prompt_tokens,
        span.completion_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )


def has_usage(span: Span) -> bool:
    """Return True if *span* says that it used anything."""
    if span.prompt_tokens or span.completion_tokens or span.total_tokens:
        return True
    return span.usage is not None and any(span.usage.values())


def counts_of(span: Span, thoughts_in_total: bool, is_input_only: bool, least_seconds: int) -> Counts:
    """
    Return what *span* used.

    Args:
        thoughts_in_total: Tokens of the total that are neither prompt nor completion are thoughts, which cost as much
            as other output.
        is_input_only: The model has no output, so a total is a number of input tokens.
        least_seconds: Seconds of audio that a call with audio is billed for at least.
    """
    counts: dict[str, Amount] = exact_amounts(span.usage or {})
    contradiction = False
    for name, field in zip(FIELD_UNITS, fields_of(span), strict=True):
        if field:
            contradiction = contradiction or counts.get(name, field) not in (0, field)
            counts[name] = field
    notes: list[str] = []
    prompt, completion = int(counts.get("input_tokens", 0)), int(counts.get("output_tokens", 0))
    reasoning = int(counts.get("output_reasoning_tokens", 0))
    rest = max(span.total_tokens - prompt - completion, 0)
    if reasoning > completion or (reasoning and rest == reasoning):
        notes.append("reasoning tokens were reported beside the completion tokens, and were added to them")
        completion += reasoning
        rest = max(span.total_tokens - prompt - completion, 0)
    if rest and is_input_only and not completion:
        if not prompt:
            notes.append("the total was taken as input, because the model has no priced output")
            counts["input_tokens"], rest = rest, 0
    elif rest and thoughts_in_total and (prompt or completion):
        notes.append(f"{rest} tokens of the total beyond prompt and completion are thoughts, priced as output")
        completion, rest = completion + rest, 0
    if completion:
        counts["output_tokens"] = completion
    if least_seconds and (seconds := next((counts[name] for name in _SECONDS if counts.get(name)), 0)):
        billed = max(seconds, least_seconds)
        if billed > seconds:
            notes.append(f"{float(seconds):g} s of audio are billed as {billed} s, the least of this provider")
        counts |= dict.fromkeys(_SECONDS, billed)
    return Counts({name: count for name, count in counts.items() if count}, rest, tuple(notes), contradiction)


class Charges(NamedTuple):
    """
    What is charged at which rate.

    Attributes:
        counts: Unit -> count, completed by wholes that only their parts are known of and by unknown overlaps.
        charged: Unit -> amount charged at the rate of this unit.
        is_ambiguous: Whether the counts allow several prices; ``counts`` are then those of the lowest.
        is_contradictory: Whether a part is larger than its whole.
        unknown: Units that overlap by an unknown number, if there is no lowest price for this reason.
    """

    counts: dict[str, Amount]
    charged: dict[str, Amount]
    is_ambiguous: bool = False
    is_contradictory: bool = False
    unknown: tuple[str, ...] = ()


def charges_of(sheet: Sheet, given: dict[str, Amount], usage: dict[str, int] | None) -> Charges:
    """
    Return what is charged for the counts *given* at the rates of *sheet*.

    Two parts of a whole may overlap: audio tokens, and cached tokens of any kind. If the number of cached audio tokens
    is not given, it is between two bounds, and so is the price. The lower bound of the price is what is certain.

    Args:
        usage: The span's own map: an overlap that is given there as 0 is known.
    """
    counts = dict(given)
    open_joins = [
        (one, other, join)
        for one, other, join in sheet.joins
        if counts.get(one) and counts.get(other) and not counts.get(join) and join not in (usage or {})
    ]
    if open_joins:
        return _with_overlaps(sheet, counts, open_joins)
    return _complete(sheet, counts)


def _complete(sheet: Sheet, counts: dict[str, Amount]) -> Charges:
    """Return the charges; a whole of which only parts are given is the sum of its parts."""
    charged: dict[str, Amount] = {}
    for name in sheet.order:
        count: Amount = counts.get(name, 0)
        parts: Amount = 0
        for part in sheet.parts[name]:
            parts += charged[part]
        if parts and not count:
            counts[name] = count = parts
        charged[name] = count - parts
    contradictory = any(amount < 0 for amount in charged.values())
    if REQUESTS in sheet.rates:
        charged[REQUESTS] = 1
    return Charges(counts, charged, is_contradictory=contradictory)


def _with_overlaps(sheet: Sheet, counts: dict[str, Amount], joins: list[tuple[str, str, str]]) -> Charges:
    """Return the charges with the overlaps of the lowest price."""
    shared = set(joins[0][:2]).intersection(*(set(join[:2]) for join in joins[1:]))
    if len(joins) > 1 and len(shared) != 1:
        return Charges(counts, {}, unknown=tuple(sorted(join for _, _, join in joins)))
    vector = sheet.vector(int(counts.get("input_tokens", 0)))
    anchor = min(shared) if len(joins) > 1 else joins[0][0]
    left = counts[anchor]
    # The most that saves first; then the least that the whole has room for without.
    cheapest = sorted(joins, key=lambda join: vector.units.get(join[2], 0))
    missing = max(0, -min(_complete(sheet, dict(counts)).charged.values(), default=0))
    prices = set()
    for one, other, join in cheapest:
        most = min(left, counts[other if one == anchor else one])
        rate = vector.units.get(join, 0)
        amount = most if rate < 0 else min(most, missing)
        least = min(most, missing)
        prices.add(rate if most != least else 0)
        counts[join] = amount
        left -= amount
        missing = max(0, missing - amount)
    done = _complete(sheet, counts)
    return done._replace(is_ambiguous=any(prices) and not done.is_contradictory)
