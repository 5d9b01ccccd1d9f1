"""
What must never pass ingest: one pure function over every text a span carries.

Two rules. A value under a sensitive key is replaced whole; inside free text, ``key: value`` pairs of those keys,
e-mail addresses and phone numbers are replaced where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from msgspec.structs import replace

from tokentrace.records import Span

DEFAULT_KEYS = (
    "authorization",
    "x-api-key",
    "api-key",
    "apikey",
    "password",
    "secret",
    "token",
    "email",
    "phone",
    "ssn",
    "credit_card",
)
REDACTED = "[REDACTED]"
EMAIL_REDACTED = "[EMAIL_REDACTED]"
PHONE_REDACTED = "[PHONE_REDACTED]"

SSN_REDACTED = "[SSN_REDACTED]"
CARD_REDACTED = "[CARD_REDACTED]"

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_PHONE = re.compile(r"(?<![\w.])\d{3}[-. ]?\d{3}[-. ]?\d{4}(?![\w.]\w|\d)")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=\d)(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
_SUSPICIOUS = re.compile(r"[@:=]|\d{3}")
#: What may follow ``key:`` in a text: quoted (perhaps cut off, perhaps escaped), a scheme and its credentials, digits
#: in groups, or one word.
_QUOTED = r"b?(?P<open>\\*[\"'])(?:(?!(?P=open))(?:\\.|.))*(?:(?P=open)|$)"
_VALUE = (
    _QUOTED + r"|(?:bearer|basic|digest|token|apikey)\s+[^\r\n,;\"']+"
    r"|\d[\d ().-]*\d(?=[\s,;\"'}]|$)"
    r"|[^\s,;\"'}]+"
)


def _words(key: str) -> tuple[str, ...]:
    """``userApiKey``, ``x-api-key`` and ``API_KEY`` as their words: a key matches by whole words, not by letters."""
    return tuple(_WORD.findall(_CAMEL.sub("_", key).lower()))


class Redactor:
    """
    Takes secrets out of spans.

    Args:
        extra_keys: More sensitive keys, any case and separator.
        replace_keys: True = *extra_keys* instead of the default ones.
        enabled: False = let everything pass.
    """

    def __init__(self, extra_keys: Collection[str] = (), *, replace_keys: bool = False, enabled: bool = True) -> None:
        keys = list(dict.fromkeys([*(() if replace_keys else DEFAULT_KEYS), *extra_keys]))
        self.enabled = enabled
        self._words = [_words(key) for key in keys if _words(key)]
        self._sensitive: dict[str, bool] = {}
        flat = {"".join(words) for words in self._words}
        self._emails = "email" in flat
        self._phones = "phone" in flat
        self._ssns = "ssn" in flat
        self._cards = "creditcard" in flat
        names = [r"[-_ ]?".join(map(re.escape, words)) for words in self._words if words != ("authorization",)]
        self._pair = _pair_pattern(names, _VALUE) if names else None
        # A header's credentials go on to the end of the line.
        whole_line = ("authorization",) in self._words
        self._header = _pair_pattern(["authorization"], _QUOTED + r"|[^\r\n]+") if whole_line else None

    def text(self, text: str) -> str:
        """*text* without the secrets that can be seen in it; the same object when there are none."""
        if not self.enabled or not text or _SUSPICIOUS.search(text) is None:
            return text
        clean = text
        if ":" in clean or "=" in clean:
            for pattern in (self._header, self._pair):
                clean = pattern.sub(_hide_pair, clean) if pattern is not None else clean
        if self._emails and "@" in clean:
            clean = _EMAIL.sub(EMAIL_REDACTED, clean)
        if self._ssns:
            clean = _SSN.sub(SSN_REDACTED, clean)
        if self._cards:
            clean = _CARD.sub(_hide_card, clean)
        if self._phones:
            clean = _PHONE.sub(PHONE_REDACTED, clean)
        return clean if clean != text else text

    def value(self, key: str, value: Any) -> Any:
        """The value of *key*, without secrets, at any depth; the same object when there are none."""
        if not self.enabled:
            return value
        if isinstance(value, str):
            return REDACTED if value and self.is_sensitive(key) else self.text(value)
        if isinstance(value, dict):
            if self.is_sensitive(key):
                return REDACTED
            clean = {inner: self.value(str(inner), item) for inner, item in value.items()}
            return clean if any(clean[inner] is not value[inner] for inner in value) else value
        if isinstance(value, list):
            items = [self.value(key, item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, (bytes, bytearray)):
            return REDACTED if self.is_sensitive(key) else value
        # A number is a secret only under exactly the key (phone: 5551234567), not in email_count: 3.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _words(key) in self._words:
            return REDACTED
        return value

    def span(self, span: Span) -> Span:
        """*span* without secrets in attributes, error and stack; the same object when there are none."""
        if not self.enabled or not (span.attributes or span.error or span.error_stack):
            return span
        attributes: dict[str, Any] = self._mapping(span.attributes)
        error, stack = self.text(span.error), self.text(span.error_stack)
        if attributes is span.attributes and error is span.error and stack is span.error_stack:
            return span
        return replace(span, attributes=attributes, error=error, error_stack=stack)

    def _mapping(self, mapping: dict[str, Any]) -> dict[str, Any]:
        clean = {key: self.value(str(key), value) for key, value in mapping.items()}
        return clean if any(clean[key] is not mapping[key] for key in mapping) else mapping

    def is_sensitive(self, key: str) -> bool:
        """True when *key* contains the words of a sensitive key: ``user_email`` is, ``max_tokens`` is not."""
        known = self._sensitive.get(key)
        if known is None:
            if len(self._sensitive) > 10_000:
                self._sensitive.clear()
            words = _words(key)
            joined = "".join(words)
            known = self._sensitive[key] = any(
                any(words[at : at + len(secret)] == secret for at in range(len(words))) or joined == "".join(secret)
                for secret in self._words
            )
        return known


def _pair_pattern(names: list[str], value: str) -> re.Pattern[str]:
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![^\W_])(?P<key>[^\W_]*[-_]?(?:{longest_first}))(?P<quote>(?:\\*[\"'])?)(?P<sep>\s*[:=]\s*)"
        rf"(?P<value>{value})",
        re.IGNORECASE | re.DOTALL,
    )


def _hide_pair(match: re.Match[str]) -> str:
    quote = match["open"] or ""
    return f"{match['key']}{match['quote']}{match['sep']}{quote}{REDACTED}{quote}"


def _hide_card(match: re.Match[str]) -> str:
    digits = [int(char) for char in match[0] if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return CARD_REDACTED if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else match[0]
