"""Records of all types lose their secrets, and their content if redaction fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_span
from kit.canaries import KINDS, canary
from tokentrace.records import Annotation, ChatMessage, SessionEnd, Started, check_span
from tokentrace.redact import (
    CONTENT_KEYS,
    DROPPED,
    EMAIL_REDACTED,
    FAILED,
    REDACTED,
    RedactionCounts,
    Redactor,
)

SECRET = "hunter2"


redactor = Redactor()


def test_attributes_error_and_stack_of_a_span_lose_their_secrets() -> None:
    dirty = make_span(
        attributes={"password": SECRET, "list": ["a@b.io"], "n": 5, "deep": {"api_key": SECRET}},
        error="login with password=hunter2 failed",
        error_stack="File x\n  token = 'hunter2'",
    )
    clean = redactor.span(dirty)
    assert clean.attributes == {"password": REDACTED, "list": [EMAIL_REDACTED], "n": 5, "deep": {"api_key": REDACTED}}
    assert clean.error == "login with password=[REDACTED] failed"
    assert clean.error_stack == "File x\n  token = '[REDACTED]'"
    assert dirty.attributes["password"] == SECRET


def test_a_span_without_secrets_is_returned_as_the_same_object() -> None:
    span = make_span(attributes={"a": 1, "b": ["x", {"c": None}], "d": {}}, error="timed out", error_stack="at x:5")
    assert redactor.span(span) is span
    assert redactor.span(redactor.span(make_span(error="password: x"))).error == f"password: {REDACTED}"


def test_only_the_fields_of_a_span_that_hold_secrets_change() -> None:
    span = make_span(attributes={"password": SECRET}, error="a@b.io")
    clean = redactor.span(span)
    changed = {name for name in span.__struct_fields__ if getattr(span, name) != getattr(clean, name)}
    assert changed == {"attributes", "error"}


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "password", "userEmail", "max_tokens", "phone"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "token", "note", "ssn"]), values, max_size=4))
def test_redaction_returns_a_redacted_span_itself_and_does_not_change_the_original(attributes: dict[str, Any]) -> None:
    before = json.dumps(attributes)
    span = make_span(attributes=attributes)
    clean = redactor.span(span)
    assert json.dumps(attributes) == before
    assert redactor.span(clean) is clean
    assert (clean is span) is (json.dumps(clean.attributes) == before)


def test_the_caches_of_keys_and_texts_are_bounded() -> None:
    fresh = Redactor()
    for number in range(25_000):
        assert not fresh.is_sensitive(f"k{number}")
        assert fresh.text(f"text {number}") == f"text {number}"
    caches = [held for owner in (fresh, fresh._keys) for held in vars(owner).values() if isinstance(held, (dict, set))]
    assert sum(map(len, caches)) > 100
    assert max(map(len, caches)) <= 10_001


def test_the_cache_of_clean_texts_holds_no_secret() -> None:
    fresh = Redactor()
    for kind in KINDS:
        text, needle = canary(kind, "memory")
        fresh.text(text)
        assert not any(needle in cached for cached in fresh._clean)


# --- every record ---------------------------------------------------------------------------------------------------


SECRETS = {kind: canary(kind, "record") for kind in KINDS}


#: Every secret but the cut-off private key, which would take the rest of the text with it.
TEXT = "\n".join(secret.text for kind, secret in SECRETS.items() if kind != "private key cut off")


def assert_no_secret(record: Any) -> None:
    shown = repr(record)
    assert [kind for kind, secret in SECRETS.items() if secret.needle in shown] == []


def test_names_errors_attributes_and_usage_of_a_span_keep_no_secret() -> None:
    for text, needle in SECRETS.values():
        span = make_span(
            name=text,
            caller=text,
            model=text,
            provider=text,
            error=text,
            error_stack=f"File x\n  {text}",
            attributes={text: 1, "plain": text, "deep": {text: [text, {"x": text}]}},
            usage={text: 3},
        )
        redactions: RedactionCounts = {}
        clean = redactor.span(span, redactions)
        assert needle not in repr(clean)
        assert sum(redactions.values()) >= 10
        assert list((clean.usage or {}).values()) == [3]
        check_span(clean)
        assert redactor.span(clean) is clean


def test_ids_of_a_span_stay_even_if_they_look_like_secrets() -> None:
    span = make_span(trace_id="a@b.io", span_id="555-123-4567", session_id="c@d.io", user_id="jane@example.com")
    assert redactor.span(span) is span


def test_attributes_whose_keys_become_the_same_placeholder_stay_apart() -> None:
    clean = redactor.mapping({"a@b.io": 1, "c@d.io": 2, EMAIL_REDACTED: 3})
    assert sorted(clean.values()) == [1, 2, 3]
    assert all("@" not in key for key in clean)


@given(st.integers(1, 30), st.sampled_from(["name", "caller", "model", "provider"]))
def test_a_name_stays_within_its_limit_if_placeholders_make_it_longer(count: int, field: str) -> None:
    span = make_span(**{field: "a@b.io " * count})
    check_span(redactor.span(span))
    assert len(getattr(redactor.span(span), field)) <= 256


def test_values_and_keys_stay_within_their_limits_if_placeholders_make_them_longer() -> None:
    span = make_span(attributes={"x": "a@b.io " * 4600, "a@b.io," * 36: "é a@b.io" * 3600}, error="a@b.io " * 4600)
    check_span(span)
    check_span(redactor.span(span))
    assert len(redactor.span(span).error) <= 32 * 1024


def test_starts_annotations_session_ends_and_messages_lose_their_secrets() -> None:
    metadata = {"password": SECRET, "x": TEXT}
    clean = redactor.started(Started(trace_id="t", span_id="s", name="a@b.io", caller="c@d.io", metadata=metadata))
    assert (clean.name, clean.caller, clean.metadata["password"]) == (EMAIL_REDACTED, EMAIL_REDACTED, REDACTED)
    assert_no_secret(clean)
    assert_no_secret(redactor.annotation(Annotation(trace_id="t", span_id="s", attributes={"x": {"y": [TEXT]}})))
    assert_no_secret(redactor.session_end(SessionEnd(session_id="s", ended_ns=ENDED_NS, error=TEXT)))
    assert_no_secret(redactor.message(ChatMessage(message_id="m", session_id="s", content=TEXT, metadata={"x": TEXT})))


# --- messages -------------------------------------------------------------------------------------------------------


def message(content: str, **fields: Any) -> ChatMessage:
    return ChatMessage(message_id="m", session_id="s", content=content, **fields)


def test_a_message_says_whether_it_was_redacted_and_how_long_it_was() -> None:
    clean = redactor.message(message("mail me a@b.io"))
    assert (clean.content, clean.redacted, clean.raw, clean.length) == ("mail me [EMAIL_REDACTED]", True, "", 14)
    plain = redactor.message(message("hello"))
    assert (plain.content, plain.redacted, plain.raw, plain.length) == ("hello", False, "", 5)


def test_the_redaction_fields_that_a_sender_sets_are_ignored() -> None:
    clean = redactor.message(message("hello", redacted=True, raw="a@b.io", length=99))
    assert (clean.redacted, clean.raw, clean.length) == (False, "", 5)
    off = Redactor(mode="off").message(message("a@b.io", redacted=True, raw="x", length=99))
    assert (off.content, off.redacted, off.raw, off.length) == ("a@b.io", False, "", 6)


def test_the_original_of_a_redacted_message_is_kept_if_configured_but_not_by_metadata_only() -> None:
    keeping = Redactor(keep_raw=True)
    assert keeping.message(message("mail me a@b.io")).raw == "mail me a@b.io"
    assert keeping.message(message("hello")).raw == ""
    assert Redactor(keep_raw=True, mode="metadata_only").message(message("mail me a@b.io")).raw == ""


def test_redacting_a_message_twice_gives_the_same_text_as_once() -> None:
    for content in ("", "hello", "mail me a@b.io", TEXT):
        once = redactor.message(message(content))
        assert redactor.message(once).content == once.content


# --- the mode metadata_only ------------------------------------------------------------------------------------------


metadata_only = Redactor(mode="metadata_only")


def test_a_message_loses_its_content_and_keeps_its_length() -> None:
    clean = metadata_only.message(message("what is the capital of France?", metadata={"model": "gpt-4o", "n": 3}))
    assert (clean.content, clean.redacted, clean.raw, clean.length) == ("", True, "", 30)
    assert clean.metadata == {"model": "gpt-4o", "n": 3}
    assert metadata_only.message(message("")).redacted is False


@pytest.mark.parametrize("form", [str, str.upper, lambda key: f"gen_ai.{key}.0", lambda key: f"llm.{key}"])
def test_texts_under_a_content_key_are_dropped_at_any_depth_and_numbers_stay(form: Callable[[str], str]) -> None:
    for key in map(form, sorted(CONTENT_KEYS)):
        value = {"role": "user", "parts": ["words", 5, {"more": "words", "n": 2.5}], "ok": True}
        assert metadata_only.mapping({key: value, "outer": {key: "words", "size": 7}}) == {
            key: {"role": "", "parts": ["", 5, {"more": "", "n": 2.5}], "ok": True},
            "outer": {key: "", "size": 7},
        }


def test_texts_under_other_keys_stay_without_their_secrets() -> None:
    for key in ("prompt_tokens", "response_id", "content_length", "text_model", "region"):
        assert metadata_only.mapping({key: "eu-west-1", "mail": "a@b.io"}) == {key: "eu-west-1", "mail": EMAIL_REDACTED}


def test_errors_of_spans_and_sessions_are_dropped_as_content_and_other_fields_stay() -> None:
    redactions: RedactionCounts = {}
    attributes = {"prompt": "words", "step": 3}
    span = make_span(error="no such words", error_stack="at x", attributes=attributes, status="error")
    clean = metadata_only.span(span, redactions)
    assert (clean.error, clean.error_stack, clean.attributes) == ("", "", {"prompt": "", "step": 3})
    assert (clean.status, clean.name, clean.prompt_tokens) == ("error", span.name, span.prompt_tokens)
    assert redactions == {DROPPED: 3}
    assert metadata_only.session_end(SessionEnd(session_id="s", ended_ns=ENDED_NS, error="words")).error == ""


# --- records on which redaction fails --------------------------------------------------------------------------------


def too_deep() -> dict[str, Any]:
    """Return attributes that nest deeper than the recursion limit."""
    deep: Any = SECRET
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    return {"deep": deep, "note": SECRET}


def test_a_record_on_which_redaction_fails_loses_its_content_and_is_counted() -> None:
    redactions: RedactionCounts = {}
    span = redactor.span(make_span(attributes=too_deep(), error=SECRET, error_stack=SECRET, name=SECRET), redactions)
    assert (span.name, span.error, span.error_stack, span.attributes) == (REDACTED, REDACTED, REDACTED, {})
    assert span.prompt_tokens == 512
    started = redactor.started(Started(trace_id="t", span_id="s", name=SECRET, metadata=too_deep()), redactions)
    assert (started.name, started.caller, started.metadata) == (REDACTED, "", {})
    chat = redactor.message(message(SECRET, metadata=too_deep(), raw=SECRET), redactions)
    assert (chat.content, chat.redacted, chat.raw, chat.metadata) == (REDACTED, True, "", {})
    assert (
        redactor.annotation(Annotation(trace_id="t", span_id="s", attributes=too_deep()), redactions).attributes == {}
    )
    assert redactions[FAILED] == 4
