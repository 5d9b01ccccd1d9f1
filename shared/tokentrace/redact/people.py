"""Removes personal data from texts: e-mail addresses, and phone, card and social security numbers."""

from __future__ import annotations

import re

from tokentrace.redact.patterns import Pattern, RedactionCounts
from tokentrace.redact.windows import finditer, search

EMAIL_REDACTED = "[EMAIL_REDACTED]"
PHONE_REDACTED = "[PHONE_REDACTED]"
SSN_REDACTED = "[SSN_REDACTED]"
CARD_REDACTED = "[CARD_REDACTED]"

#: What is neither in a number nor in an address, nor decides where one ends.
_NUMBER_FENCE = re.compile(r"[\n,;:\"'!?\[\]{}<>|*&=/@#]")
_DOMAIN_FENCE = re.compile(r"[^\w.@-]")
#: All numbers matched below contain nine digits with at most two separators between neighbouring digits.
_NUMBER = re.compile(r"\d(?:[-. ()]{0,2}\d){8}")
#: What precedes a number whose key says that it is an id.
_AFTER_ID = re.compile(r"(?:(?<![^\W_])|_|(?<=[a-z])(?=I))(?:id|ID|Id)[sS]?[\\\"']{0,9}\s?[:=]\s?[\\\"']{0,9}$")
_ASCII_NUMBER = re.compile(r"[0-9](?:[-. ()]{0,2}[0-9]){8}")


def _is_phone(match: re.Match[str]) -> bool:
    """
    Return False if a match without separators is more likely a time, or an id or a part of one.

    ``req-5551234567`` is a part of an id, and so is the number in ``"order_id": 5551234567``.

    Until 2033, Unix seconds begin with a 1, and no area code does.
    """
    number, start = match[0], match.start()
    if not number.isdigit():
        return True
    if _AFTER_ID.search(match.string[max(0, start - 80) : start]):
        return False
    before = match.string[start - 2 : start] if start >= 2 else ""
    return number[0] != "1" and not (before[1:] == "-" and before[0].isalpha())


def _is_card(match: re.Match[str]) -> bool:
    """Return True if the Luhn check digit is right and a card network has this prefix, which excludes Unix times."""
    digits = [int(char) for char in match[0] if char.isdigit()]
    if not (3 <= digits[0] <= 6 or (digits[0] == 2 and 2 <= digits[1] <= 7)):
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


#: The @ and the domain of an e-mail address. They are searched first, and then the local part is matched backwards from
#: the @: a regex that begins with the local part would need quadratic time.
_DOMAIN = re.compile(r"@(?:[^\W_][\w-]{0,62}+\.)+[^\W\d_]{2,24}(?![^\W_])")
_LOCAL = re.compile(r"[\w.%+-]++")
_SSN = Pattern("ssn", (), re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), SSN_REDACTED, fence=_NUMBER_FENCE)
_CARD = Pattern(
    "card", (), re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), CARD_REDACTED, _is_card, _NUMBER_FENCE
)
_PHONES = (
    Pattern(
        "phone",
        (),
        re.compile(r"(?<![\w.])(?:\(\d{3}\) ?|\d{3}[-. ]?)\d{3}[-. ]?\d{4}(?![\w.]\w|\d)"),
        PHONE_REDACTED,
        _is_phone,
        _NUMBER_FENCE,
    ),
    Pattern(
        "phone",
        (),
        re.compile(r"(?<![\w.])\+[1-9](?:[ .()-]{0,2}\d){8,14}(?![\w.]\w|\d)"),
        PHONE_REDACTED,
        fence=_NUMBER_FENCE,
    ),
)


def _hide_addresses(text: str, redactions: RedactionCounts) -> str:
    pieces: list[str] = []
    shown = floor = 0
    for match in finditer(_DOMAIN, _DOMAIN_FENCE, text):
        local = _LOCAL.match(text[floor : match.start()][::-1])
        floor = match.end()
        if local is not None:
            pieces += [text[shown : match.start() - local.end()], EMAIL_REDACTED]
            shown = floor
    if not pieces:
        return text
    redactions["email"] = redactions.get("email", 0) + len(pieces) // 2
    return "".join([*pieces, text[shown:]])


class People:
    """
    Removes personal data; e-mail addresses and phone numbers only where they are not ids.

    Args:
        addresses, phones: False = e-mail addresses or phone numbers stay.
    """

    def __init__(self, *, addresses: bool = True, phones: bool = True) -> None:
        self._addresses, self._phones = addresses, _PHONES if phones else ()

    def clean(self, text: str, redactions: RedactionCounts, *, is_id: bool = False) -> str:
        """
        Return *text* with the personal data replaced; add the number of replacements to *redactions*.

        Args:
            is_id: True = the whole text is an id, in which addresses and phone numbers stay. If it has digits only,
                it is no card number either.
        """
        if self._addresses and "@" in text and not is_id:
            text = _hide_addresses(text, redactions)
        if search(_ASCII_NUMBER if text.isascii() else _NUMBER, _NUMBER_FENCE, text) is not None:
            for pattern in (_SSN, *(() if is_id and text.isdigit() else (_CARD,)), *(() if is_id else self._phones)):
                text = pattern.sub(text, redactions)
        return text
