"""Secrets of a known form are removed from texts, even from texts that are made to be slow to search."""

from __future__ import annotations

import pytest

from kit.canaries import KINDS, canary
from kit.examples import FAST
from tokentrace.redact import (
    API_KEY_REDACTED,
    CREDENTIALS_REDACTED,
    EMAIL_REDACTED,
    JWT_REDACTED,
    KEY_REDACTED,
    PHONE_REDACTED,
    REDACTED,
    TOKEN_REDACTED,
    RedactionCounts,
    Redactor,
)

redactor = Redactor()


PLACES = ["{}", "before {} after", "({})", "x={}", '{{"note": "{}"}}', "\n{}\n", "a/{}", "-{}.", "é{}", "_{}"]


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_of_each_kind_is_removed_and_counted_in_each_place(place: str) -> None:
    for kind in KINDS:
        text, needle = canary(kind, place)
        redactions: RedactionCounts = {}
        clean = redactor.text(place.format(text), redactions)
        assert needle not in clean, kind
        assert "REDACTED]" in clean, kind
        assert sum(redactions.values()) >= 1, kind
        assert redactor.text(clean) == clean, kind


def test_a_secret_in_a_long_text_is_removed_and_the_text_around_it_stays() -> None:
    before, after = "Some words go first. " * 200, "\nSome words follow. " * 200
    for kind in KINDS:
        text, needle = canary(kind, "long")
        clean = redactor.text(before + text + after)
        assert needle not in clean, kind
        assert clean.startswith(before), kind
        # A private key without an END line extends to the end of the text.
        assert clean.endswith(after) or kind == "private key cut off", kind


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
def test_a_secret_is_replaced_by_its_placeholder_and_counted_once_under_its_kind(
    kind: str, shown: str, counted: str
) -> None:
    redactions: RedactionCounts = {}
    assert redactor.text(canary(kind, "shown").text, redactions) == shown
    assert redactions == {counted: 1}


def test_all_secrets_of_a_text_are_counted_by_kind() -> None:
    redactions: RedactionCounts = {}
    keys = " ".join(canary("github", str(number)).text for number in range(5))
    redactor.text(f"{keys}, a@b.io and c@d.io, password: hunter2", redactions)
    assert redactions == {"api_key": 5, "email": 2, "key_value": 1}
    redactor.text("nothing here", redactions)
    assert sum(redactions.values()) == 8


def test_a_placeholder_is_not_counted_as_a_secret() -> None:
    for kind in KINDS:
        clean = redactor.text(canary(kind, "twice").text)
        redactions: RedactionCounts = {}
        redactor.text(clean, redactions)
        assert redactions == {}, clean


# --- texts that are made to be slow ----------------------------------------------------------------------------------


MB = 1 << 20


#: Each piece is repeated until the text has a quarter of a million characters.
#: Characters of a hostile text.
LENGTH = MB // 16 if FAST else MB // 4
PIECES = [
    "a@", "@a.", "a@a.", "@b.io ", "-a@b.io", 'password="', "password='\\", "token" + " " * 50, "a_", "555", "555-",
    "bearer ", "bearer=", "api-", "token", "sk-", "sk-abcdef", "eyJ", "eyJaaaaaaaaa.", "eyJaaaaaaaaa ",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN A ", "-----END ", "://", "://a:b@", "://" + "u:" * 100, "basic ",
    "basic AAAAAAA ", "SG.aaaaaaaaaaaaaaaaaaaaaa", "ghp_", "AKIA", "xoxb-", "secret_access_key",
    "secret_key=======",
    "+1", "(555) ", "1 ", "4111 ", "key-0", ":", "token=", "\"'", "\u0307\u0131", "dapi0", "whsec_", "phone=1 (",
    "token: bearer ", "token=b", "email: a@b.io, ", "é", "A", "-", "\\", "-----", "=", "word ",
]  # fmt: skip


@pytest.mark.story
@pytest.mark.long
@pytest.mark.parametrize("end", ["", "@", "token:", '"', "PRIVATE KEY"])
def test_the_time_for_a_hostile_text_does_not_grow_with_the_square_of_its_length(end: str) -> None:
    # No clock is needed: reading the rest of such a text again for each of its characters would take hours.
    for piece in PIECES:
        redactor.text(piece * (LENGTH // len(piece)) + end)


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
def test_the_redaction_of_a_hostile_text_of_a_megabyte_ends(text: str) -> None:
    redactor.text(text)
