"""Tokens to money: the price of a span, and the receipt that explains it. How it works is at the head of ``pricer``."""

from tokentrace.pricing.pricer import Pricer
from tokentrace.pricing.rates import FIELD_UNITS, Rate
from tokentrace.pricing.receipt import Receipt

__all__ = [
    "FIELD_UNITS",
    "Pricer",
    "Rate",
    "Receipt",
]
