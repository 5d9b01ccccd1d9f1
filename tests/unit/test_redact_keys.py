"""Which keys are sensitive, in any case and with any separator, and which values under them are replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kit.builders import make_span
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


def test_configured_keys_can_replace_the_default_keys() -> None:
    other = Redactor(["badge"], replace_keys=True)
    assert other.value("badge", "x") == REDACTED
    assert other.value("password", "x") == "x"
    assert other.text("password: x, a@b.io, 555-123-4567") == "password: x, a@b.io, 555-123-4567"


def test_addresses_and_phone_numbers_are_removed_only_if_their_key_is_sensitive() -> None:
    assert Redactor(["email"], replace_keys=True).text("a@b.io 555-123-4567") == "[EMAIL_REDACTED] 555-123-4567"
    assert Redactor(["phone"], replace_keys=True).text("a@b.io 555-123-4567") == "a@b.io [PHONE_REDACTED]"


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
