"""Sensitive keys, content keys, and the removal of values from ``key: value`` pairs in texts."""

from __future__ import annotations

import re
from collections.abc import Collection

from tokentrace.redact.patterns import RedactionCounts

REDACTED = "[REDACTED]"

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
#: Keys whose texts are content, which the mode ``metadata_only`` drops. A key matches if it is listed or has a listed
#: part between dots, in any case and with any separator (``gen_ai.prompt.0.content``, ``input.value``).
CONTENT_KEYS = frozenset(
    {
        "prompt",
        "prompts",
        "completion",
        "completions",
        "input",
        "inputs",
        "output",
        "outputs",
        "content",
        "contents",
        "message",
        "messages",
        "input_messages",
        "output_messages",
        "system",
        "system_prompt",
        "system_instructions",
        "user_prompt",
        "instructions",
        "response",
        "result",
        "result_preview",
        "request",
        "body",
        "text",
        "query",
        "question",
        "answer",
        "document",
        "documents",
        "context",
        "transcript",
        "arguments",
        "tool_input",
        "tool_output",
    }
)

_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=\d)(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
_PLACEHOLDER = re.compile(r"\[[A-Z_]*REDACTED\]")
#: A quoted value after ``key:``; the quotes may be escaped, and the closing quote may be missing.
_QUOTED = r"b?(?P<open>\\{0,8}[\"'])(?:(?!(?P=open))(?:\\.|.))*(?:(?P=open)|$)"
#: A value after ``key:``: a quoted text, an HTTP scheme with credentials, groups of digits, or one word.
_VALUE = (
    _QUOTED + r"|(?:bearer|basic|digest|token|apikey)\s+[^\r\n,;\"']+"
    r"|\d[\d ().-]*\d(?=[\s,;\"'}]|$)"
    r"|[^\s,;\"'}]+"
)
#: Most keys in each cache, about; a full cache is cleared.
_MAX_CACHED = 10_000


def words(key: str) -> tuple[str, ...]:
    """Return the words of *key* in lower case: ``userApiKey`` and ``USER-API_KEY`` both give user, api, key."""
    return tuple(_WORD.findall(_CAMEL.sub("_", key).lower()))


class Keys:
    """
    The sensitive keys: tests whether a key is one of them, and replaces their values in ``key: value`` pairs in texts.

    Args:
        keys: Sensitive keys in any case and with any separator.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self._words = [key_words for key_words in map(words, dict.fromkeys(keys)) if key_words]
        self._sensitive: dict[str, bool] = {}
        self._content: dict[str, bool] = {}
        #: The sensitive keys in lower case, without separators.
        self.flat = {"".join(key_words) for key_words in self._words}
        #: The case-folded words of each key; a text with a ``key: value`` pair contains all words of at least one key.
        self._hints = [tuple(word.casefold() for word in key_words) for key_words in self._words]
        whole_line = ("authorization",) in self._words
        pair_keys = [key_words for key_words in self._words if key_words != ("authorization",)]
        names = [r"[-_ ]?".join(map(re.escape, key_words)) for key_words in pair_keys]
        self._pair = _pair_pattern(names, _VALUE) if names else None
        # The credentials of an authorization header extend to the end of the line.
        self._header = _pair_pattern(["authorization"], _QUOTED + r"|[^\r\n]+") if whole_line else None

    def is_sensitive(self, key: str) -> bool:
        """Return True if *key* contains the words of a sensitive key in order: ``user_email``, not ``max_tokens``."""
        known = self._sensitive.get(key)
        if known is None:
            if len(self._sensitive) > _MAX_CACHED:
                self._sensitive.clear()
            # Ignore a placeholder in the key: it replaced a secret there and says nothing about the value.
            parts = words(_PLACEHOLDER.sub("", key))
            joined = "".join(parts)
            known = self._sensitive[key] = any(
                any(parts[at : at + len(secret)] == secret for at in range(len(parts))) or joined == "".join(secret)
                for secret in self._words
            )
        return known

    def is_exactly(self, key: str) -> bool:
        """Return True if *key* has the words of a sensitive key and no others."""
        return words(key) in self._words

    def is_content(self, key: str) -> bool:
        """Return True if texts under *key* are content (see ``CONTENT_KEYS``)."""
        known = self._content.get(key)
        if known is None:
            if len(self._content) > _MAX_CACHED:
                self._content.clear()
            known = self._content[key] = any("_".join(words(part)) in CONTENT_KEYS for part in key.split("."))
        return known

    def clean(self, text: str, folded: str, redactions: RedactionCounts) -> str:
        """
        Return *text* with the values of its sensitive ``key: value`` and ``key=value`` pairs replaced.

        Args:
            folded: *text* case-folded.
            redactions: The count of ``key_value`` is increased by the number of replaced values.
        """
        if not any(all(word in folded for word in hint) for hint in self._hints):
            return text
        count = 0

        def hide(match: re.Match[str]) -> str:
            nonlocal count
            quote = match["open"] or ""
            hidden = f"{match['key']}{match['quote']}{match['sep']}{quote}{REDACTED}{quote}"
            count += hidden != match[0]
            return hidden

        for pattern in (self._header, self._pair):
            text = pattern.sub(hide, text) if pattern is not None else text
        if count:
            redactions["key_value"] = redactions.get("key_value", 0) + count
        return text


def _pair_pattern(names: list[str], value: str) -> re.Pattern[str]:
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![^\W_])(?P<key>[^\W_]*[-_]?(?:{longest_first}))(?P<quote>(?:\\{{0,8}}[\"'])?)(?P<sep>\s*[:=]\s*)"
        rf"(?P<value>{value})",
        re.IGNORECASE | re.DOTALL,
    )
