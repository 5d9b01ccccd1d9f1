"""What is merely long is cut and says so; what contradicts itself is corrected; counts, costs and ids stay."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import ENDED_NS, STARTED_NS, make_span
from tokentrace.dialect import costkatana, mist
from tokentrace.records import (
    MAX_SPAN_BYTES,
    MAX_VALUE_BYTES,
    SPAN_FIELDS,
    Span,
    Started,
    check_span,
    cut_text,
    fit_span,
    read_span,
)
from tokentrace.redact import Redactor
from tokentrace.units import MS

#: Fields that are never changed.
MONEY_AND_IDS = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cost_nusd",
    "usage",
    "session_id",
    "user_id",
    "response_id",
    "ended_ns",
    "latency_ns",
)


def encoded_size(span: Span) -> int:
    """Return the size of *span* on the wire, bytes."""
    return len(msgspec.msgpack.encode(span))


def test_a_span_that_fits_is_the_same_object() -> None:
    span = make_span(error="boom", status="error", attributes={"n": 1, "text": "x" * 1000, "deep": {"a": [1, "b"]}})
    assert fit_span(span) is span


def test_a_prompt_of_200_kb_keeps_its_cost_and_says_how_long_it_was() -> None:
    span = make_span(cost_nusd=4_200_000, attributes={"prompt": "lorem ipsum " * 17_000})
    fitted = fit_span(span)
    check_span(fitted)
    assert (fitted.cost_nusd, fitted.prompt_tokens, fitted.completion_tokens) == (4_200_000, 512, 128)
    assert fitted.adjusted == ("attributes.prompt: cut, 204000 bytes",)
    assert fitted.attributes["prompt"].endswith("…[cut, 204000 bytes]")
    assert MAX_VALUE_BYTES - 100 < len(fitted.attributes["prompt"].encode()) <= MAX_VALUE_BYTES


@pytest.mark.parametrize("field", ["name", "caller", "model", "provider", "scope"])
def test_a_long_name_is_cut_to_256_bytes_and_a_name_of_256_characters_stays(field: str) -> None:
    assert fit_span(make_span(**{field: "é" * 256})).adjusted == ()
    fitted = fit_span(make_span(**{field: "é" * 257}))
    assert len(getattr(fitted, field).encode()) <= 256
    assert fitted.adjusted == (f"{field}: cut, 514 bytes",)


@pytest.mark.parametrize("field", ["error", "error_stack"])
@pytest.mark.parametrize("text", ["a b " * 9_000, "語" * 20_000, "x" * 3_000_000])
def test_an_error_is_cut_to_32_kib(field: str, text: str) -> None:
    fitted = fit_span(make_span(status="error", **{field: text}))
    assert len(getattr(fitted, field).encode()) <= MAX_VALUE_BYTES
    assert fitted.adjusted == (f"{field}: cut, {len(text.encode())} bytes",)


def test_of_140_attributes_the_first_128_stay_and_those_that_mean_a_field() -> None:
    attributes: dict[str, Any] = {f"k{index}": index for index in range(138)}
    fitted = fit_span(make_span(attributes={**attributes, "eval.score": 0.5, "user_id": "u"}))
    assert list(fitted.attributes) == [*list(attributes)[:126], "eval.score", "user_id"]
    assert fitted.adjusted == ("attributes: 12 of 140 left out",)


def test_a_long_key_is_cut() -> None:
    fitted = fit_span(make_span(attributes={"k" * 300: 1, "k" * 299: 2, "short": 3}))
    check_span(fitted)
    assert sorted(fitted.attributes.values()) == [1, 2, 3]
    assert any("the key is cut" in note for note in fitted.adjusted)


def test_the_texts_in_a_nested_value_are_cut_and_its_structure_stays() -> None:
    value = {"messages": [{"role": "user", "content": "hello " * 30_000}, {"role": "system", "content": "short"}]}
    fitted = fit_span(make_span(attributes={"input": value}))
    check_span(fitted)
    user, system = fitted.attributes["input"]["messages"]
    assert user["role"] == "user"
    assert user["content"].endswith("…[cut, 180000 bytes]")
    assert system == {"role": "system", "content": "short"}


def test_a_nested_value_with_too_many_items_becomes_the_beginning_of_its_json() -> None:
    fitted = fit_span(make_span(attributes={"embedding": [0.25] * 20_000}))
    check_span(fitted)
    assert fitted.attributes["embedding"].startswith("[0.25,0.25,")
    assert fitted.attributes["embedding"].endswith(" bytes]")


def test_of_a_span_over_512_kib_the_largest_values_are_cut_first() -> None:
    large = {f"large{index}": "y " * 15_000 for index in range(40)}
    fitted = fit_span(make_span(attributes={**large, "small": "z" * 1_000}, error="e" * 2_000, status="error"))
    check_span(fitted)
    assert encoded_size(fitted) <= MAX_SPAN_BYTES
    assert fitted.attributes["small"] == "z" * 1_000
    assert fitted.error == "e" * 2_000
    assert len({len(fitted.attributes[name]) // 100 for name in large}) == 1
    assert len(fitted.adjusted) == 32
    assert fitted.adjusted[-1].endswith("more values: cut or left out")


@pytest.mark.parametrize(
    ("instants", "latency_ms", "ttft_ms", "notes"),
    [
        ((STARTED_NS, ENDED_NS), 1240, 1240, ()),
        ((STARTED_NS, ENDED_NS), 1240, 1241, ("ttft_ms: over the latency, left out",)),
        ((STARTED_NS, ENDED_NS), 0, 1241, ("ttft_ms: over the latency, left out",)),
        ((0, 0), 0, 1241, ()),
        ((ENDED_NS, STARTED_NS), 0, 0, ("started_at: after ended_at, computed",)),
        ((ENDED_NS, STARTED_NS), 300, 0, ("started_at: after ended_at, computed",)),
    ],
)
def test_contradicting_times_are_corrected(
    instants: tuple[int, int], latency_ms: int, ttft_ms: int, notes: tuple[str, ...]
) -> None:
    span = make_span(started_ns=instants[0], ended_ns=instants[1], latency_ns=latency_ms * MS, ttft_ns=ttft_ms * MS)
    fitted = fit_span(span)
    assert fitted.adjusted == notes
    assert fitted.ttft_ns == (0 if any("ttft" in note for note in notes) else ttft_ms * MS)
    if any("started_at" in note for note in notes):
        assert (fitted.started_ns, fitted.ended_ns) == (STARTED_NS - latency_ms * MS, STARTED_NS)


def test_a_computed_start_is_not_before_2000() -> None:
    first = 946_684_800_000_000_000
    fitted = fit_span(make_span(started_ns=ENDED_NS, ended_ns=first, latency_ns=1_240 * MS))
    assert fitted.started_ns == first
    check_span(fitted)


def test_a_text_is_cut_before_a_word_so_that_no_half_of_a_secret_is_left() -> None:
    secret = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"
    for shift in range(60):
        text = "word " * 6_000 + "x" * shift + " " + secret + " more" * 9_000
        cut = cut_text(text, 30_040)
        assert secret in cut or "sk-proj" not in cut
    clean = Redactor().span(fit_span(make_span(attributes={"text": "a " * 16_360 + secret + " b" * 90_000})))
    assert "abcdefgh" not in clean.attributes["text"]


def test_a_text_that_is_cut_twice_keeps_its_first_size() -> None:
    once = cut_text("x y " * 50_000, 40_000)
    assert cut_text(once, 32_000).endswith("…[cut, 200000 bytes]")


def test_notes_that_the_sender_made_stay_and_none_is_told_twice() -> None:
    span = make_span(attributes={"a": "x" * 40_000}, adjusted=("attributes.a: cut, 90000 bytes", "error: cut, 7 bytes"))
    assert fit_span(span).adjusted == ("attributes.a: cut, 90000 bytes", "error: cut, 7 bytes")


def test_secrets_in_the_notes_are_removed() -> None:
    span = fit_span(make_span(attributes={"jane@example.com": "x" * 40_000}))
    assert any("jane@example.com" in note for note in span.adjusted)
    assert "jane@example.com" not in str(Redactor().span(span))


def test_a_reporters_span_with_long_texts_is_decoded_and_cut() -> None:
    data = msgspec.msgpack.encode(make_span(name="n" * 300, error="e" * 70_000, status="error"))
    span = read_span(data)
    assert span.adjusted == ("name: cut, 300 bytes", "error: cut, 70000 bytes")
    assert span.prompt_tokens == 512


def test_an_end_that_cost_katana_gives_before_the_start_is_corrected() -> None:
    started = Started(trace_id="t", span_id="s", name="n", kind="tool", started_ns=ENDED_NS)
    end = costkatana.decode_end(b'{"endedAt": "2026-03-15T14:23:01.441Z"}')
    span = costkatana.end_of(started, end, ENDED_NS + 5)
    assert (span.ended_ns, span.adjusted) == (ENDED_NS, ("ended_at: before started_at, computed",))


def mist_span(**attrs: Any) -> Span:
    """Return the span of a MIST message whose call took 1240 ms."""
    payload = {"operation": "x", "start_ns": STARTED_NS, "end_ns": ENDED_NS, "attrs": attrs}
    return mist.decode_message(msgspec.json.encode({"type": "trace.span", "payload": payload}))


@pytest.mark.parametrize("ttft_ms", [1241, 1e12, 1.7e308])
def test_a_time_to_first_token_of_a_mist_tool_over_the_latency_is_left_out(ttft_ms: float) -> None:
    span = mist_span(ttft_ms=ttft_ms)
    assert (span.ttft_ns, span.adjusted) == (0, ("ttft_ms: over the latency, left out",))


def test_a_long_model_of_a_mist_tool_is_cut() -> None:
    span = mist_span(model="x" * 257, tokens_in=5)
    assert (span.adjusted, span.prompt_tokens) == (("model: cut, 257 bytes",), 5)


_texts = st.one_of(
    st.text(max_size=50),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=20), st.integers(1, 30_000)),
)
_values = st.recursive(
    st.one_of(_texts, st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({"name": _texts, "error": _texts, "error_stack": _texts}),
    st.dictionaries(
        st.text(max_size=300).filter(lambda key: not key.startswith(("tt.", "eval."))), _values, max_size=9
    ),
    st.integers(0, 2),
)
def test_whatever_is_long_the_fitted_span_is_valid_and_fitting_again_changes_nothing(
    fields: dict[str, str], attributes: dict[str, Any], copies: int
) -> None:
    attributes.pop("", None)
    many = {f"{key}{copy}": value for copy in range(copies * 20) for key, value in attributes.items()}
    span = make_span(status="error", attributes={**attributes, **many}, **fields)
    fitted = fit_span(span)
    check_span(fitted)
    assert fit_span(fitted) is fitted
    assert encoded_size(fitted) <= MAX_SPAN_BYTES
    assert all(getattr(fitted, name) == getattr(span, name) for name in MONEY_AND_IDS)
    assert (fitted == span) == (not fitted.adjusted)
    msgspec.msgpack.decode(msgspec.msgpack.encode(fitted), type=Span)


def test_every_text_of_a_span_is_either_cut_or_an_id_or_set_by_ingest() -> None:
    """A new text field must be fitted too, or be listed here with the reason why not."""
    texts = {
        field.name
        for field in msgspec.structs.fields(Span)
        if "str" in str(field.type) and not re.search(r"Literal|dict", str(field.type))
    }
    fitted = {"name", "caller", "model", "provider", "scope", "error", "error_stack"}
    ids = {"trace_id", "span_id", "parent_span_id", "session_id", "user_id", "response_id"}
    by_ingest = {"cost_model", "unpriced_reason", "source", "adjusted"}
    assert texts == fitted | ids | by_ingest
    assert texts <= set(SPAN_FIELDS)
