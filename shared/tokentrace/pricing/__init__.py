"""Tokens to money: the price of one call, and the receipt that explains it."""

from tokentrace.pricing.pricer import FIELD_UNITS, Pricer, Rate, Receipt

__all__ = [
    "FIELD_UNITS",
    "Pricer",
    "Rate",
    "Receipt",
]
