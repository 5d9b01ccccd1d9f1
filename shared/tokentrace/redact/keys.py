"""Sensitive keys, content keys, and the removal of values from ``key: value`` pairs in texts."""

from __future__ import annotations

import re
from collections.abc import Collection

from tokentrace.redact.patterns import RedactionCounts
from tokentrace.redact.windows import search

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
        "definitions",
    }
)

_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=\d)(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
_PLACEHOLDER = re.compile(r"\[[A-Z_]*REDACTED\]")
#: What is in no ``key:`` before a value; see ``windows``.
_PAIR_FENCE = re.compile(r"[.,;!?()\[\]{}<>|*&^%$#@`~/+]")
#: A quoted value after ``key:``; the quotes may be escaped, and the closing quote may be missing.
_QUOTED = r"b?(?P<open>\\{0,8}[\"'])(?:(?!(?P=open))(?:\\.|.))*(?:(?P=open)|$)"
#: A value after ``key:``: a quoted text, an HTTP scheme with credentials, groups of digits, or one word.
_VALUE = re.compile(
    _QUOTED + r"|(?:bearer|basic|digest|token|apikey)\s+[^\r\n,;\"']+"
    r"|\d[\d ().-]*\d(?=[\s,;\"'}]|$)"
    r"|[^\s,;\"'}]+",
    re.IGNORECASE | re.DOTALL,
)
#: A value after ``authorization:``; the credentials of a header extend to the end of the line.
_LINE = re.compile(_QUOTED + r"|[^\r\n]+", re.DOTALL)
#: A value after a quoted key that is neither quoted nor a list or map, in JSON and in Python.
_SCALAR = re.compile(r"(?P<word>(?:null|true|false|None|True|False)|[-+.\deE]+)(?=[\s,}\]]|$)")
_CONSTANTS = frozenset({"null", "true", "false", "None", "True", "False"})
#: Quotes, with the backslashes before them, and brackets: what decides where a list or map ends.
_MARK = re.compile(r"\\*[\"']|[\[\]{}]")
_REST = re.compile(r"[^\s,;\"'}]*")
#: A key is sensitive although these words follow the sensitive word: ``phone_number``, ``Authorization-Header``.
_TAIL_WORDS = (
    "header headers value values number numbers no address addresses key keys access hash confirmation confirm again "
    "repeat old new current plain raw encrypted encoded base64 bearer basic home work mobile main primary secondary"
)
TAILS = tuple(_TAIL_WORDS.split())
#: In a text, a secret named ``secret_access_key`` or ``secret_key`` is found by its own form.
_TEXT_TAILS = "|".join(tail for tail in TAILS if tail not in ("access", "key", "keys"))
#: The last word of a key whose value is an id.
_ID_WORDS = frozenset({"id", "ids", "uid", "uids", "uuid", "uuids", "guid", "guids"})
#: First words of keys such as ``userid``, in which nothing separates the last word.
_OWNER_WORDS = (
    "user session request trace span order customer account message client device tenant conversation thread response "
    "correlation transaction event job run task project org workflow agent visitor member"
)
_ID_KEYS = frozenset(f"{owner}id{plural}" for owner in _OWNER_WORDS.split() for plural in ("", "s"))
#: Keys that end so are no ids of records: an ``email_id`` is an address.
_PERSONAL = (("email",), ("e", "mail"), ("phone",), ("ssn",), ("credit", "card"), ("creditcard",))
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
        self._pair = _pair_pattern(names) if names else None
        self._header = _pair_pattern(["authorization"]) if whole_line else None
        self._ids: dict[str, bool] = {}

    def is_sensitive(self, key: str) -> bool:
        """
        Return True if *key* ends with the words of a sensitive key: ``user_email``, not ``email_verified``.

        Words of ``TAILS`` and numbers at the end do not count: ``phone_number`` and ``password.0`` are sensitive.
        """
        known = self._sensitive.get(key)
        if known is None:
            if len(self._sensitive) > _MAX_CACHED:
                self._sensitive.clear()
            # Ignore a placeholder in the key: it replaced a secret there and says nothing about the value.
            known = self._sensitive[key] = self._ends_sensitive(words(_PLACEHOLDER.sub("", key)))
        return known

    def _ends_sensitive(self, parts: tuple[str, ...]) -> bool:
        while parts:
            joined = "".join(parts)
            if any(parts[-len(secret) :] == secret or joined == "".join(secret) for secret in self._words):
                return True
            if parts[-1] not in _TAILS and not parts[-1].isdigit():
                return False
            parts = parts[:-1]
        return False

    def is_id(self, key: str) -> bool:
        """Return True if *key* says that its value is an id: ``order_id``, ``userIds``; not ``email_id``."""
        known = self._ids.get(key)
        if known is None:
            if len(self._ids) > _MAX_CACHED:
                self._ids.clear()
            known = self._ids[key] = _is_id(words(key))
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
        if self._header is not None:
            text, count = _hide(self._header, _LINE, text)
        if self._pair is not None:
            text, more = _hide(self._pair, _VALUE, text)
            count += more
        if count:
            redactions["key_value"] = redactions.get("key_value", 0) + count
        return text


_TAILS = frozenset(TAILS)


def _is_id(parts: tuple[str, ...]) -> bool:
    while parts and parts[-1].isdigit():
        parts = parts[:-1]
    if not parts or (parts[-1] not in _ID_WORDS and parts[-1] not in _ID_KEYS):
        return False
    return not any(parts[-1 - len(personal) : -1] == personal for personal in _PERSONAL)


def _pair_pattern(names: list[str]) -> re.Pattern[str]:
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![^\W_])(?P<key>[^\W_]*[-_]?(?:{longest_first})(?:[-_]?(?:{_TEXT_TAILS}|\d{{1,4}})){{0,2}})"
        r"(?P<quote>(?:\\{0,8}[\"'])?)(?P<sep>\s*[:=]\s*)",
        re.IGNORECASE | re.DOTALL,
    )


