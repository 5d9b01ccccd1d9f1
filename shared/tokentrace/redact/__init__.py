"""Redaction: removes secrets from records before they are stored. The docstring of ``redactor`` says how it works."""

from tokentrace.redact.keys import CONTENT_KEYS, DEFAULT_KEYS, REDACTED
from tokentrace.redact.patterns import (
    API_KEY_REDACTED,
    CREDENTIALS_REDACTED,
    JWT_REDACTED,
    KEY_REDACTED,
    TOKEN_REDACTED,
    RedactionCounts,
)
from tokentrace.redact.people import CARD_REDACTED, EMAIL_REDACTED, PHONE_REDACTED, SSN_REDACTED
from tokentrace.redact.redactor import DROPPED, FAILED, Mode, Redactor
from tokentrace.redact.refused import clean_refused, readable
from tokentrace.redact.windows import WINDOW, pausing

__all__ = [
    "API_KEY_REDACTED",
    "CARD_REDACTED",
    "CONTENT_KEYS",
    "CREDENTIALS_REDACTED",
    "DEFAULT_KEYS",
    "DROPPED",
    "EMAIL_REDACTED",
    "FAILED",
    "JWT_REDACTED",
    "KEY_REDACTED",
    "PHONE_REDACTED",
    "REDACTED",
    "SSN_REDACTED",
    "TOKEN_REDACTED",
    "WINDOW",
    "Mode",
    "RedactionCounts",
    "Redactor",
    "clean_refused",
    "pausing",
    "readable",
]
