"""
Conversions between external notations and the integers that tokentrace keeps.

Instants and durations are integer nanoseconds, money is integer nano-dollars (nusd, 1e-9 US dollars), and scores are
integers in units of 1e-9.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import TypeGuard

from tokentrace.errors import Rejected, quoted

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

NUSD_PER_USD = 1_000_000_000
SCORE_ONE = 1_000_000_000

_DURATION_UNITS = {"ns": 1, "us": US, "µs": US, "μs": US, "ms": MS, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)
_MAX_DURATION = 2**63 - 1
_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Unix nanoseconds of the first instant with a year of four digits, and of the first one after them.
_FIRST_NS = (datetime.min.replace(tzinfo=UTC) - _EPOCH).days * 86_400 * SECOND
_END_NS = ((datetime.max.replace(tzinfo=UTC) - _EPOCH).days + 1) * 86_400 * SECOND


def parse_duration(text: str) -> int:
    """
    Parse a duration in the notation of Go, such as ``2h30m``, ``1.5s`` or ``500ms``; ``d`` stands for 24 h.

    Returns:
        Nanoseconds, at least 0.

    Raises:
        Rejected: *text* is not a duration, is negative, or is longer than 292 years.
    """
    if text == "0":
        return 0
    total, at = Decimal(0), 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != at:
            break
        total += Decimal(part[1]) * _DURATION_UNITS[part[2]]
        at = part.end()
    if at != len(text) or not text:
        raise Rejected(f"duration: {quoted(text)} is not a duration such as 90s, 2h30m or 7d")
    if total > _MAX_DURATION:
        raise Rejected(f"duration: {quoted(text)} is longer than 292 years")
    return int(total)


def render_duration(ns: int) -> str:
    """Render nanoseconds >= 0 with the largest units first: 90 minutes are ``1h30m``, 1500 ms are ``1s500ms``."""
    if ns == 0:
        return "0s"
    parts = []
    for unit, size in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MS), ("us", US), ("ns", 1)):
        count, ns = divmod(ns, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_instant(text: str) -> int:
    """
    Parse an RFC 3339 instant with any offset. Digits after the nanoseconds are ignored.

    Returns:
        Unix nanoseconds.

    Raises:
        Rejected: *text* is not RFC 3339, which requires an offset, its day, time or offset does not exist, or it has no
            year of four digits in UTC.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise Rejected(f"instant: {quoted(text)} is not RFC 3339 such as 2026-03-15T14:23:01.441Z")
    year, month, day, hour, minute, second, fraction, _, sign, off_h, off_m = match.groups()
    leap = second == "60"
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), 59 if leap else int(second), tzinfo=UTC
        )
    except ValueError as exc:
        raise Rejected(f"instant: {quoted(text)}: {exc}") from exc
    since = moment - _EPOCH
    ns = (since.days * 86_400 + since.seconds + leap) * SECOND + int((fraction or "0").ljust(9, "0"))
    if sign:
        if int(off_h) > 23 or int(off_m) > 59:
            raise Rejected(f"instant: {quoted(text)}: the offset is not between -23:59 and +23:59")
        offset = int(off_h) * HOUR + int(off_m) * MINUTE
        ns += -offset if sign == "+" else offset
    if not _FIRST_NS <= ns < _END_NS:
        raise Rejected(f"instant: {quoted(text)} is not between the years 1 and 9999 of UTC")
    return ns


def render_instant(ns: int) -> str:
    """Render Unix nanoseconds as ``2026-03-15T14:23:01.441Z``, cut to the millisecond."""
    ms = ns // MS
    seconds, rest = divmod(ms, 1000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment.year:04}-{moment:%m-%dT%H:%M:%S}.{rest:03d}Z"


def scaled(value: float | int | Decimal, scale: int) -> int:
    """Return *value* × *scale* rounded half to even; a float stands for the shortest decimal that parses to it."""
    if isinstance(value, int):
        return value * scale
    if isinstance(value, float):
        near = value * scale
        # The product is wrong by at most half an ulp, which is below 0.25 for products below 2**50.
        if abs(near) < 2**50 and abs(near - round(near)) < 0.25:
            return round(near)
        value = Decimal(repr(value))
    with localcontext() as context:
        context.prec = 400
        return int((value * scale).to_integral_value(rounding=ROUND_HALF_EVEN))


def usd_to_nusd(usd: float | int | Decimal) -> int:
    """Convert US dollars to whole nano-dollars, rounded half to even."""
    return scaled(usd, NUSD_PER_USD)


def nusd_to_usd(nusd: int) -> float:
    """Convert nano-dollars to the nearest float of US dollars."""
    return nusd / NUSD_PER_USD


def score_to_int(score: float | int | Decimal) -> int:
    """Convert a score or a numeric attribute to whole units of 1e-9, rounded half to even."""
    return scaled(score, SCORE_ONE)


def int_to_score(value: int) -> float:
    """Convert units of 1e-9 to the nearest float."""
    return value / SCORE_ONE


def ms_to_ns(ms: float | int) -> int:
    """Convert milliseconds to whole nanoseconds, rounded half to even."""
    return int(ms) * MS if -(2**53) < ms < 2**53 and ms == int(ms) else scaled(ms, MS)


def ns_to_ms(ns: float) -> float | int:
    """Convert nanoseconds to milliseconds: an int if the number is whole, so that JSON shows ``1240``, else a float."""
    ms = ns / MS
    return int(ms) if ms.is_integer() else ms


def is_number(value: object) -> TypeGuard[int | float]:
    """Return True for an int or a finite float; a bool is not a number here."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )
