"""The settling of usage: however a call is told, its amounts are the same; what contradicts itself is refused."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any

import pytest
from genai_prices.data_units import unit_data
from genai_prices.units import UnitRegistry
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from kit.examples import examples
from tokentrace.errors import Rejected
from tokentrace.records import (
    MAX_TOKENS,
    OTHER_UNITS,
    TOKEN_UNITS,
    Span,
    check_span,
    exact_amounts,
    settle_usage,
    whole_amounts,
)

FIELDS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)


def told(**fields: Any) -> Span:
    """Return a span with the amounts in *fields* and no others."""
    return make_span(**{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, **fields})


def settled(**fields: Any) -> dict[str, Any]:
    """Return the amounts, other than 0 and none, of a span that is told with *fields*."""
    span = settle_usage(told(**fields))
    check_span(span)
    assert settle_usage(span) == span
    return {name: value for name in (*FIELDS, "usage") if (value := getattr(span, name))}


def refusal(**fields: Any) -> str:
    with pytest.raises(Rejected) as caught:
        check_span(settle_usage(told(**fields)))
    return str(caught.value)


# --- the names of units ---


def test_every_unit_of_the_price_list_is_known_with_what_it_counts() -> None:
    units = UnitRegistry(unit_data).units
    assert set(units) == set(TOKEN_UNITS) | OTHER_UNITS
    for name, unit in TOKEN_UNITS.items():
        dimensions = {key: value for key, value in units[name].dimensions.items() if key != "family"}
        ours = {"direction": unit.direction, "modality": unit.modality, "token_type": unit.type, "cache_ttl": unit.ttl}
        assert dimensions == {key: value for key, value in ours.items() if value}


# --- the cases by which the rules were found ---


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": {"input_tokens": 1000, "output_tokens": 500}},
        {"usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}},
        {"prompt_tokens": 1000, "usage": {"output_tokens": 500}},
        {"prompt_tokens": 1000, "completion_tokens": 500, "usage": {"input_tokens": 1000, "comp_tokens": 500}},
        {"prompt_tokens": 1000, "completion_tokens": 500, "usage": {"input_tokens": 0}},
        {"total_tokens": 1500, "usage": {"input_tokens": 1000, "output_tokens": 500}},
    ],
)
def test_usage_under_the_names_of_fields_fills_the_fields(fields: dict[str, Any]) -> None:
    assert settled(**fields) == {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}


@pytest.mark.parametrize(
    ("fields", "both"),
    [
        ({"prompt_tokens": 1000, "usage": {"input_tokens": 999}}, ("usage.input_tokens", "prompt_tokens 1000")),
        ({"completion_tokens": 5, "usage": {"output_tokens": 6}}, ("usage.output_tokens", "comp_tokens 5")),
        ({"prompt_tokens": 9, "usage": {"cache_read_tokens": 1, "input_tokens": 8}}, ("input_tokens", "prompt_tokens")),
        ({"prompt_tokens": 9, "reasoning_tokens": 1, "usage": {"output_reasoning_tokens": 2}}, ("reasoning_tokens 1",)),
        ({"usage": {"input_tokens": 3, "prompt_tokens": 4}}, ("usage.prompt_tokens: 4", "3")),
    ],
)
def test_a_field_and_a_usage_that_differ_are_refused_with_both_names(fields: Any, both: tuple[str, ...]) -> None:
    message = refusal(**fields)
    assert all(name in message for name in both), message


def test_web_searches_leave_the_tokens_of_a_call_as_they_are() -> None:
    assert settled(prompt_tokens=10, completion_tokens=5, usage={"web_searches": 2}) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "usage": {"web_searches": 2},
    }


GEMINI = {"model": "gemini-2.5-pro", "provider": "google"}


@pytest.mark.parametrize("reasoning", [{}, {"reasoning_tokens": 572}])
@pytest.mark.parametrize("total", [{}, {"total_tokens": 1016}])
def test_the_thoughts_of_a_gemini_model_are_output_whether_they_come_by_name_or_in_the_total(
    reasoning: dict[str, int], total: dict[str, int]
) -> None:
    if not reasoning and not total:
        return
    amounts = settled(prompt_tokens=20, completion_tokens=424, **GEMINI, **reasoning, **total)
    assert amounts == {
        "prompt_tokens": 20,
        "completion_tokens": 996,
        "total_tokens": 1016,
        "reasoning_tokens": 572,
    }


@pytest.mark.parametrize(
    "model",
    [
        {"model": "gemini-2.5-flash", "provider": ""},
        {"model": "models/gemini-2.5-flash", "provider": "vertex_ai"},
        {"model": "my-tuned-model", "provider": "gcp.gemini"},
    ],
)
def test_a_total_of_gemini_is_known_by_model_or_provider(model: dict[str, str]) -> None:
    assert settled(prompt_tokens=1, completion_tokens=2, total_tokens=10, **model)["completion_tokens"] == 9


@pytest.mark.parametrize(
    "model", [{}, {"model": "claude-sonnet-4-5", "provider": "vertex_ai"}, {"model": "mystery", "provider": ""}]
)
def test_the_rest_of_any_other_total_stays_in_the_total(model: dict[str, str]) -> None:
    amounts = settled(prompt_tokens=1000, completion_tokens=200, total_tokens=1500, **model)
    assert amounts == {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1500}


def test_reasoning_beside_the_answer_is_added_where_the_total_says_so() -> None:
    amounts = settled(prompt_tokens=10, completion_tokens=50, reasoning_tokens=20, total_tokens=80, model="grok-4")
    assert (amounts["completion_tokens"], amounts["total_tokens"]) == (70, 80)
    amounts = settled(prompt_tokens=10, completion_tokens=50, reasoning_tokens=20, total_tokens=60, model="grok-4")
    assert (amounts["completion_tokens"], amounts["total_tokens"]) == (50, 60)


@pytest.mark.parametrize(
    "model",
    [
        {"model": "gpt-5", "provider": ""},
        {"model": "o3", "provider": "openai"},
        {"model": "my-deployment", "provider": "azure"},
        {"model": "claude-opus-4", "provider": "bedrock"},
    ],
)
def test_more_reasoning_than_output_is_refused_for_vendors_that_count_it_inside(model: dict[str, str]) -> None:
    message = refusal(prompt_tokens=20, completion_tokens=424, reasoning_tokens=572, **model)
    assert "reasoning_tokens: 572" in message
    assert "comp_tokens 424" in message


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"usage": {"input_audio_tokens": 11}}, ("usage.input_audio_tokens", "prompt_tokens 10")),
        ({"usage": {"input_audio_tokens": 6, "input_text_tokens": 5}}, ("input_audio_tokens", "input_text_tokens")),
        ({"cache_read_tokens": 6, "usage": {"input_tool_tokens": 5}}, ("cache_read_tokens", "input_tool_tokens")),
        ({"cache_read_tokens": 3, "usage": {"cache_audio_read_tokens": 4}}, ("cache_audio_read_tokens", "cache_read")),
        ({"usage": {"input_audio_tokens": 3, "cache_audio_read_tokens": 4, "cache_read_tokens": 5}}, ("audio",)),
        ({"usage": {"output_audio_tokens": 6}}, ("usage.output_audio_tokens", "comp_tokens 5")),
        ({"reasoning_tokens": 3, "usage": {"output_citation_tokens": 3}}, ("citation", "comp_tokens 5")),
        ({"cache_write_tokens": 5, "usage": {"cache_write_5m_tokens": 3, "cache_write_1h_tokens": 3}}, ("5m",)),
    ],
)
def test_parts_that_exceed_their_whole_are_refused_with_all_names(fields: Any, names: tuple[str, ...]) -> None:
    message = refusal(prompt_tokens=10, completion_tokens=5, **fields)
    assert all(name in message for name in names), message


# --- any telling of a call ---

MODALITIES = ("text", "audio", "image", "video")
INPUTS = ("", "read", "write_5m", "write_1h", "tool")
OUTPUTS = ("", "reasoning", "citation")
amounts_of_call = st.fixed_dictionaries(
    {("in", m, t): st.sampled_from([0, 0, 0, 1, 7, 1000]) for m in MODALITIES for t in INPUTS}
    | {("out", m, t): st.sampled_from([0, 0, 0, 2, 9, 500]) for m in MODALITIES for t in OUTPUTS}
)


def sum_of(call: dict[tuple[str, str, str], int], way: str, modalities: Any = MODALITIES, *types: str) -> int:
    """Return the tokens of *call* in the direction *way*, of some modalities, of all types or of *types*."""
    return sum(
        amount for (w, m, t), amount in call.items() if w == way and m in modalities and (not types or t in types)
    )


def units_of(call: dict[tuple[str, str, str], int]) -> dict[str, int]:
    """Return the amount of each unit of tokens, written out by hand, that is not 0."""
    units = {}
    for m, part in [(MODALITIES, ""), *(((m,), f"_{m}") for m in MODALITIES)]:
        units[f"input{part}_tokens"] = sum_of(call, "in", m)
        units[f"cache{part}_read_tokens"] = sum_of(call, "in", m, "read")
        units[f"cache{part}_write_tokens"] = sum_of(call, "in", m, "write_5m", "write_1h")
        units[f"cache{part}_write_5m_tokens"] = sum_of(call, "in", m, "write_5m")
        units[f"cache{part}_write_1h_tokens"] = sum_of(call, "in", m, "write_1h")
        units[f"input{part}_tool_tokens"] = sum_of(call, "in", m, "tool")
        units[f"output{part}_tokens"] = sum_of(call, "out", m)
        units[f"output{part}_reasoning_tokens"] = sum_of(call, "out", m, "reasoning")
        units[f"output{part}_citation_tokens"] = sum_of(call, "out", m, "citation")
    return {name: amount for name, amount in units.items() if amount}


UNIT_OF_FIELD = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}


@settings(max_examples=examples(400), deadline=None)
@given(amounts_of_call, st.data())
def test_however_a_call_is_told_its_amounts_are_the_same(call: dict[Any, int], data: st.DataObject) -> None:
    units = units_of(call)
    truth = {field: units.get(unit, 0) for field, unit in UNIT_OF_FIELD.items()}
    truth["total_tokens"] = truth["prompt_tokens"] + truth["completion_tokens"]
    others = sorted(set(units) - set(UNIT_OF_FIELD.values()))
    usage = {name: units[name] for name in others if data.draw(st.booleans())}
    fields: dict[str, Any] = {}
    for field, unit in UNIT_OF_FIELD.items():
        if truth[field]:
            ways = data.draw(st.sampled_from(["field", "usage", "both"]))
            if ways != "usage":
                fields[field] = truth[field]
            if ways != "field":
                usage[unit] = truth[field]
    if data.draw(st.booleans()):
        fields["total_tokens"] = truth["total_tokens"]
    got = settled(**fields, usage=usage or None, status="error")
    left = {name: amount for name, amount in usage.items() if name in others}
    if truth["cache_write_tokens"] == units.get("cache_write_5m_tokens", 0) + truth["cache_write_1h_tokens"]:
        left.pop("cache_write_5m_tokens", None)
    assert got == {name: value for name, value in {**truth, "usage": left}.items() if value}


@settings(max_examples=examples(200), deadline=None)
@given(amounts_of_call)
def test_a_whole_that_is_not_told_is_the_sum_of_its_modalities(call: dict[Any, int]) -> None:
    units = units_of(call)
    usage = {name: amount for name, amount in units.items() if name not in UNIT_OF_FIELD.values()}
    usage |= {name: units[name] for name in ("cache_write_1h_tokens",) if name in units}
    got = settled(usage=usage or None, status="error")
    assert {field: got.get(field, 0) for field in UNIT_OF_FIELD} == {
        field: units.get(unit, 0) for field, unit in UNIT_OF_FIELD.items()
    }


@settings(max_examples=examples(200), deadline=None)
@given(amounts_of_call, st.data())
def test_a_part_that_is_told_larger_than_its_direction_is_refused(call: dict[Any, int], data: st.DataObject) -> None:
    units = units_of(call)
    parts = [name for name in units if name not in ("input_tokens", "output_tokens")]
    if not parts:
        return
    part = data.draw(st.sampled_from(sorted(parts)))
    whole = "output_tokens" if part.startswith("output") else "input_tokens"
    message = refusal(usage={whole: units[whole], part: units[whole] + 1}, status="error")
    # Tokens that are kept for an hour are a part of the written ones, of which none are told.
    assert ("cache_write_tokens 0" if part == "cache_write_1h_tokens" else str(units[whole])) in message


@settings(max_examples=examples(200), deadline=None)
@given(*[st.integers(0, 2000)] * 4, st.sampled_from(["gemini-2.5-pro", "mystery", "gpt-4o", "grok-4"]))
@example(20, 424, 572, 1016, "gemini-2.5-pro")
def test_a_total_never_loses_a_token(prompt: int, completion: int, reasoning: int, total: int, model: str) -> None:
    try:
        span = settle_usage(
            told(
                prompt_tokens=prompt,
                completion_tokens=completion,
                reasoning_tokens=reasoning,
                total_tokens=total,
                model=model,
                provider="",
                status="error",
            )
        )
        check_span(span)
    except Rejected:
        assert reasoning > completion or total < prompt + completion or reasoning + prompt + completion > total
        return
    assert span.total_tokens >= max(total, prompt + completion)
    assert span.prompt_tokens == prompt
    assert span.completion_tokens in {completion, completion + reasoning, total - prompt}
    assert span.reasoning_tokens <= span.completion_tokens


# --- fractions ---


@given(st.floats(0, 1_000_000))
@example(8.47)
@example(0.1)
@example(0.0000005)
def test_a_fraction_of_seconds_is_kept_in_microseconds(seconds: float) -> None:
    amounts = whole_amounts({"audio_seconds": seconds})
    expected = int((Decimal(repr(seconds)) * 10**6).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    [(unit, exact)] = exact_amounts(amounts).items()
    assert unit == "audio_seconds"
    assert exact == (Fraction(expected, 10**6) if not seconds.is_integer() else int(seconds))


def test_8_point_47_seconds_of_audio_are_exact() -> None:
    assert settled(prompt_tokens=1, usage={"audio_seconds": 8.47})["usage"] == {"audio_microseconds": 8_470_000}
    assert exact_amounts({"audio_microseconds": 8_470_000, "web_searches": 1}) == {
        "audio_seconds": Fraction(847, 100),
        "web_searches": 1,
    }


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("web_searches", 1.5, "not a whole number"),
        ("input_audio_tokens", 0.5, "not a whole number"),
        ("web_searches", True, "not a whole number"),
        ("web_searches", float("nan"), "not a whole number"),
        ("audio_seconds", float("inf"), "not a whole number"),
        ("audio_seconds", -0.5, "not between"),
        ("web_searches", -1, "not between"),
        ("web_searches", MAX_TOKENS + 1, "not between"),
        ("audio_seconds", MAX_TOKENS + 0.0, ""),
        ("web_searches", 3.0, ""),
    ],
)
def test_a_fraction_of_anything_but_seconds_is_refused_with_its_name(name: str, value: Any, why: str) -> None:
    if not why:
        assert whole_amounts({name: value}) == {name: int(value)}
        return
    with pytest.raises(Rejected, match=rf"^usage\.{name}: .*{why}"):
        whole_amounts({name: value})


def test_sums_over_the_limit_are_refused() -> None:
    many = MAX_TOKENS // 2 + 1
    assert "prompt_tokens" in refusal(usage={"input_audio_tokens": many, "input_text_tokens": many})
    assert "comp_tokens" in refusal(prompt_tokens=1, completion_tokens=many, reasoning_tokens=many + 1, model="grok-4")
