"""How long the receiver of a request asks to wait before the next one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from tokentrace.units import HOUR, SECOND

#: The longest wait that a receiver can ask for, seconds.
MAX_RETRY_AFTER_S = HOUR / SECOND
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """
    Return how long the header ``Retry-After`` asks to wait, seconds, at most an hour; None = missing or unreadable.

    Args:
        headers: The headers of the response, which are found in any case of their letters.
        now_s: Unix time, seconds; used for a date if the response has no ``Date`` of its own.
    """
    written = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(written):
        return min(float(written), MAX_RETRY_AFTER_S)
    until_s = _date(written)
    if until_s is None:
        return None
    # The receiver's own clock may differ from ours.
    answered_s = _date(headers.get("Date", ""))
    return min(max(until_s - (now_s if answered_s is None else answered_s), 0.0), MAX_RETRY_AFTER_S)


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
