"""Nothing that looks like a secret passes, and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_span
from kit.canaries import KINDS, canary
from tokentrace.records import Annotation, ChatMessage, SessionEnd, Started, check_span
from tokentrace.redact import (
    API_KEY_REDACTED,
    CONTENT_KEYS,
    CREDENTIALS_REDACTED,
    DEFAULT_KEYS,
    DROPPED,
    EMAIL_REDACTED,
    FAILED,
    JWT_REDACTED,
    KEY_REDACTED,
    PHONE_REDACTED,
    REDACTED,
    TOKEN_REDACTED,
    RedactionCounts,
    Redactor,
)

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


# --- vendors' keys and tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "around", ["{}", "before {} after", "({})", "x={}", '{{"note": "{}"}}', "\n{}\n", "a/{}", "-{}.", "é{}", "_{}"]
)
def test_a_secret_of_a_known_form_does_not_pass_wherever_it_stands(kind, around):
    text, needle = canary(kind, around)
    found: RedactionCounts = {}
    clean = redactor.text(around.format(text), found)
    assert needle not in clean
    assert "REDACTED]" in clean
    assert sum(found.values()) >= 1
    assert redactor.text(clean) == clean


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_known_in_a_long_text_and_the_text_around_it_stays(kind):
    text, needle = canary(kind, "long")
    before, after = "Some words go first. " * 200, "\nSome words follow. " * 200
    clean = redactor.text(before + text + after)
    assert needle not in clean
    assert clean.startswith(before)
    # One that is cut off has no end.
    assert clean.endswith(after) or kind == "private key cut off"


@pytest.mark.parametrize(
    ("kind", "shown", "counted"),
    [
        ("openai", API_KEY_REDACTED, "api_key"),
        ("aws id", API_KEY_REDACTED, "api_key"),
        ("aws secret", f"aws_secret_access_key = {API_KEY_REDACTED}", "api_key"),
        ("jwt", JWT_REDACTED, "jwt"),
        ("bearer", f"curl -H 'X: Bearer {TOKEN_REDACTED}'", "bearer"),
        ("basic", f"sent Basic {TOKEN_REDACTED} along", "basic"),
        ("private key", KEY_REDACTED, "private_key"),
        ("url", f"postgres://{CREDENTIALS_REDACTED}@db.example.com:5432/shop", "url_credentials"),
        ("email", f"mail {EMAIL_REDACTED} today", "email"),
        ("phone", f"call {PHONE_REDACTED} now", "phone"),
        ("ssn", "call [SSN_REDACTED] now", "ssn"),
        ("card", "charged [CARD_REDACTED] twice", "card"),
        ("password", f"login failed: password={REDACTED}", "key_value"),
    ],
)
def test_what_stands_in_says_what_was_there_and_it_is_counted_once(kind, shown, counted):
    found: RedactionCounts = {}
    assert redactor.text(canary(kind, "shown").text, found) == shown
    assert found == {counted: 1}


def test_every_secret_of_a_text_is_counted_by_kind():
    found: RedactionCounts = {}
    keys = " ".join(canary("github", str(number)).text for number in range(5))
    redactor.text(f"{keys}, a@b.io and c@d.io, password: hunter2", found)
    assert found == {"api_key": 5, "email": 2, "key_value": 1}
    redactor.text("nothing here", found)
    assert sum(found.values()) == 8


def test_what_is_redacted_already_is_not_counted_again():
    for kind in KINDS:
        clean = redactor.text(canary(kind, "twice").text)
        found: RedactionCounts = {}
        redactor.text(clean, found)
        assert found == {}, clean


@pytest.mark.parametrize(
    "text",
    [
        "gpt-4o-2024-05-13",
        "claude-3-5-sonnet-20241022",
        "text-embedding-3-large",
        "meta-llama/Llama-3.1-405B-Instruct",
        "anthropic.claude-3-haiku-20240307-v1:0",
        "ft:gpt-4o-mini-2024-07-18:acme:custom-model:9xXyZ123",
        "sk-learn-pipeline-version-2-final-model",
        "task-queue-of-the-second-region-number-42",
        "risk-assessment-2024-quarterly-report-v3",
        "/var/log/app/2024-05-13/request_1715600000.log:214",
        'File "/usr/lib/python3.11/asyncio/base_events.py", line 653, in run_until_complete',
        "s3://bucket-name/path/to/some/long/object/key/part-00001-of-00042.parquet",
        "https://example.com:8443/v1/chat/completions?stream=true&n=1",
        "https://medium.com/@someone/an-article-about-things-1234567",
        "ssh://git@localhost/acme/repository.git",
        "1773584581",
        "created 1773584581441 ended 1773584582681000000",
        "2026-03-15T14:23:01.441Z",
        "20260315142301",
        "prompt_tokens=512 completion_tokens=128 total_tokens=640",
        "cost_usd: 0.000123456789",
        "req-5551234567",
        "bearer authentication failed",
        "the bearer of bad news",
        "Basic understanding of networks",
        "basic auth is not supported",
        "a secret access to the key room",
        "skeleton key-value store",
        "AKIA is a prefix, and so is ghp_ or xoxb-",
        "-----BEGIN CERTIFICATE-----",
        "eyJ is how JSON begins in base64",
        "@dataclass\nclass Thing:\n    value: int = 3",
        "user@localhost and root@127.0.0.1",
        "matrix[3:7] == matrix[:, 1:4]",
        "192.168.100.200:8080",
        "v1.2.3-rc.4+build.5678",
        "0x7ffd5e8c1a90",
        "arn:aws:iam::123456789012:role/service-role",
        "AccountsReceivableManagerFactoryBean",
    ],
)
def test_what_only_looks_a_little_like_a_secret_stays(text):
    assert redactor.text(text) is text


@given(st.uuids(), st.binary(max_size=8), st.integers(946_684_800, 1_999_999_999), st.sampled_from(["{}", "id {} ok"]))
def test_ids_digests_and_instants_stay(identity, data, seconds, around):
    digest = hashlib.sha256(data).hexdigest()
    times = [seconds, seconds * 1000 + 441, seconds * 1_000_000_000]
    ids = [str(identity), identity.hex, digest, digest[:32], digest[:16], f"{identity}:{seconds}"]
    for text in [*ids, *map(str, times)]:
        shown = around.format(text)
        assert redactor.text(shown) == shown


_WORDS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=12)


@given(st.lists(_WORDS, min_size=1, max_size=12), st.sampled_from([" ", "-", "_", "/", ".", ", "]))
def test_words_stay_however_they_are_joined(parts, joint):
    text = joint.join(parts)
    assert redactor.text(text) == text


MB = 1 << 20


@pytest.mark.parametrize(
    "piece",
    [
        "a@", "@a.", "a@a.", "@b.io ", "-a@b.io", 'password="', "password='\\", "token" + " " * 50, "a_", "555", "555-",
        "bearer ", "bearer=", "api-", "token", "sk-", "sk-abcdef", "eyJ", "eyJaaaaaaaaa.", "eyJaaaaaaaaa ",
        "-----BEGIN PRIVATE KEY-----", "-----BEGIN A ", "-----END ", "://", "://a:b@", "://" + "u:" * 100, "basic ",
        "basic AAAAAAA ", "SG.aaaaaaaaaaaaaaaaaaaaaa", "ghp_", "AKIA", "xoxb-", "secret_access_key",
        "secret_key=======",
        "+1", "(555) ", "1 ", "4111 ", "key-0", ":", "token=", "\"'", "\u0307\u0131", "dapi0", "whsec_", "phone=1 (",
        "token: bearer ", "token=b", "email: a@b.io, ", "é", "A", "-", "\\", "-----", "=", "word ",
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "@", "token:", '"', "PRIVATE KEY"])
def test_a_hostile_text_is_read_in_a_number_of_steps_that_is_not_squared(piece, end):
    # Without a clock: a pattern that reads a megabyte again for each of its characters would not end today.
    redactor.text(piece * (MB // 4 // len(piece)) + end)


@pytest.mark.parametrize(
    "text",
    [
        "password=" + "\\" * (MB // 2) + '"' + "\\" * (MB // 2),
        "authorization: bearer" + " " * MB,
        "basic " + "A" * MB,
        "-----BEGIN PRIVATE KEY-----" + "-----END " * (MB // 9),
        "phone=" + "1 " * (MB // 2) + "x",
        "://" + "u" * MB + "@",
        "a" * MB + "@" + "a." * (MB // 2),
        "sk-" + "-" * MB,
    ],
    ids=range(8),
)
def test_a_text_of_a_megabyte_made_to_be_slow_is_read_all_the_same(text):
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


def test_a_text_of_which_it_is_known_that_it_is_clean_never_holds_a_secret():
    fresh = Redactor()
    for kind in KINDS:
        text, needle = canary(kind, "memory")
        fresh.text(text)
        assert not any(needle in known for known in fresh._clean)


# --- every record ----------------------------------------------------------------------------------------------------

SECRETS = {kind: canary(kind, "record") for kind in KINDS}
TEXT = "\n".join(secret.text for kind, secret in SECRETS.items() if kind != "private key cut off")


def no_secret_in(record: Any) -> None:
    shown = repr(record)
    assert [kind for kind, secret in SECRETS.items() if secret.needle in shown] == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_a_span_that_is_text_keeps_a_secret(kind):
    text, needle = SECRETS[kind]
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
    found: RedactionCounts = {}
    clean = redactor.span(span, found)
    assert needle not in repr(clean)
    assert sum(found.values()) >= 10
    assert list((clean.usage or {}).values()) == [3]
    check_span(clean)
    assert redactor.span(clean) is clean


def test_ids_of_a_span_stay_whatever_they_look_like():
    span = make_span(trace_id="a@b.io", span_id="555-123-4567", session_id="c@d.io", user_id="jane@example.com")
    assert redactor.span(span) is span


def test_two_addresses_as_keys_stay_two_entries():
    clean = redactor.mapping({"a@b.io": 1, "c@d.io": 2, EMAIL_REDACTED: 3})
    assert sorted(clean.values()) == [1, 2, 3]
    assert all("@" not in key for key in clean)


@given(st.integers(1, 30), st.sampled_from(["name", "caller", "model", "provider"]))
def test_a_name_stays_within_its_bounds_when_what_stands_in_is_longer(count, field):
    span = make_span(**{field: "a@b.io " * count})
    check_span(redactor.span(span))
    assert len(getattr(redactor.span(span), field)) <= 256


def test_a_value_and_a_key_stay_within_their_bounds_when_what_stands_in_is_longer():
    span = make_span(attributes={"x": "a@b.io " * 4600, "a@b.io," * 36: "é a@b.io" * 3600}, error="a@b.io " * 4600)
    check_span(span)
    check_span(redactor.span(span))
    assert len(redactor.span(span).error) <= 32 * 1024


def test_the_other_records_of_a_batch_are_cleaned_like_spans():
    metadata = {"password": SECRET, "x": TEXT}
    clean = redactor.started(Started(trace_id="t", span_id="s", name="a@b.io", caller="c@d.io", metadata=metadata))
    assert (clean.name, clean.caller, clean.metadata["password"]) == (EMAIL_REDACTED, EMAIL_REDACTED, REDACTED)
    no_secret_in(clean)
    no_secret_in(redactor.annotation(Annotation(trace_id="t", span_id="s", attributes={"x": {"y": [TEXT]}})))
    no_secret_in(redactor.session_end(SessionEnd(session_id="s", ended_ns=ENDED_NS, error=TEXT)))
    no_secret_in(redactor.message(ChatMessage(message_id="m", session_id="s", content=TEXT, metadata={"x": TEXT})))


# --- messages (SPEC E.9, H-44, row 139) ------------------------------------------------------------------------------


def message(content: str, **fields: Any) -> ChatMessage:
    return ChatMessage(message_id="m", session_id="s", content=content, **fields)


def test_a_message_says_whether_something_was_taken_out_and_how_long_it_was():
    clean = redactor.message(message("mail me a@b.io"))
    assert (clean.content, clean.redacted, clean.raw, clean.length) == ("mail me [EMAIL_REDACTED]", True, "", 14)
    plain = redactor.message(message("hello"))
    assert (plain.content, plain.redacted, plain.raw, plain.length) == ("hello", False, "", 5)


def test_what_the_sender_claims_about_redaction_counts_for_nothing():
    clean = redactor.message(message("hello", redacted=True, raw="a@b.io", length=99))
    assert (clean.redacted, clean.raw, clean.length) == (False, "", 5)
    off = Redactor(mode="off").message(message("a@b.io", redacted=True, raw="x", length=99))
    assert (off.content, off.redacted, off.raw, off.length) == ("a@b.io", False, "", 6)


def test_the_original_of_a_message_is_kept_only_where_the_operator_says_so():
    keeping = Redactor(keep_raw=True)
    assert keeping.message(message("mail me a@b.io")).raw == "mail me a@b.io"
    assert keeping.message(message("hello")).raw == ""
    assert Redactor(keep_raw=True, mode="metadata_only").message(message("mail me a@b.io")).raw == ""


@pytest.mark.parametrize("content", ["", "hello", "mail me a@b.io", TEXT])
def test_a_message_that_is_cleaned_twice_keeps_its_text(content):
    once = redactor.message(message(content))
    assert redactor.message(once).content == once.content


# --- content that is dropped -----------------------------------------------------------------------------------------

counting = Redactor(mode="metadata_only")


def test_only_counts_are_kept_of_a_message():
    clean = counting.message(message("what is the capital of France?", metadata={"model": "gpt-4o", "n": 3}))
    assert (clean.content, clean.redacted, clean.raw, clean.length) == ("", True, "", 30)
    assert clean.metadata == {"model": "gpt-4o", "n": 3}
    assert counting.message(message("")).redacted is False


@pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
@pytest.mark.parametrize("form", [str, str.upper, lambda key: f"gen_ai.{key}.0", lambda key: f"llm.{key}"])
def test_texts_under_a_name_of_content_are_dropped_at_any_depth_and_numbers_stay(key, form):
    value = {"role": "user", "parts": ["words", 5, {"more": "words", "n": 2.5}], "ok": True}
    clean = counting.mapping({form(key): value, "outer": {form(key): "words", "size": 7}})
    assert clean == {
        form(key): {"role": "", "parts": ["", 5, {"more": "", "n": 2.5}], "ok": True},
        "outer": {form(key): "", "size": 7},
    }


@pytest.mark.parametrize("key", ["prompt_tokens", "response_id", "content_length", "text_model", "region"])
def test_texts_under_other_names_stay_without_their_secrets(key):
    assert counting.mapping({key: "eu-west-1", "mail": "a@b.io"}) == {key: "eu-west-1", "mail": EMAIL_REDACTED}


def test_errors_are_content_too_and_the_rest_of_a_span_stays():
    found: RedactionCounts = {}
    attributes = {"prompt": "words", "step": 3}
    span = make_span(error="no such words", error_stack="at x", attributes=attributes, status="error")
    clean = counting.span(span, found)
    assert (clean.error, clean.error_stack, clean.attributes) == ("", "", {"prompt": "", "step": 3})
    assert (clean.status, clean.name, clean.prompt_tokens) == ("error", span.name, span.prompt_tokens)
    assert found == {DROPPED: 3}
    assert counting.session_end(SessionEnd(session_id="s", ended_ns=ENDED_NS, error="words")).error == ""


# --- failing closed --------------------------------------------------------------------------------------------------


def bottomless() -> dict[str, Any]:
    """Deeper than any recursion goes."""
    deep: Any = SECRET
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    return {"deep": deep, "note": SECRET}


def test_what_nobody_can_look_at_loses_its_content_and_is_counted():
    found: RedactionCounts = {}
    span = redactor.span(make_span(attributes=bottomless(), error=SECRET, error_stack=SECRET, name=SECRET), found)
    assert (span.name, span.error, span.error_stack, span.attributes) == (REDACTED, REDACTED, REDACTED, {})
    assert span.prompt_tokens == 512
    started = redactor.started(Started(trace_id="t", span_id="s", name=SECRET, metadata=bottomless()), found)
    assert (started.name, started.caller, started.metadata) == (REDACTED, "", {})
    said = redactor.message(message(SECRET, metadata=bottomless(), raw=SECRET), found)
    assert (said.content, said.redacted, said.raw, said.metadata) == (REDACTED, True, "", {})
    assert redactor.annotation(Annotation(trace_id="t", span_id="s", attributes=bottomless()), found).attributes == {}
    assert found[FAILED] == 4