def _hide(pattern: re.Pattern[str], value: re.Pattern[str], text: str) -> tuple[str, int]:
    """Return (*text* with the value after each match of *pattern* replaced, the number of values that changed)."""
    pieces: list[str] = []
    shown = count = 0
    match = search(pattern, _PAIR_FENCE, text)
    while match is not None:
        start = match.end()
        end, quote = _extent(text, start, match["quote"], value)
        if end > start:
            hidden = f"{quote}{REDACTED}{quote}"
            count += hidden != text[start:end]
            pieces += [text[shown:start], hidden]
            shown = end
        match = search(pattern, _PAIR_FENCE, text, max(end, start))
    return "".join([*pieces, text[shown:]]), count


def _extent(text: str, start: int, key_quote: str, value: re.Pattern[str]) -> tuple[int, str]:
    """
    Return (end of the value at *start*, the quote around what replaces it); the end is *start* if there is no value.

    After a quoted key the replacement is quoted, so that JSON stays JSON.
    """
    if text.startswith(("{", "["), start) and _PLACEHOLDER.match(text, start) is None:
        end = _end_of_nested(text, start)
        if key_quote:
            return end, key_quote
        rest = _REST.match(text, end)
        return (rest.end() if rest else end), ""
    if key_quote:
        scalar = _SCALAR.match(text, start)
        if scalar is not None:
            return (start, "") if scalar["word"] in _CONSTANTS else (scalar.end(), key_quote)
    match = value.match(text, start)
    if match is None:
        return start, ""
    return match.end(), match["open"] or key_quote


def _end_of_nested(text: str, start: int) -> int:
    """Return where the list or map that begins at *start* ends; the end of the text if it is not closed."""
    depth, quote, escapes = 0, "", 0
    for mark in _MARK.finditer(text, start):
        token = mark[0]
        sign, backslashes = token[-1], len(token) - 1
        if quote:
            # In text that is escaped n times, a quote has 2^n - 1 backslashes, and each escaped one doubles them.
            if sign == quote and backslashes % (2 * (escapes + 1)) == escapes:
                quote = ""
        elif sign == '"' or (sign == "'" and (mark.start() == start or text[mark.start() - 1] in "[{(,:= \t\r\n")):
            quote, escapes = sign, backslashes
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
            if depth == 0:
                return mark.end()
    return len(text)
