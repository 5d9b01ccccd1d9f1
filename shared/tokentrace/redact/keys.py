"""Names that say what stands under them: secrets, or the words of a conversation."""

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
#: Attributes whose texts are content, which the mode ``metadata_only`` drops: so called, or a part of their name
#: between dots is (``gen_ai.prompt.0.content``, ``input.value``).
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
_STAND_IN = re.compile(r"\[[A-Z_]*REDACTED\]")
#: What may follow ``key:`` in a text: quoted (perhaps cut off, perhaps escaped), a scheme and its credentials, digits
#: in groups, or one word.
_QUOTED = r"b?(?P<open>\\{0,8}[\"'])(?:(?!(?P=open))(?:\\.|.))*(?:(?P=open)|$)"
_VALUE = (
    _QUOTED + r"|(?:bearer|basic|digest|token|apikey)\s+[^\r\n,;\"']+"
    r"|\d[\d ().-]*\d(?=[\s,;\"'}]|$)"
    r"|[^\s,;\"'}]+"
)
#: Keys that are remembered.
_REMEMBERED = 10_000


def words(key: str) -> tuple[str, ...]:
    """``userApiKey``, ``x-api-key`` and ``API_KEY`` as their words: a key matches by whole words, not by letters."""
    return tuple(_WORD.findall(_CAMEL.sub("_", key).lower()))


class Keys:
    """
    Sensitive keys, and the pairs of a text that hold one.

    Args:
        keys: Any case and separator.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self._words = [found for found in map(words, dict.fromkeys(keys)) if found]
        self._sensitive: dict[str, bool] = {}
        self._content: dict[str, bool] = {}
        self.flat = {"".join(found) for found in self._words}
        #: In every text that holds a pair are all words of one of these.
        self._hints = [tuple(word.casefold() for word in found) for found in self._words]
        names = [r"[-_ ]?".join(map(re.escape, found)) for found in self._words if found != ("authorization",)]
        self._pair = _pair_pattern(names, _VALUE) if names else None
        # A header's credentials go on to the end of the line.
        whole_line = ("authorization",) in self._words
        self._header = _pair_pattern(["authorization"], _QUOTED + r"|[^\r\n]+") if whole_line else None

    def is_sensitive(self, key: str) -> bool:
        """True when *key* contains the words of a sensitive key: ``user_email`` is, ``max_tokens`` is not."""
        known = self._sensitive.get(key)
        if known is None:
            if len(self._sensitive) > _REMEMBERED:
                self._sensitive.clear()
            # What stands in for a key that was a secret says nothing of its value.
            parts = words(_STAND_IN.sub("", key))
            joined = "".join(parts)
            known = self._sensitive[key] = any(
                any(parts[at : at + len(secret)] == secret for at in range(len(parts))) or joined == "".join(secret)
                for secret in self._words
            )
        return known

    def is_exactly(self, key: str) -> bool:
        """True when *key* is a sensitive key and nothing more."""
        return words(key) in self._words

    def is_content(self, key: str) -> bool:
        """True when texts under *key* are content: see ``CONTENT_KEYS``."""
        known = self._content.get(key)
        if known is None:
            if len(self._content) > _REMEMBERED:
                self._content.clear()
            known = self._content[key] = any("_".join(words(part)) in CONTENT_KEYS for part in key.split("."))
        return known

    def clean(self, text: str, folded: str, found: RedactionCounts) -> str:
        """
        *text* with the values of its ``key: value`` pairs taken out.

        Args:
            folded: *text* with its case folded.
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
            found["key_value"] = found.get("key_value", 0) + count
        return text


def _pair_pattern(names: list[str], value: str) -> re.Pattern[str]:
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![^\W_])(?P<key>[^\W_]*[-_]?(?:{longest_first}))(?P<quote>(?:\\{{0,8}}[\"'])?)(?P<sep>\s*[:=]\s*)"
        rf"(?P<value>{value})",
        re.IGNORECASE | re.DOTALL,
    )
