"""Compares an attribute with the text of a filter: numbers compare as numbers, everything else as text."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

from tokentrace.metrics.custom import attribute_text_of
from tokentrace.records import ID_FIELDS, Span, attribute
from tokentrace.units import is_number

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4})?", re.ASCII)


class FilterNumber(NamedTuple):
    """
    The number that a text of a filter stands for.

    Attributes:
        double: The nearest double, with which fractions are compared.
        whole: The number itself if it is whole and fits into 64 bits, signed or unsigned; otherwise None.
    """

    double: float
    whole: int | None


def filter_number(text: str) -> FilterNumber | None:
    """Return the number that *text* stands for; None if it is not a number as JSON writes it."""
    if len(text) > 400 or not _NUMBER.fullmatch(text):
        return None
    double = float(text)
    if not -(2.0**63) <= double <= 2.0**64:
        return FilterNumber(double, None)
    exact = Decimal(text)
    whole = int(exact) if exact == exact.to_integral_value() else None
    return FilterNumber(double, whole if whole is not None and -(2**63) <= whole < 2**64 else None)


def attribute_is(span: Span, key: str, text: str) -> bool:
    """
    Return True if the attribute *key* of *span* is *text*: ``1``, ``1.0`` and ``1e0`` are the same number.

    The keys ``user_id`` and ``session_id`` stand for the fields of those names, or else for the attributes; the text ""
    asks for a span with neither.
    """
    held = attribute_text_of(span, key)
    if key in ID_FIELDS:
        return (held or "") == text
    if held == text:
        return True
    value = attribute(span, key)
    number = filter_number(text) if is_number(value) else None
    if number is None:
        return False
    return bool(value == number.whole if isinstance(value, int) else value == number.double)
