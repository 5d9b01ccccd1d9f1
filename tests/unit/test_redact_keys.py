"""Which keys are sensitive, in any case and with any separator, and which values under them are replaced."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.records import Started
from tokentrace.redact import (
    DEFAULT_KEYS,
    REDACTED,
    Redactor,
)

SECRET = "hunter2"


redactor = Redactor()


SENSITIVE = [
    "apiKey",
    "APIKey",
    "API_KEY",
    "api key",
    "x.api.key",
    "openai-api-key",
    "openaiApiKey",
    "X-API-Key",
    "myAPIKey",
    "dbPassword",
    "db_password",
    "DB-PASSWORD",
    "accessToken",
    "auth_token",
    "clientSecret",
    "client_secret_value",
    "creditCard",
    "credit card",
    "credit-card",
    "CREDIT_CARD",
    "creditcard",
    "userSSN",
    "Proxy-Authorization",
    "eMail",
    "user.email",
    "phone_1",
    "userEmail",
    "user_password",
    "x-api-key",
    "openai_api_key",
    "authorizationHeader",
    "http.request.header.authorization.0",
    "phone_number",
    "phoneNumber",
    "email_address",
    "passwordConfirmation",
    "password_hash",
    "secret_access_key",
    "aws_secret_access_key",
    "token_value",
    "credit_card_number",
    "ssn_no",
    "home.phone",
]


NOT_SENSITIVE = [
    "max_tokens",
    "maxTokens",
    "tokenizer",
    "secretary",
    "passwordless",
    "emailer",
    "telephone",
    "phonetic",
    "key",
    "api",
    "card",
    "credit",
    "tokens_in",
    "total_tokens",
    "",
    "_",
    "request_id",
    "session",
    "password_reset",
    "api_key_id",
    "phone_model",
    "authorization_mode",
    "token_count",
    "token_type",
    "token_limit",
    "email_verified",
    "email_count",
    "emailSubject",
    "secret_name",
    "secretVersion",
    "password_age_days",
    "credit_card_brand",
    "ssn_country",
]


@pytest.mark.parametrize("form", [str, str.upper, str.title, lambda key: f"user_{key}", lambda key: f"{key}.value"])
def test_texts_maps_and_items_of_lists_under_a_default_key_are_replaced(form: Callable[[str], str]) -> None:
    for key in DEFAULT_KEYS:
        assert redactor.value(form(key), SECRET) == REDACTED, key
        assert redactor.value(form(key), {"any": {"thing": 1}}) == REDACTED, key
        assert redactor.value(form(key), [SECRET, {"x": SECRET}]) == [REDACTED, REDACTED], key


def test_a_sensitive_key_matches_in_any_case_and_with_any_separator() -> None:
    assert [key for key in SENSITIVE if not redactor.is_sensitive(key)] == []
    assert [key for key in SENSITIVE if redactor.value(key, SECRET) != REDACTED] == []


def test_longer_words_and_parts_of_a_sensitive_key_are_not_sensitive() -> None:
    assert [key for key in NOT_SENSITIVE if redactor.is_sensitive(key)] == []
    assert [key for key in NOT_SENSITIVE if redactor.value(key, "plain words") != "plain words"] == []


@pytest.mark.parametrize("key", ["email_count", "token_limit", "has_password", "password_age_days"])
def test_a_number_or_bool_under_a_longer_key_stays(key: str) -> None:
    for value in (5, 0.5, True, False, None, 0):
        assert redactor.value(key, value) is value


def test_a_number_under_exactly_a_sensitive_key_is_replaced() -> None:
    for key in ("phone", "ssn", "creditCard", "Credit-Card"):
        assert redactor.value(key, 5551234567) == REDACTED, key
        assert redactor.value(key, [5551234567]) == [REDACTED], key


def test_a_secret_is_removed_at_any_depth() -> None:
    deep: Any = {"password": SECRET, "note": "mail me a@b.io"}
    for _ in range(15):
        deep = [{"level": deep}]
    text = json.dumps(redactor.value("meta", deep))
    assert SECRET not in text
    assert "a@b.io" not in text
    assert REDACTED in text


def test_an_empty_text_under_a_sensitive_key_stays() -> None:
    assert redactor.value("password", "") == ""


# --- configured keys ------------------------------------------------------------------------------------------------


def test_configured_keys_extend_the_default_keys() -> None:
    more = Redactor(["badge-number"])
    assert more.value("badgeNumber", "x") == REDACTED
    assert more.text("badge_number: 7") == f"badge_number: {REDACTED}"
    assert more.value("password", "x") == REDACTED


def test_configured_keys_can_replace_the_default_keys_and_forms_are_still_recognised() -> None:
    other = Redactor(["badge"], replace_keys=True)
    assert other.value("badge", "x") == REDACTED
    assert other.value("password", "x") == "x"
    assert other.text("password: x, a@b.io, 555-123-4567") == "password: x, [EMAIL_REDACTED], [PHONE_REDACTED]"
    assert other.text("token sk-proj-a1B2c3D4e5F6g7H8i9J0") == "token [API_KEY_REDACTED]"


def test_without_patterns_only_keys_count() -> None:
    plain = Redactor(patterns=False)
    assert plain.text("password: x, a@b.io, 555-123-4567") == f"password: {REDACTED}, a@b.io, 555-123-4567"
    assert plain.value("password", "x") == REDACTED
    assert plain.value("note", "sk-proj-a1B2c3D4e5F6g7H8i9J0") == "sk-proj-a1B2c3D4e5F6g7H8i9J0"


def test_a_configured_key_is_matched_literally_and_not_as_a_pattern() -> None:
    for key in ("a.b", "a+b", "(a", "a|b", "[a]", "a\\b", "a*", "^a$"):
        special = Redactor([key], replace_keys=True)
        assert special.value(key, "x") == REDACTED, key
        assert special.text("zzz: x") == "zzz: x", key


def test_a_configured_key_may_have_letters_outside_ascii() -> None:
    for key in ("пароль", "密码", "contraseña"):
        special = Redactor([key])
        assert special.value(key, SECRET) == REDACTED, key
        assert SECRET not in special.text(f"{key}: {SECRET}"), key


def test_no_configured_keys_or_keys_without_letters_hide_nothing() -> None:
    for keys in ([], [""], ["--"], ["", "__"]):
        odd = Redactor(keys, replace_keys=True)
        assert odd.value("anything", "x") == "x"
        assert odd.text("anything: x = y") == "anything: x = y"


def test_the_mode_off_changes_nothing() -> None:
    off = Redactor(mode="off")
    span = make_span(attributes={"password": SECRET, "n": {"token": "x"}}, error="password: hunter2")
    assert off.span(span) is span
    assert off.text("password: hunter2") == "password: hunter2"
    assert off.value("password", SECRET) == SECRET


# --- ids ------------------------------------------------------------------------------------------------------------

IDS = [
    "user_id",
    "userId",
    "userIds",
    "session_id",
    "request_id",
    "X-Request-ID",
    "traceid",
    "order_id",
    "customer.id",
    "id",
    "account_ids",
    "device_uuid",
    "user_id_1",
    "api_key_id",
]
NO_IDS = ["email_id", "phoneId", "creditCardId", "paid", "valid", "identity", "idea", "user", "grid", "id_number"]


def test_an_id_that_looks_like_an_address_or_a_phone_number_stays() -> None:
    for key in IDS:
        for value in ("alice@x.io", "4155551234", "+14155551234", "5500000000000004", ["bob@x.io", "4155551234"]):
            assert redactor.value(key, value) == value, (key, value)
        assert redactor.value(key, 4155551234) == 4155551234
    span = make_span(attributes={"user_id": "alice@x.io", "request_id": "4155551234"}, user_id="alice@x.io")
    assert redactor.span(span) is span


def test_other_keys_do_not_keep_addresses_and_phone_numbers() -> None:
    for key in NO_IDS:
        assert redactor.value(key, "alice@x.io") == "[EMAIL_REDACTED]", key
        assert redactor.value(key, "4155551234") == "[PHONE_REDACTED]", key


def test_a_key_of_a_vendor_or_a_card_in_groups_is_removed_although_the_key_says_id() -> None:
    assert redactor.value("api_key_id", "AKIAQ4ZX7KD9MRT2WPLN") == "[API_KEY_REDACTED]"
    assert redactor.value("user_id", "4111 1111 1111 1111") == "[CARD_REDACTED]"
    assert redactor.value("user_id", "123-45-6789") == "[SSN_REDACTED]"


@pytest.mark.parametrize(
    "form", ["order_id: {}", '{{"orderId": "{}"}}', '{{\\"order_id\\":\\"{}\\"}}', "id={}", "ORDER_IDS = {}"]
)
def test_a_bare_number_in_a_text_stays_if_its_key_says_id(form: str) -> None:
    assert redactor.text(form.format("4155551234")) == form.format("4155551234")
    assert redactor.text(form.format("415-555-1234")) == form.format("[PHONE_REDACTED]")


def test_a_bare_number_after_a_word_that_only_ends_in_id_is_removed() -> None:
    for text in ("paid: 4155551234", "valid=4155551234", "did: 4155551234"):
        assert "4155551234" not in redactor.text(text)


# --- hashed ids -----------------------------------------------------------------------------------------------------

KEY = "a key of sixteen or more"
hashing = Redactor(id_key=KEY)


def expected_hash(text: str) -> str:
    return "h_" + hmac.digest(KEY.encode(), text.encode(), "sha256").hex()[:32]


def test_hash_ids_replaces_user_ids_and_ids_in_attributes_by_a_stable_keyed_hash() -> None:
    written = {"user_id": "alice@x.io", "orderId": 17, "deep": {"customer_ids": ["a", "b"]}, "request_id": "r@x.io"}
    span = make_span(user_id="alice@x.io", session_id="s@x.io", attributes=written)
    redactions: dict[str, int] = {}
    clean = hashing.span(span, redactions)
    assert clean.user_id == clean.attributes["user_id"] == hashing.user_id("alice@x.io") == expected_hash("alice@x.io")
    assert clean.attributes["orderId"] == expected_hash("17")
    assert clean.attributes["deep"] == {"customer_ids": [expected_hash("a"), expected_hash("b")]}
    # Ids of records and requests stay, because records are found by them.
    assert (clean.session_id, clean.trace_id, clean.attributes["request_id"]) == ("s@x.io", span.trace_id, "r@x.io")
    assert redactions == {"id": 5}
    started = hashing.started(Started(trace_id="t", span_id="s", user_id="alice@x.io", metadata={"userId": "bob"}))
    assert (started.user_id, started.metadata) == (expected_hash("alice@x.io"), {"userId": expected_hash("bob")})


@given(st.text(max_size=30))
def test_hashing_an_id_twice_gives_the_same_as_hashing_it_once(user_id: str) -> None:
    once = hashing.span(make_span(user_id=user_id, attributes={"user_id": user_id}))
    assert hashing.span(once) == once
    assert Redactor(id_key="another key of sixteen").user_id(user_id) != expected_hash(user_id)
    assert Redactor(id_key=KEY, mode="off").user_id(user_id) == user_id
