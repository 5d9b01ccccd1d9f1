"""Pricing: the cost of a span, and the receipt that explains it. The docstring of ``pricer`` says how pricing works."""

from tokentrace.pricing.pricer import Pricer
from tokentrace.pricing.rates import FIELD_UNITS, Rate
from tokentrace.pricing.receipt import Receipt

__all__ = [
    "FIELD_UNITS",
    "Pricer",
    "Rate",
    "Receipt",
]
