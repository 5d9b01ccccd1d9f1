"""Secrets inside texts are removed, and texts without secrets stay as they are."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from tokentrace.redact import (
    EMAIL_REDACTED,
    PHONE_REDACTED,
    REDACTED,
    Redactor,
)

SECRET = "hunter2"


redactor = Redactor()


#: Text -> the text after redaction.
REPLACED = {
    "password: hunter2": "password: [REDACTED]",
    "password=hunter2": "password=[REDACTED]",
    "password = hunter2, user = bob": "password = [REDACTED], user = bob",
    "password=hunter2;user=bob": "password=[REDACTED];user=bob",
    "PASSWORD: hunter2": "PASSWORD: [REDACTED]",
    "db_password=hunter2": "db_password=[REDACTED]",
    "dbPassword=hunter2": "dbPassword=[REDACTED]",
    "api key: hunter2": "api key: [REDACTED]",
    "x-api-key: hunter2": "x-api-key: [REDACTED]",
    "apiKey=hunter2&x=1": "apiKey=[REDACTED]",
    "?token=hunter2": "?token=[REDACTED]",
    '{"password": "hunter2"}': '{"password": "[REDACTED]"}',
    '{"password":"hunter2 with \\" and spaces","a":1}': '{"password":"[REDACTED]","a":1}',
    "{'password': 'hunter2 and more'}": "{'password': '[REDACTED]'}",
    "Authorization: Bearer hunter2.hunter2": "Authorization: [REDACTED]",
    "authorization: basic aHVudGVyMg==": "authorization: [REDACTED]",
    '{"Authorization": "Bearer hunter2"}': '{"Authorization": "[REDACTED]"}',
    "password:\thunter2\nnext line": "password:\t[REDACTED]\nnext line",
    "mail me a@b.io": "mail me [EMAIL_REDACTED]",
    "<first.last+tag@mail.example.co.uk>": "<[EMAIL_REDACTED]>",
    "a@b.io,c@d.io": "[EMAIL_REDACTED],[EMAIL_REDACTED]",
    "call 555-123-4567 now": "call [PHONE_REDACTED] now",
    "call 555.123.4567.": "call [PHONE_REDACTED].",
    "call 5551234567": "call [PHONE_REDACTED]",
    "+1 555 123 4567": "+1 [PHONE_REDACTED]",
    "email: a@b.io": "email: [REDACTED]",
}


UNCHANGED = [
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
]


#: Texts without a secret that resemble one.
SIMILAR = [
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
]


DAMAGED_OR_UNUSUAL = {
    "json in json": 'body: "{\\"password\\": \\"hunter2\\"}"',
    "cut off inside a value": '{"user": "bob", "password": "hunter2',
    "cut off inside a python value": "{'password': 'hunter2",
    "a quote that never closes": "password: 'hunter2",
    "a quote left open at the end of a line": 'password="hunter2\n',
    "typographic quotes": "password=“hunter2”",
    "python bytes": "password: b'hunter2'",
    "brace": "password=hunter2}",
    "another scheme": "Authorization: Token hunter2",
    "digest": "Authorization: Digest hunter2",
    "apikey scheme": "Authorization: ApiKey hunter2",
}


def test_the_secret_in_a_text_is_replaced() -> None:
    assert {text: redactor.text(text) for text in REPLACED} == REPLACED


def test_a_text_without_a_secret_is_returned_as_the_same_object() -> None:
    assert [text for text in [*UNCHANGED, *SIMILAR] if redactor.text(text) is not text] == []


def test_a_secret_in_a_damaged_or_unusual_text_is_removed() -> None:
    assert [name for name, text in DAMAGED_OR_UNUSUAL.items() if SECRET in redactor.text(text)] == []


def test_a_number_in_groups_is_removed_to_its_end() -> None:
    for text, rest in (
        ("phone: 555 123 4567", "4567"),
        ("credit_card: 4111 1111 1111 1111", "1111"),
        ("ssn = 123 45 6789", "6789"),
    ):
        assert rest not in redactor.text(text)


def test_a_card_number_is_recognised_by_its_check_digit() -> None:
    for number in ("4111 1111 1111 1111", "4111-1111-1111-1111", "5500000000000004", "378282246310005"):
        assert number not in redactor.text(f"charged {number} twice")


def test_a_long_number_that_fails_the_check_is_no_card() -> None:
    for number in ("4111 1111 1111 1112", "5500000000000005"):
        assert number in redactor.text(f"order {number} twice")


def test_a_social_security_number_is_recognised_by_its_form() -> None:
    assert "6789" not in redactor.text("I am 123-45-6789, yes")


JSON_KEYS = st.sampled_from(["password", "api_key", "userToken", "X-Api-Key", "client secret"])


@given(JSON_KEYS, st.text(max_size=20).map(lambda text: text + SECRET), st.sampled_from([None, 2]), st.booleans())
def test_a_secret_in_json_text_is_removed_and_the_json_stays_valid(
    key: str, secret: str, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps({"a": 1, key: secret, "z": "end"}, indent=indent, ensure_ascii=ascii_only)
    clean = redactor.text(text)
    assert SECRET not in clean
    assert json.loads(clean) == {"a": 1, key: REDACTED, "z": "end"}


_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
_nested = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["value", "x", "a b", '"', "\\", "]"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(300), deadline=None)
@given(
    key=JSON_KEYS,
    inside=_nested,
    in_list=st.booleans(),
    indent=st.sampled_from([None, 2]),
    level=st.integers(0, 2),
    cut=st.integers(0, 60),
)
def test_a_nested_secret_in_json_text_is_removed_and_the_json_stays_valid(
    key: str, inside: Any, in_list: bool, indent: int | None, level: int, cut: int
) -> None:
    secret: Any = [inside, SECRET] if in_list else {"value": SECRET, "more": inside}
    whole: Any = {"a": 1, key: secret, "z": ["end", {"n": 5}]}
    text = json.dumps(whole, indent=indent)
    for _ in range(level):
        text = json.dumps({"body": text})
    clean = redactor.text(text)
    assert SECRET not in clean
    shown = json.loads(clean)
    for _ in range(level):
        shown = json.loads(shown["body"])
    assert shown == {**whole, key: REDACTED}
    # Text that was cut off shows nothing of the secret either.
    shortened = text[: max(text.rindex(SECRET) + len(SECRET), len(text) - cut)]
    assert SECRET not in redactor.text(shortened)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('{"password":{"value":"hunter2"}}', '{"password":"[REDACTED]"}'),
        ('{"password":["hunter2",{"a":["x"]}],"b":1}', '{"password":"[REDACTED]","b":1}'),
        ("{'password': {'value': \"it's hunter2\"}, 'b': 1}", "{'password': '[REDACTED]', 'b': 1}"),
        ("password={value: hunter2} and more", "password=[REDACTED] and more"),
        ('{"password":{"value":"hunter2', '{"password":"[REDACTED]"'),
        ('{"token":12345,"b":1}', '{"token":"[REDACTED]","b":1}'),
        ('{"token":null,"secret":true,"b":[1]}', '{"token":null,"secret":true,"b":[1]}'),
        ('{"authorization":{"scheme":"Basic","value":"hunter2"},"b":1}', '{"authorization":"[REDACTED]","b":1}'),
        ('{"authorization":17,"b":1}', '{"authorization":"[REDACTED]","b":1}'),
        (
            '{"phone_number":"hunter2","password_reset":"later"}',
            '{"phone_number":"[REDACTED]","password_reset":"later"}',
        ),
    ],
)
def test_a_value_in_json_or_python_is_replaced_whole(text: str, clean: str) -> None:
    assert redactor.text(text) == clean
    assert redactor.text(clean) == clean


@given(
    JSON_KEYS, st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"], exclude_characters=",;\"'}[{"), min_size=1)
)
def test_a_value_after_a_sensitive_key_and_a_colon_or_an_equals_sign_is_replaced(key: str, secret: str) -> None:
    secret += SECRET
    assert redactor.text(f"see {key}={secret}") == f"see {key}={REDACTED}"
    assert redactor.text(f"see {key}: {secret}, and more") == f"see {key}: {REDACTED}, and more"


local = st.text("abcXYZ019._%+-", min_size=1, max_size=20)


label = st.text("abcXYZ019", min_size=1, max_size=10)


@given(st.lists(local, min_size=1, max_size=3), st.lists(label, min_size=1, max_size=3), st.sampled_from(["io", "COM"]))
def test_every_address_is_removed(locals_: list[str], labels: list[str], tld: str) -> None:
    domain = ".".join([*labels, tld])
    text = " ".join(f"{name}@{domain}" for name in locals_)
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
            '{"value": ',
            '"}',
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


@settings(max_examples=examples(1500), deadline=None)
@given(fragments)
@example(["5551234567", "5551234567"])
def test_redacting_twice_gives_the_same_as_redacting_once(pieces: list[str]) -> None:
    # A record is redacted in the reporter and again in ingest.
    once = redactor.text("".join(pieces))
    assert redactor.text(once) == once


@given(st.uuids(), st.binary(max_size=8), st.integers(946_684_800, 1_999_999_999), st.sampled_from(["{}", "id {} ok"]))
def test_ids_digests_and_unix_times_stay(identity: UUID, data: bytes, seconds: int, around: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    times = [seconds, seconds * 1000 + 441, seconds * 1_000_000_000]
    ids = [str(identity), identity.hex, digest, digest[:32], digest[:16], f"{identity}:{seconds}"]
    for text in [*ids, *map(str, times)]:
        shown = around.format(text)
        assert redactor.text(shown) == shown


_WORDS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=12)


@given(st.lists(_WORDS, min_size=1, max_size=12), st.sampled_from([" ", "-", "_", "/", ".", ", "]))
def test_words_stay_whatever_joins_them(parts: list[str], joint: str) -> None:
    text = joint.join(parts)
    assert redactor.text(text) == text


def test_a_word_with_letters_outside_ascii_after_basic_stays() -> None:
    for text in ("basic AAAAİ", "Basic dXNlcjpwdıx", "basic ſſſſſſſſ"):
        assert Redactor().text(text) == text
