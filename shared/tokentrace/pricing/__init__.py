"""Pricing: the cost of a span, and the receipt that explains it. The docstring of ``pricer`` says how pricing works."""

from tokentrace.pricing.configured import TOKEN_RATES, Pattern, Rate, TierRate, UnitRate
from tokentrace.pricing.explanation import explain, render_lines, render_price, render_usd
from tokentrace.pricing.match_rules import LOCAL_PROVIDERS
from tokentrace.pricing.pricer import Pricer
from tokentrace.pricing.rates import FIELD_UNITS
from tokentrace.pricing.receipt import Receipt
from tokentrace.pricing.tables import load_tables
from tokentrace.pricing.work import Quote

__all__ = [
    "FIELD_UNITS",
    "LOCAL_PROVIDERS",
    "TOKEN_RATES",
    "Pattern",
    "Pricer",
    "Quote",
    "Rate",
    "Receipt",
    "TierRate",
    "UnitRate",
    "explain",
    "load_tables",
    "render_lines",
    "render_price",
    "render_usd",
]
