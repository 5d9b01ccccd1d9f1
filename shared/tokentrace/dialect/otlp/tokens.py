"""
The tokens of a call: whatever the emitter counts becomes one whole input with its parts, and one whole output.

How it works. The usage object of the provider, if the emitter sends it along, has everything and one meaning. Otherwise
the emitter's attributes are read. Most emitters count cached tokens as part of the input, as the conventions ask. Some
do not for some providers, which each family knows (``Family.excludes_cached``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokentrace.dialect.attributes import counts_of
from tokentrace.dialect.otlp.view import View
from tokentrace.errors import Rejected
from tokentrace.records import MAX_TOKENS, MODEL_KINDS, TOKEN_UNITS, UsageState
from tokentrace.units import is_number

#: Facts of ``ladders`` that are parts by modality.
_MODALITIES = (
    "input_audio_tokens",
    "output_audio_tokens",
    "input_image_tokens",
    "output_image_tokens",
    "cache_audio_read_tokens",
    "cache_image_read_tokens",
)
#: Names in Langfuse's own usage object, whose amounts have no token in common: name -> field.
_LANGFUSE_PARTS = {
    "cache_read_input_tokens": "read",
    "input_cached_tokens": "read",
    "input_cache_read": "read",
    "cache_creation_input_tokens": "write",
    "input_cache_creation": "write",
    "input_cache_creation_1h": "write_1h",
    "output_reasoning_tokens": "reasoning",
    "output_reasoning": "reasoning",
}


class Tokens(NamedTuple):
    """
    The tokens of a call.

    Attributes:
        prompt: The whole input; ``read`` and ``write`` are parts of it, and ``write_1h`` is part of ``write``.
        completion: The whole output; ``reasoning`` is part of it.
        total: The sum, or the only known number.
        usage: Parts by modality and other units; {} = none.
        rule: How the input was read: inclusive, exclusive, or native and the place of the provider's object; "" = the
            span counts nothing.
        notes: What was doubtful.
        state: ``Span.usage_state`` of a successful call.
    """

    prompt: int = 0
    completion: int = 0
    total: int = 0
    read: int = 0
    write: int = 0
    write_1h: int = 0
    reasoning: int = 0
    usage: Mapping[str, int] = {}
    rule: str = ""
    notes: tuple[str, ...] = ()
    state: UsageState = ""

    @property
    def fits(self) -> bool:
        """True if no part is larger than its whole."""
        return (
            self.read + self.write <= self.prompt and self.write_1h <= self.write and self.reasoning <= self.completion
        )

    @property
    def is_used(self) -> bool:
        """True if anything is counted."""
        return bool(self.prompt or self.completion or self.total or any(self.usage.values()))


NO_TOKENS = Tokens()
_MISSING = Tokens(state="missing")


def tokens_of(
    view: View, kind: str, provider: str, objects: list[tuple[str, Mapping[str, Any]]], *, excludes_cached: bool
) -> Tokens:
    """
    Return the tokens that a span counts.

    Args:
        objects: (Place, usage object of the provider) in the order in which they are tried.
        excludes_cached: True = the emitter does not count cached tokens of this provider as input.
    """
    facts = view.facts
    if kind not in MODEL_KINDS and not objects and _WHOLES.isdisjoint(facts):
        return NO_TOKENS
    found = _of_objects(objects, facts.get("O")) if objects else None
    if found is None:
        found = _of_attributes(view, provider, excludes_cached=excludes_cached)
    if "compacted_input" in facts or "compacted_output" in facts:
        found = _with_compacted(found, view)
    if not found.is_used:
        return found._replace(state="missing") if found.notes else _MISSING
    if kind == "llm" and not found.state and _lacks_a_half(found, view):
        found = found._replace(state="partial")
    return found


_WHOLES = frozenset({"I", "O", "T", "N"})


def _lacks_a_half(tokens: Tokens, view: View) -> bool:
    """Return True if the input or the output is not told: an application stopped to read a stream."""
    if tokens.rule.startswith("native") or not (tokens.prompt or tokens.completion):
        return False
    return (not tokens.completion and view.get("O") is None) or (not tokens.prompt and view.get("I") is None)


# -- the provider's object


def _of_objects(objects: list[tuple[str, Mapping[str, Any]]], output: int | None) -> Tokens | None:
    """Return the tokens in the first object whose output is *output*, if that is known; None if there is none."""
    for place, usage in objects:
        tokens = _of_object(place, usage)
        if tokens is not None and (output is None or output == tokens.completion):
            return tokens
    return None


def _of_object(place: str, usage: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens in the provider's own usage object; None if it counts nothing or contradicts itself."""
    if ("input" in usage or "output" in usage) and "prompt_tokens" not in usage and "input_tokens" not in usage:
        return _of_disjoint_parts(place, usage)
    try:
        fields = counts_of({}, (usage,))
    except Rejected:
        return None
    prompt, completion = fields.get("prompt_tokens", 0), fields.get("completion_tokens", 0)
    total = fields.get("total_tokens", 0)
    if not (prompt or completion or total):
        return None
    units: dict[str, int] = {name: amount for name, amount in fields.get("usage", {}).items() if amount}
    write_1h, write_5m = fields.get("cache_write_1h_tokens", 0), units.get("cache_write_5m_tokens", 0)
    write = fields.get("cache_write_tokens", 0) or write_1h + write_5m
    if write == write_1h + write_5m:
        units.pop("cache_write_5m_tokens", None)
    return Tokens(
        prompt=prompt,
        completion=completion,
        total=max(total, prompt + completion),
        read=fields.get("cache_read_tokens", 0),
        write=write,
        write_1h=write_1h,
        reasoning=fields.get("reasoning_tokens", 0),
        usage=units,
        rule=f"native:{place}",
        state=fields.get("usage_state", ""),
    )


