"""
The settling of a span's usage: whatever its sender counted becomes one vector of amounts that do not overlap.

How it works. Senders count the same tokens under different names and in different shapes. ``settle_usage`` applies
these rules in order; settling a settled span changes nothing.

1. An amount in ``usage`` under the name of a field (``FIELD_OF_AMOUNT``) moves into the field. 0 = not given.
2. A field that is not given and whose parts by modality or by cache time are all in ``usage`` is their sum.
3. Reasoning tokens belong to the completion tokens. They are added to them where the sender did not: if the total is
   the sum of all three, or if they are more than the completion tokens (Gemini and Grok count so).
4. What a total of a Gemini model has beyond prompt and completion tokens is its reasoning, because Gemini's total is
   prompt + answer + thoughts. The rest of any other total stays in ``total_tokens`` alone and cannot be priced.
5. No part is larger than its whole, and no two amounts of one thing differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Rejected, shorten
from tokentrace.records.span import MAX_TOKENS, Span
from tokentrace.units import is_number, scaled

#: Name of an amount, as genai-prices, OpenAI or this API call it -> the field of ``Span`` that counts the same.
FIELD_OF_AMOUNT: dict[str, str] = {
    "input_tokens": "prompt_tokens",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "completion_tokens": "completion_tokens",
    "comp_tokens": "completion_tokens",
    "total_tokens": "total_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
    "reasoning_tokens": "reasoning_tokens",
}
_FIELDS = tuple(dict.fromkeys(FIELD_OF_AMOUNT.values()))
#: Names of fields in error texts, where the documented JSON has another one.
_SHOWN = {"completion_tokens": "comp_tokens"}

_SECONDS, _MICROSECONDS = "_seconds", "_microseconds"
_MODALITIES = ("text", "audio", "image", "video")


class TokenUnit(NamedTuple):
    """
    What a unit of tokens counts.

    Attributes:
        direction: input or output.
        modality: text, audio, image or video; "" = all of them.
        type: cache_read, cache_write or tool of the input, reasoning or citation of the output; "" = all tokens.
        ttl: How long a cache write is kept, 5m or 1h; "" = any time.
    """

    direction: str
    modality: str = ""
    type: str = ""
    ttl: str = ""


def _token_units() -> dict[str, TokenUnit]:
    units: dict[str, TokenUnit] = {}
    for modality in ("", *_MODALITIES):
        part = f"_{modality}" if modality else ""
        units[f"input{part}_tokens"] = TokenUnit("input", modality)
        units[f"output{part}_tokens"] = TokenUnit("output", modality)
        units[f"cache{part}_read_tokens"] = TokenUnit("input", modality, "cache_read")
        for ttl in ("", "5m", "1h"):
            suffix = f"_{ttl}" if ttl else ""
            units[f"cache{part}_write{suffix}_tokens"] = TokenUnit("input", modality, "cache_write", ttl)
        units[f"input{part}_tool_tokens"] = TokenUnit("input", modality, "tool")
        units[f"output{part}_reasoning_tokens"] = TokenUnit("output", modality, "reasoning")
        units[f"output{part}_citation_tokens"] = TokenUnit("output", modality, "citation")
    return units


#: Every unit of tokens in genai-prices, by its name.
TOKEN_UNITS: dict[str, TokenUnit] = _token_units()
#: Every other unit of genai-prices that a span may count in ``usage``.
OTHER_UNITS = frozenset(
    {
        "audio_seconds",
        "input_audio_seconds",
        "output_audio_seconds",
        "input_characters",
        "input_text_messages",
        "input_pixels",
        "input_document_pages",
        "input_annotated_document_pages",
        "rerank_searches",
        "web_searches",
        "social_searches",
        "storage_searches",
        "code_executions",
        "requests",
    }
)
_FIELD_UNITS = {
    "prompt_tokens": TokenUnit("input"),
    "completion_tokens": TokenUnit("output"),
    "cache_read_tokens": TokenUnit("input", "", "cache_read"),
    "cache_write_tokens": TokenUnit("input", "", "cache_write"),
    "cache_write_1h_tokens": TokenUnit("input", "", "cache_write", "1h"),
    "reasoning_tokens": TokenUnit("output", "", "reasoning"),
}
#: Fields in the order in which they are filled from their parts: a part before its whole.
_BOTTOM_UP = (
    "cache_write_1h_tokens",
    "cache_write_tokens",
    "cache_read_tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "completion_tokens",
)
#: Providers, and beginnings of models, that count reasoning tokens among the completion tokens without exception.
_REASONING_INSIDE = frozenset({"openai", "azure", "azure_openai", "azure.ai.openai", "anthropic"})
_REASONING_INSIDE_MODELS = ("gpt-", "chatgpt-", "o1", "o3", "o4", "claude")
#: Providers whose total is that of the Gemini API, for models that are not another vendor's.
_GEMINI_PROVIDERS = frozenset(
    {"google", "gemini", "google-gla", "google-vertex", "vertex", "vertexai", "vertex_ai", "google_genai"}
    | {"google-genai", "gcp.gemini", "gcp.vertex_ai", "gcp.gen_ai", "google_vertexai", "google_generative_ai"}
)
_OTHER_VENDORS = re.compile(
    r"^(claude|llama|meta|mistral|mixtral|codestral|jamba|deepseek|qwen|gpt|grok|kimi|minimax|glm)"
)


def whole_amounts(usage: Mapping[str, float], path: str = "usage") -> dict[str, int]:
    """
    Return *usage* as whole numbers. A fraction of seconds becomes microseconds: ``audio_seconds`` 8.47 is
    ``audio_microseconds`` 8470000, rounded half to even, so that a price for a second stays exact to the nano-dollar.

    Args:
        path: What error texts call *usage*.

    Raises:
        Rejected: An amount is negative, no number, over 2**40, or a fraction of anything but seconds; the text names
            it.
    """
    amounts: dict[str, int] = {}
    for name, value in usage.items():
        whole, amount = name, value
        if isinstance(value, float) and is_number(value):
            if value.is_integer():
                amount = int(value)
            elif name.endswith(_SECONDS):
                whole = name.removesuffix(_SECONDS) + _MICROSECONDS
                amount = scaled(value, 1_000_000)
        if not isinstance(amount, int) or isinstance(amount, bool):
            raise Rejected(f"{path}.{shorten(name)}: {shorten(value)} is not a whole number")
        if not 0 <= amount <= MAX_TOKENS:
            raise Rejected(f"{path}.{shorten(name)}: {shorten(value)} is not between 0 and {MAX_TOKENS}")
        if amounts.setdefault(whole, amount) != amount:
            raise Rejected(f"{path}.{shorten(name)}: {shorten(value)} differs from {shorten(whole)} {amounts[whole]}")
    return amounts


def exact_amounts(usage: Mapping[str, int]) -> dict[str, int | Fraction]:
    """Return the settled *usage* by the units of genai-prices: ``audio_microseconds`` are a fraction of seconds."""
    exact: dict[str, int | Fraction] = {}
    for name, amount in usage.items():
        unit = name.removesuffix(_MICROSECONDS) + _SECONDS if name.endswith(_MICROSECONDS) else name
        exact[unit] = exact.get(unit, 0) + (amount if unit == name else Fraction(amount, 1_000_000))
    return exact


def settle_usage(span: Span) -> Span:
    """
    Return *span* with its amounts settled; the docstring of the module states the rules.

    Raises:
        Rejected: Two amounts of one thing differ, a part is larger than its whole, or a sum is over 2**40; the text
            names both.
    """
    prompt, completion, total = span.prompt_tokens, span.completion_tokens, span.total_tokens
    if not span.usage and span.reasoning_tokens <= completion and total == prompt + completion:
        return span
    amounts = {field: getattr(span, field) for field in _FIELDS}
    rest = _merge(amounts, span.usage) if span.usage else {}
    if any(name in TOKEN_UNITS for name in rest):
        rest = _settle_parts(amounts, rest)
    _settle_total(amounts, span)
    for field in _FIELDS:
        if amounts[field] > (2 * MAX_TOKENS if field == "total_tokens" else MAX_TOKENS):
            raise Rejected(f"{_SHOWN.get(field, field)}: {amounts[field]} is more than {MAX_TOKENS}")
    return replace(span, **amounts, usage=rest or None)


def _merge(amounts: dict[str, int], usage: Mapping[str, int]) -> dict[str, int]:
    """Move what *usage* counts under the name of a field into *amounts*; return the rest."""
    rest: dict[str, int] = {}
    for name, amount in whole_amounts(usage).items():
        field = FIELD_OF_AMOUNT.get(name)
        if field is None:
            rest[name] = amount
        elif amount:
            known = amounts[field]
            if known and known != amount:
                raise Rejected(
                    f"usage.{name}: {amount} differs from {_SHOWN.get(field, field)} {known}, which counts the same"
                )
            amounts[field] = amount
    return rest


def _settle_parts(amounts: dict[str, int], rest: dict[str, int]) -> dict[str, int]:
    """Fill fields that are the sum of parts in *rest*, and check every part; return what is left of *rest*."""
    counted = {TOKEN_UNITS[name]: amount for name, amount in rest.items() if name in TOKEN_UNITS and amount}
    names = {TOKEN_UNITS[name]: f"usage.{name}" for name in rest if name in TOKEN_UNITS}
    for field in _BOTTOM_UP:
        unit = _FIELD_UNITS[field]
        if not amounts[field]:
            by_ttl = unit.type == "cache_write" and not unit.ttl
            parts = [unit._replace(ttl=ttl) for ttl in ("5m", "1h")] if by_ttl else []
            amounts[field] = sum(counted.get(part, 0) for part in parts) or sum(
                counted.get(unit._replace(modality=modality), 0) for modality in _MODALITIES
            )
        if amounts[field]:
            counted[unit] = amounts[field]
            names[unit] = _SHOWN.get(field, field)
    for whole, limit in counted.items():
        _check_parts(whole, limit, counted, names)
    five, hour = counted.get(TokenUnit("input", "", "cache_write", "5m"), 0), amounts["cache_write_1h_tokens"]
    if five and five + hour == amounts["cache_write_tokens"]:
        # The two times make up the writes, so the field of the longer one says it all.
        return {name: amount for name, amount in rest.items() if name != "cache_write_5m_tokens"}
    return rest


def _check_parts(
    whole: TokenUnit, limit: int, counted: Mapping[TokenUnit, int], names: Mapping[TokenUnit, str]
) -> None:
    for group in _groups(whole):
        parts = [part for part in group if part in counted]
        amount = sum(counted[part] for part in parts)
        if amount > limit:
            listed = " + ".join(names[part] for part in parts)
            raise Rejected(f"{listed}: {amount} is more than {names[whole]} {limit}, which includes them")


def _groups(whole: TokenUnit) -> list[list[TokenUnit]]:
    """Return lists of units; those of one list are parts of *whole* that have nothing in common."""
    modalities = [whole.modality] if whole.modality else list(_MODALITIES)
    if whole.type:
        types = [whole.type]
    else:
        types = ["cache_read", "cache_write", "tool"] if whole.direction == "input" else ["reasoning", "citation"]
    ttls = [whole.ttl] if whole.ttl or whole.type != "cache_write" else ["5m", "1h"]
    groups = []
    # Each dimension is either split or taken as a whole; at least one is split.
    for by_modality, by_type, by_ttl in product((False, True), repeat=3):
        group = [
            TokenUnit(whole.direction, modality, kind, ttl)
            for modality in (modalities if by_modality else [whole.modality])
            for kind in (types if by_type else [whole.type])
            for ttl in (ttls if by_ttl else [whole.ttl])
        ]
        if group != [whole]:
            groups.append(group)
    if not whole.type and whole.direction == "input":
        groups += [[TokenUnit("input", whole.modality, "cache_write", ttl) for ttl in ("5m", "1h")]]
        groups += [[TokenUnit("input", m, "cache_write", ttl) for m in modalities for ttl in ("5m", "1h")]]
    return groups


def _settle_total(amounts: dict[str, int], span: Span) -> None:
    prompt, completion = amounts["prompt_tokens"], amounts["completion_tokens"]
    reasoning, total = amounts["reasoning_tokens"], amounts["total_tokens"]
    if not prompt and not completion:
        return
    summed = not total or total == prompt + completion
    unlike = reasoning > completion and not _reasoning_inside(span)
    if unlike or (reasoning and total == prompt + completion + reasoning):
        completion += reasoning
    elif total > prompt + completion and not reasoning and span.kind == "llm" and _is_gemini(span):
        reasoning = total - prompt - completion
        completion += reasoning
    amounts["completion_tokens"], amounts["reasoning_tokens"] = completion, reasoning
    if summed:
        amounts["total_tokens"] = prompt + completion


def _reasoning_inside(span: Span) -> bool:
    return span.provider.lower() in _REASONING_INSIDE or _last(span.model).startswith(_REASONING_INSIDE_MODELS)


def _is_gemini(span: Span) -> bool:
    model = _last(span.model)
    if model.startswith("gemini"):
        return True
    return span.provider.lower() in _GEMINI_PROVIDERS and _OTHER_VENDORS.match(model) is None


def _last(model: str) -> str:
    """Return the last part of a path such as ``models/gemini-2.5-pro``, in lower case."""
    return model.rpartition("/")[2].lower()
