"""Amounts of money as applications write them, and as budgets count them."""

from __future__ import annotations

import math
from decimal import Decimal

from tokentrace.errors import ConfigError, Rejected, shorten
from tokentrace.units import usd_to_nusd

#: An amount in US dollars as an application writes it.
Usd = float | int | Decimal

#: Largest amount in US dollars: sums of such amounts fit into the numbers of any reader of a shared budget.
MAX_USD = 1_000_000_000


def nusd_of(usd: Usd, what: str = "usd") -> int:
    """
    Return an amount in nano-dollars, rounded half to even.

    Args:
        usd: US dollars.
        what: The name of the amount in an error text.

    Raises:
        Rejected: *usd* is not a number of 0 to 1e9.
    """
    if isinstance(usd, bool) or not isinstance(usd, (int, float, Decimal)):
        raise Rejected(f"{what}: {shorten(usd)} is a {type(usd).__name__}, not a number of US dollars")
    finite = usd.is_finite() if isinstance(usd, Decimal) else math.isfinite(usd)
    if not finite or not 0 <= usd <= MAX_USD:
        raise Rejected(f"{what}: {shorten(usd)} is not an amount of 0 to {MAX_USD} US dollars")
    return usd_to_nusd(usd)


def limit_of(max_usd: Usd, what: str) -> int:
    """
    Return a limit in nano-dollars.

    Raises:
        ConfigError: *max_usd*, in US dollars, is not a number of 0 to 1e9; the text begins with *what*.
    """
    try:
        return nusd_of(max_usd, what)
    except Rejected as exc:
        raise ConfigError(str(exc)) from exc