def _of_disjoint_parts(place: str, usage: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens of an object in Langfuse's form, in which ``input`` is only what no other name counts."""
    amounts = {name: int(amount) for name, amount in usage.items() if is_number(amount) and 0 <= amount <= MAX_TOKENS}
    parts = dict.fromkeys(_LANGFUSE_PARTS.values(), 0)
    prompt = completion = 0
    for name, amount in amounts.items():
        if name.startswith(("input", "cache_")):
            prompt += amount
        elif name.startswith("output"):
            completion += amount
        if name in _LANGFUSE_PARTS:
            parts[_LANGFUSE_PARTS[name]] += amount
    if not (prompt or completion):
        return None
    return _bounded(
        Tokens(
            prompt=prompt,
            completion=completion,
            total=prompt + completion,
            read=parts["read"],
            write=parts["write"] + parts["write_1h"],
            write_1h=parts["write_1h"],
            reasoning=parts["reasoning"],
            rule=f"native:{place}",
        )
    )


# -- attributes


def _of_attributes(view: View, provider: str, *, excludes_cached: bool) -> Tokens:
    get = view.get
    given, completion, total = get("I") or 0, get("O") or 0, get("T") or 0
    if not (given or completion or total or get("N")):
        return NO_TOKENS
    read, write, uncached = get("R") or 0, get("W") or 0, get("N")
    notes: tuple[str, ...] = ()
    state: UsageState = ""
    prompt, rule = given, "inclusive"
    if uncached is not None:
        prompt = uncached + read + write
    elif excludes_cached or read + write > given:
        prompt, rule = given + read + write, "exclusive"
        if get("I") is None and prompt:
            state, notes = "partial", ("cached input is told, and other input is not",)
        elif not excludes_cached:
            notes = ("more cached tokens than input, so they are counted beside it",)
    reasoning = get("G") or 0
    if provider == "google" and total - prompt > completion > 0:
        # The output is counted without the thoughts.
        reasoning = reasoning or total - prompt - completion
        completion = total - prompt
    usage = {name: amount for name in _MODALITIES if (amount := get(name))}
    return _bounded(
        Tokens(
            prompt=prompt,
            completion=completion,
            total=max(total, prompt + completion),
            read=read,
            write=write,
            write_1h=min(get("H") or 0, write),
            reasoning=min(reasoning, completion),
            usage=usage,
            rule=rule,
            notes=notes,
            state=state,
        )
    )


def _with_compacted(tokens: Tokens, view: View) -> Tokens:
    """Return *tokens* with those that a compaction of the context used, which Anthropic's SDK counts on top."""
    before, after = view.get("compacted_input") or 0, view.get("compacted_output") or 0
    return _bounded(
        tokens._replace(
            prompt=tokens.prompt + before,
            completion=tokens.completion + after,
            total=tokens.total + before + after,
            rule=tokens.rule or "inclusive",
        )
    )


def _bounded(tokens: Tokens) -> Tokens:
    """Return *tokens* without those whose sum is more than a record can count."""
    if tokens.prompt <= MAX_TOKENS and tokens.completion <= MAX_TOKENS:
        return tokens
    return NO_TOKENS._replace(notes=("more tokens than a record can count",))


# -- parts that contradict their whole


def without_parts(tokens: Tokens) -> Tokens:
    """Return *tokens* without parts, with a note: they contradict each other."""
    return tokens._replace(
        read=0,
        write=0,
        write_1h=0,
        reasoning=0,
        usage={name: amount for name, amount in tokens.usage.items() if name not in TOKEN_UNITS},
        total=max(tokens.total, tokens.prompt + tokens.completion),
        notes=(*tokens.notes, "parts contradict their whole and are left out"),
    )


def fields_of(tokens: Tokens) -> dict[str, Any]:
    """Return *tokens* by the fields of ``Span``."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
        "cache_read_tokens": tokens.read,
        "cache_write_tokens": tokens.write,
        "cache_write_1h_tokens": tokens.write_1h,
        "reasoning_tokens": tokens.reasoning,
        "usage": dict(tokens.usage) or None,
    }
