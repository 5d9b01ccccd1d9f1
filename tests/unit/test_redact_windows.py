"""A long text that is redacted in windows is redacted as if it were searched at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.canaries import KINDS, canary
from kit.examples import examples
from tokentrace.records import Span
from tokentrace.redact import WINDOW, RedactionCounts, Redactor, pausing

redactor = Redactor()
#: What stands around secrets: words, runs without any fence, fences, and the beginnings and ends of secrets.
FILLINGS = [
    "a word and another ",
    "x" * 700,
    "7" * 60,
    "ab12_" * 90,
    "1 " * 300,
    " \n\t " * 100,
    ", ",
    ". ",
    "? (see [1]) ",
    '{"note": "',
    '"}, ',
    "'",
    "\\",
    "@",
    "://",
    ":",
    "=",
    "password",
    "secret ",
    "authorization: ",
    "bearer ",
    "Basic ",
    "sk-",
    "eyJ",
    "SG.",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----END RSA PRIVATE KEY-----",
    "+1 ",
    "(555) ",
    "é",
    "ı",
    "İ",
    "١",
    "ſ",
]
pieces = st.lists(
    st.one_of(
        st.sampled_from(FILLINGS),
        st.builds(lambda kind, seed: canary(kind, str(seed)).text, st.sampled_from(list(KINDS)), st.integers(0, 9)),
        st.sampled_from(["password: hunter2", '{"api_key": "a \\" b"}', "token={'x': [1, 2]}", "a.b@c.example.org"]),
    ),
    min_size=1,
    max_size=12,
)


def redact(text: str, *, windows: bool) -> tuple[str, RedactionCounts, int]:
    """Return *text* without secrets, the counts of them, and how many pauses were made."""
    counts: RedactionCounts = {}
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    if not windows:
        return redactor.text(text, counts), counts, 0
    with pausing(pause):
        clean = redactor.text(text, counts)
    return clean, counts, pauses


@settings(max_examples=examples(1000))
@given(st.lists(pieces, min_size=1, max_size=6), st.integers(0, 2**32), st.integers(0, 2 * WINDOW))
def test_windows_hide_what_a_search_of_the_whole_text_hides(parts: list[list[str]], seed: int, shift: int) -> None:
    dice = random.Random(seed)
    text = "y" * shift + " "
    while len(text) < 6 * WINDOW:
        text += "".join(dice.choice(parts)) + dice.choice(FILLINGS)
    clean, counts, _ = redact(text, windows=True)
    assert (clean, counts) == redact(text, windows=False)[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_at_every_place_around_the_end_of_a_window_is_removed(kind: str) -> None:
    secret, needle = canary(kind, "place")
    for before in range(WINDOW - len(secret) - 8, WINDOW + 8):
        text = ("word, " * WINDOW)[:before] + f"\n, {secret}, " + "word, " * (WINDOW // 2)
        assert needle not in redact(text, windows=True)[0]


def test_every_pattern_pauses_in_a_long_text_that_has_fences() -> None:
    text = "see a@b.io, basic secret bearer token: password of 5551234567 at x://y; " * 600
    _, _, pauses = redact(text, windows=True)
    # A pause for each window: about twenty windows, at least ten patterns.
    assert pauses > 10 * len(text) // (2 * WINDOW)


def test_a_short_text_is_redacted_without_a_pause() -> None:
    _, _, pauses = redact("password: hunter2, " * 100, windows=True)
    assert pauses == 0


def test_a_span_is_redacted_in_windows_only_inside_the_block() -> None:
    span = Span(name="n", kind="custom", attributes={"note": "see a@b.io, basic token: password " * 300})
    paused: list[None] = []
    with pausing(lambda: paused.append(None)):
        inside = redactor.span(span)
    seen = len(paused)
    assert seen > 0
    assert redactor.span(span) == inside
    assert len(paused) == seen
