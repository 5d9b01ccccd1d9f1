"""Nothing that looks like a secret passes, and nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from make import make_span
from tokentrace.redact import DEFAULT_KEYS, EMAIL_REDACTED, PHONE_REDACTED, REDACTED, Redactor

SECRET = "hunter2"
redactor = Redactor()

# --- by key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", DEFAULT_KEYS)
@pytest.mark.parametrize("form", [str, str.upper, str.title, lambda key: f"user_{key}", lambda key: f"{key}.value"])
def test_a_value_under_a_sensitive_key_is_replaced_whole(key, form):
    assert redactor.value(form(key), SECRET) == REDACTED
    assert redactor.value(form(key), {"any": {"thing": 1}}) == REDACTED
    assert redactor.value(form(key), [SECRET, {"x": SECRET}]) == [REDACTED, REDACTED]


@pytest.mark.parametrize(
    "key",
    [
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
    ],
)
def test_a_key_is_known_in_any_case_and_with_any_separator(key):
    assert redactor.is_sensitive(key)
    assert redactor.value(key, SECRET) == REDACTED


@pytest.mark.parametrize(
    "key",
    [
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
    ],
)
def test_a_word_that_only_contains_a_sensitive_one_is_not_sensitive(key):
    assert not redactor.is_sensitive(key)
    assert redactor.value(key, "plain words") == "plain words"


@pytest.mark.parametrize("value", [5, 0.5, True, False, None, 0])
@pytest.mark.parametrize("key", ["email_count", "token_limit", "has_password", "password_age_days"])
def test_a_number_under_a_longer_key_is_a_measure_and_stays(key, value):
    assert redactor.value(key, value) is value


@pytest.mark.parametrize("key", ["phone", "ssn", "creditCard", "Credit-Card"])
def test_a_number_under_exactly_a_sensitive_key_is_a_secret(key):
    assert redactor.value(key, 5551234567) == REDACTED
    assert redactor.value(key, [5551234567]) == [REDACTED]


def test_a_secret_is_found_at_any_depth():
    deep: Any = {"password": SECRET, "note": "mail me a@b.io"}
    for _ in range(15):
        deep = [{"level": deep}]
    text = json.dumps(redactor.value("meta", deep))
    assert SECRET not in text
    assert "a@b.io" not in text
    assert REDACTED in text


def test_an_empty_text_is_no_secret():
    assert redactor.value("password", "") == ""


# --- inside text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("password: hunter2", "password: [REDACTED]"),
        ("password=hunter2", "password=[REDACTED]"),
        ("password = hunter2, user = bob", "password = [REDACTED], user = bob"),
        ("password=hunter2;user=bob", "password=[REDACTED];user=bob"),
        ("PASSWORD: hunter2", "PASSWORD: [REDACTED]"),
        ("db_password=hunter2", "db_password=[REDACTED]"),
        ("dbPassword=hunter2", "dbPassword=[REDACTED]"),
        ("api key: hunter2", "api key: [REDACTED]"),
        ("x-api-key: hunter2", "x-api-key: [REDACTED]"),
        ("apiKey=hunter2&x=1", "apiKey=[REDACTED]"),
        ("?token=hunter2", "?token=[REDACTED]"),
        ('{"password": "hunter2"}', '{"password": "[REDACTED]"}'),
        ('{"password":"hunter2 with \\" and spaces","a":1}', '{"password":"[REDACTED]","a":1}'),
        ("{'password': 'hunter2 and more'}", "{'password': '[REDACTED]'}"),
        ("Authorization: Bearer hunter2.hunter2", "Authorization: [REDACTED]"),
        ("authorization: basic aHVudGVyMg==", "authorization: [REDACTED]"),
        ('{"Authorization": "Bearer hunter2"}', '{"Authorization": "[REDACTED]"}'),
        ("password:\thunter2\nnext line", "password:\t[REDACTED]\nnext line"),
        ("mail me a@b.io", "mail me [EMAIL_REDACTED]"),
        ("<first.last+tag@mail.example.co.uk>", "<[EMAIL_REDACTED]>"),
        ("a@b.io,c@d.io", "[EMAIL_REDACTED],[EMAIL_REDACTED]"),
        ("call 555-123-4567 now", "call [PHONE_REDACTED] now"),
        ("call 555.123.4567.", "call [PHONE_REDACTED]."),
        ("call 5551234567", "call [PHONE_REDACTED]"),
        ("+1 555 123 4567", "+1 [PHONE_REDACTED]"),
        ("email: a@b.io", "email: [REDACTED]"),
    ],
)
def test_a_secret_is_replaced_where_it_stands(text, clean):
    assert redactor.text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        "max_tokens: 500",
        "tokens=5",
        "12:30:05",
        "https://example.com/a?b=c",
        "x = 1",
        "user@localhost",
        "a @ b.c",
        "1234567890123",
        "3.1415926535897",
        "version 1.2.3",
        "0.5551234567",
        "tokenizer: fast",
        "secretary: bob",
        "id=0af7651916cd43dd8448eb211c80319c",
        "2026-03-15T14:23:01.441Z",
        "$1,234,567,890",
    ],
)
def test_what_is_no_secret_stays_and_is_the_same_object(text):
    assert redactor.text(text) is text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('body: "{\\"password\\": \\"hunter2\\"}"', id="json in json"),
        pytest.param('{"user": "bob", "password": "hunter2', id="cut off inside a value"),
        pytest.param("{'password': 'hunter2", id="cut off inside a python value"),
        pytest.param("password: 'hunter2", id="a quote that never closes"),
        pytest.param('password="hunter2\n', id="a quote left open at the end of a line"),
        pytest.param("password=“hunter2”", id="typographic quotes"),
        pytest.param("password: b'hunter2'", id="python bytes"),
        pytest.param("password=hunter2}", id="brace"),
        pytest.param("Authorization: Token hunter2", id="another scheme"),
        pytest.param("Authorization: Digest hunter2", id="digest"),
        pytest.param("Authorization: ApiKey hunter2", id="apikey scheme"),
    ],
)
def test_a_secret_in_a_damaged_or_unusual_text_does_not_pass(text):
    assert SECRET not in redactor.text(text)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("phone: 555 123 4567", "4567"),
        ("credit_card: 4111 1111 1111 1111", "1111"),
        ("ssn = 123 45 6789", "6789"),
    ],
)
def test_a_number_written_in_groups_is_hidden_to_its_end(text, rest):
    assert rest not in redactor.text(text)


@pytest.mark.parametrize(
    "number", ["4111 1111 1111 1111", "4111-1111-1111-1111", "5500000000000004", "378282246310005"]
)
def test_a_card_number_is_known_by_its_check_digit(number):
    # SPEC H-44: value patterns for SSN and card numbers (Luhn) too.
    assert number not in redactor.text(f"charged {number} twice")


@pytest.mark.parametrize("number", ["4111 1111 1111 1112", "5500000000000005"])
def test_a_long_number_that_fails_the_check_is_no_card(number):
    assert number in redactor.text(f"order {number} twice")


def test_a_social_security_number_is_known_by_its_form():
    assert "6789" not in redactor.text("I am 123-45-6789, yes")


JSON_KEYS = st.sampled_from(["password", "api_key", "userToken", "X-Api-Key", "client secret"])


@given(JSON_KEYS, st.text(max_size=20).map(lambda text: text + SECRET), st.sampled_from([None, 2]), st.booleans())
def test_a_secret_in_json_text_does_not_pass_however_it_is_written(key, secret, indent, ascii_only):
    text = json.dumps({"a": 1, key: secret, "z": "end"}, indent=indent, ensure_ascii=ascii_only)
    clean = redactor.text(text)
    assert SECRET not in clean
    assert json.loads(clean) == {"a": 1, key: REDACTED, "z": "end"}


@given(JSON_KEYS, st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"], exclude_characters=",;\"'}"), min_size=1))
def test_a_secret_after_a_colon_or_an_equals_sign_does_not_pass(key, secret):
    secret += SECRET
    assert redactor.text(f"see {key}={secret}") == f"see {key}={REDACTED}"
    assert redactor.text(f"see {key}: {secret}, and more") == f"see {key}: {REDACTED}, and more"


local = st.text("abcXYZ019._%+-", min_size=1, max_size=20)
label = st.text("abcXYZ019", min_size=1, max_size=10)


@given(st.lists(local, min_size=1, max_size=3), st.lists(label, min_size=1, max_size=3), st.sampled_from(["io", "COM"]))
def test_no_address_passes(locals_, labels, tld):
    domain = ".".join([*labels, tld])
    text = " ".join(f"{one}@{domain}" for one in locals_)
    assert "@" not in Redactor(["email"], replace_keys=True).text(text)


fragments = st.lists(
    st.sampled_from(
        [
            "password",
            "token",
            "api",
            "-",
            "_",
            "key",
            "email",
            "phone",
            "ssn",
            ":",
            "=",
            " ",
            "  ",
            '"',
            "'",
            "\\",
            "{",
            "}",
            ",",
            ";",
            "\n",
            "a@b.io",
            "@",
            ".",
            "555",
            "123",
            "4567",
            "5551234567",
            "Bearer ",
            "basic",
            "authorization",
            "x",
            "Y",
            "[",
            "]",
            REDACTED,
            EMAIL_REDACTED,
            PHONE_REDACTED,
            "é",
            "١",
        ]
    ),
    max_size=14,
)


@settings(max_examples=1500, deadline=None)
@given(fragments)
@example(["5551234567", "5551234567"])
def test_redacting_twice_is_redacting_once(pieces):
    # It runs in the reporter and again in ingest.
    once = redactor.text("".join(pieces))
    assert redactor.text(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "a" * 32_768 + "@",
        "@" + "a." * 16_384,
        "a@" * 16_384,
        "a@a." * 8192,
        'password="' * 3276,
        "password='\\" * 2979,
        'token:"\\' * 4096,
        "password" + " " * 32_760,
        ("token" + " " * 50) * 600 + ":",
        "a_" * 16_384 + ":",
        "-" * 32_768 + "=",
        "555" * 10_922,
        "555-" * 8192,
        "bearer " * 4681 + "authorization:",
        "authorization: bearer" + " " * 32_000,
        "api-" * 8192 + "key",
        "x" * 32_768 + "password:",
    ],
    ids=range(17),
)
def test_a_hostile_text_is_read_in_a_number_of_steps_that_is_not_squared(text):
    # Without a clock: a quadratic pattern on 32 KiB would need minutes, not a test run.
    redactor.text(text)


# --- configuration ---------------------------------------------------------------------------------------------------


def test_more_keys_extend_the_default_ones():
    more = Redactor(["badge-number"])
    assert more.value("badgeNumber", "x") == REDACTED
    assert more.text("badge_number: 7") == f"badge_number: {REDACTED}"
    assert more.value("password", "x") == REDACTED


def test_other_keys_may_replace_the_default_ones():
    other = Redactor(["badge"], replace_keys=True)
    assert other.value("badge", "x") == REDACTED
    assert other.value("password", "x") == "x"
    assert other.text("password: x, a@b.io, 555-123-4567") == "password: x, a@b.io, 555-123-4567"


def test_addresses_and_numbers_are_found_only_while_their_key_is_active():
    assert Redactor(["email"], replace_keys=True).text("a@b.io 555-123-4567") == "[EMAIL_REDACTED] 555-123-4567"
    assert Redactor(["phone"], replace_keys=True).text("a@b.io 555-123-4567") == "a@b.io [PHONE_REDACTED]"


@pytest.mark.parametrize("key", ["a.b", "a+b", "(a", "a|b", "[a]", "a\\b", "a*", "^a$"])
def test_a_key_is_text_and_no_pattern(key):
    # SPEC H-43: the original forgot to escape them.
    special = Redactor([key], replace_keys=True)
    assert special.value(key, "x") == REDACTED
    assert special.text("zzz: x") == "zzz: x"


@pytest.mark.parametrize("key", ["пароль", "密码", "contraseña"])
def test_a_key_may_be_in_any_script(key):
    special = Redactor([key])
    assert special.value(key, SECRET) == REDACTED
    assert SECRET not in special.text(f"{key}: {SECRET}")


@pytest.mark.parametrize("keys", [[], [""], ["--"], ["", "__"]])
def test_a_key_without_letters_hides_nothing(keys):
    odd = Redactor(keys, replace_keys=True)
    assert odd.value("anything", "x") == "x"
    assert odd.text("anything: x = y") == "anything: x = y"


def test_redaction_can_be_switched_off_altogether():
    off = Redactor(mode="off")
    span = make_span(attributes={"password": SECRET, "n": {"token": "x"}}, error="password: hunter2")
    assert off.span(span) is span
    assert off.text("password: hunter2") == "password: hunter2"
    assert off.value("password", SECRET) == SECRET


# --- a span ----------------------------------------------------------------------------------------------------------


def test_attributes_the_error_and_the_stack_of_a_span_are_cleaned():
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


def test_a_span_without_secrets_is_the_same_object():
    span = make_span(attributes={"a": 1, "b": ["x", {"c": None}], "d": {}}, error="timed out", error_stack="at x:5")
    assert redactor.span(span) is span
    assert redactor.span(redactor.span(make_span(error="password: x"))).error == f"password: {REDACTED}"


def test_numbers_and_names_of_a_span_are_left_alone():
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
def test_a_clean_span_stays_itself_and_the_original_is_never_changed(attributes):
    before = json.dumps(attributes)
    span = make_span(attributes=attributes)
    clean = redactor.span(span)
    assert json.dumps(attributes) == before
    assert redactor.span(clean) is clean
    assert (clean is span) is (json.dumps(clean.attributes) == before)


def test_what_is_remembered_about_keys_and_texts_is_bounded():
    fresh = Redactor()
    for number in range(25_000):
        assert not fresh.is_sensitive(f"k{number}")
        assert fresh.text(f"text {number}") == f"text {number}"
    held = [each for owner in (fresh, fresh._keys) for each in vars(owner).values() if isinstance(each, (dict, set))]
    assert sum(len(each) for each in held) > 100
    assert max(len(each) for each in held) <= 10_001
