"""
Patterns of secrets that have a known form: vendors' keys, tokens, private keys, credentials in a URL.

A search takes time linear in the length of the text, because any sender may choose the text. For this, an unbounded
repetition is possessive or ends the pattern, so that the regex engine does not backtrack over it. Conditions that need
more are checked after a match (``Pattern.confirm``).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import NamedTuple

from tokentrace.redact.windows import finditer, search

API_KEY_REDACTED = "[API_KEY_REDACTED]"
TOKEN_REDACTED = "[TOKEN_REDACTED]"
JWT_REDACTED = "[JWT_REDACTED]"
KEY_REDACTED = "[KEY_REDACTED]"
CREDENTIALS_REDACTED = "[CREDENTIALS_REDACTED]"

#: Kind of secret -> number of removed secrets.
RedactionCounts = dict[str, int]


class Pattern(NamedTuple):
    """
    One form of secret.

    Attributes:
        kind: Key in ``RedactionCounts``.
        hints: A text with such a secret contains at least one of these substrings; a search for them is faster than
            the regex. Empty = not used.
        regex: Matches the secret; a group ``keep`` at its beginning is not removed.
        placeholder: The text that replaces the secret.
        confirm: Match -> whether it is a secret; None = every match is a secret.
        fence: A character that separates windows of a long text, see ``windows``; None = the text is searched at once.
    """

    kind: str
    hints: tuple[str, ...]
    regex: re.Pattern[str]
    placeholder: str
    confirm: Callable[[re.Match[str]], bool] | None = None
    fence: re.Pattern[str] | None = None

    def hinted(self, text: str) -> bool:
        """Return True if *text* contains a hint and so may contain such a secret."""
        return any(hint in text for hint in self.hints)

    def sub(self, text: str, redactions: RedactionCounts) -> str:
        """Return *text* with each such secret replaced; add the number of secrets to *redactions*."""
        if search(self.regex, self.fence, text) is None:
            return text
        keeps = "keep" in self.regex.groupindex
        pieces: list[str] = []
        shown = 0
        for match in finditer(self.regex, self.fence, text):
            if self.confirm is None or self.confirm(match):
                pieces += [text[shown : match.start()], match["keep"] if keeps else "", self.placeholder]
                shown = match.end()
        if not pieces:
            return text
        redactions[self.kind] = redactions.get(self.kind, 0) + len(pieces) // 3
        return "".join([*pieces, text[shown:]])


#: What is in no vendor's key.
_KEY_FENCE = re.compile(r"[^A-Za-z0-9_.+/=-]")
_DIGIT = re.compile(r"[0-9]")
_RANDOM = re.compile(r"(?=[A-Za-z]{0,11}[0-9])[A-Za-z0-9]{12}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}")


def _is_random(match: re.Match[str]) -> bool:
    """Return True if a part of the match looks random, unlike a name made of words (``sk-learn-pipeline-version``)."""
    return _RANDOM.search(match[0]) is not None


def _key(hints: str, body: str, confirm: Callable[[re.Match[str]], bool] | None = None) -> Pattern:
    """Return the pattern of a vendor's key that does not begin inside a word; *hints* are separated by spaces."""
    regex = re.compile(rf"(?<![A-Za-z0-9]){body}")
    return Pattern("api_key", tuple(hints.split()), regex, API_KEY_REDACTED, confirm, _KEY_FENCE)


#: No key in KEYS is shorter or contains white space, so shorter words need no search.
MIN_KEY = 16
#: Keys in the forms that vendors publish for secret scanners.
KEYS = (
    _key("sk-", r"sk-[A-Za-z0-9_-]{20,}", _is_random),  # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse, LiteLLM
    _key("AKIA ASIA ABIA ACCA", r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS
    _key("ghp_ gho_ ghs_ ghr_ ghu_ github_pat_", r"(?:gh[psoru]|github_pat)_[A-Za-z0-9_]{20,}"),  # GitHub
    _key("glpat- glptt- gldt- glrt- glcbt-", r"gl(?:pat|ptt|dt|rt|cbt)-[A-Za-z0-9_.-]{16,}"),  # GitLab
    _key("xox xapp-", r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}", _is_random),  # Slack
    _key("hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{16,}"),
    _key("AIza", r"AIza[A-Za-z0-9_-]{30,}"),  # Google
    _key("ya29. GOCSPX-", r"(?:ya29\.|GOCSPX-)[A-Za-z0-9_-]{20,}"),
    _key("k_live_ k_test_", r"[rs]k_(?:live|test)_[A-Za-z0-9]{10,}"),  # Stripe
    _key("whsec_", r"whsec_[A-Za-z0-9+/=]{20,}"),
    _key("hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{30,}"),  # Hugging Face
    _key("npm_", r"npm_[A-Za-z0-9]{30,}"),
    _key("pypi-", r"pypi-[A-Za-z0-9_-]{50,}"),
    _key("SG.", r"SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}"),  # SendGrid
    _key("SK AC", r"(?:SK|AC)[0-9a-f]{32}(?![A-Za-z0-9])"),  # Twilio
    _key("key-", r"key-[0-9a-f]{32}(?![A-Za-z0-9])"),  # Mailgun
    _key("_v1_", r"do[oprt]_v1_[A-Za-z0-9]{32,}"),  # DigitalOcean
    _key("dak_ ck_", r"(?:dak|ck)_[A-Za-z0-9_-]{16,}", _is_random),  # Cost Katana
    _key(
        "gsk_ xai- pplx- nvapi- r8_", r"(?:gsk_|xai-|pplx-|nvapi-|r8_)[A-Za-z0-9_-]{30,}", _is_random
    ),  # Groq and others
    _key("lsv2_", r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{30,}"),  # LangSmith
    _key("dapi", r"dapi[0-9a-f]{32}(?:-[0-9])?(?![A-Za-z0-9])"),  # Databricks
    _key("hvs. hvb.", r"hv[sb]\.[A-Za-z0-9_-]{24,}"),  # Vault
    _key("glc_ glsa_", r"gl(?:c|sa)_[A-Za-z0-9_+/=]{30,}"),  # Grafana
    _key("shp", r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}"),  # Shopify
    _key("dckr_pat_ figd_ lin_api_", r"(?:dckr_pat|figd|lin_api)_[A-Za-z0-9_-]{20,}"),  # Docker, Figma, Linear
    Pattern(
        "jwt",
        ("eyJ",),
        re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]{4,}+(?:\.[A-Za-z0-9_-]*+){0,3})"),
        JWT_REDACTED,
        fence=_KEY_FENCE,
    ),
)

#: Matches any hint of KEYS; a text without a match contains none of these keys.
KEY_HINT = re.compile("|".join(re.escape(hint) for pattern in KEYS for hint in pattern.hints))

#: A private key in PEM; without an END line the key was cut off, and the rest of the text is removed.
PRIVATE_KEY = Pattern(
    "private_key",
    ("PRIVATE KEY",),
    re.compile(
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        re.DOTALL,
    ),
    KEY_REDACTED,
)

#: ``user:password`` in ``scheme://user:password@host``, up to the last @ before the path. A user without a password is
#: removed if it has at least 16 characters, because it may be a key.
URL_CREDENTIALS = Pattern(
    "url_credentials",
    ("://",),
    re.compile(
        r"(?<=://)(?!\[CREDENTIALS)"
        r"(?:[^\s/?#\"'<>:@]{0,256}:[^\s/?#\"'<>]{1,512}|[^\s/?#\"'<>:@]{16,512})(?=@[^\s@])"
    ),
    CREDENTIALS_REDACTED,
    fence=re.compile(r"\s"),
)


def _is_credentials(match: re.Match[str]) -> bool:
    """Return True if the word after ``Basic`` is base64 of a text with a colon, as ``user:password``."""
    coded = match["coded"].rstrip("=")
    try:
        plain = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True).decode()
    except ValueError:
        # Not base64, not UTF-8, or with a letter outside ASCII: with IGNORECASE, a-z also matches the dotless ı.
        return False
    return ":" in plain and plain.isprintable()


def _is_token(match: re.Match[str]) -> bool:
    """Return True if the word after ``bearer`` has a digit or 24 characters, unlike ``bearer authentication``."""
    return len(match["token"]) >= 24 or _DIGIT.search(match["token"]) is not None


#: What is in no secret of SCHEMES; ASCII only, because IGNORECASE makes some other letters equal to ASCII ones.
_SCHEME_FENCE = re.compile(r"[,;!?()\[\]{}<>|*&^%$#@`]")
#: Secrets after a word that says what follows; the hints are searched in the case-folded text.
SCHEMES = (
    Pattern(
        "bearer",
        ("bearer",),
        re.compile(r"(?<![^\W_])(?P<keep>bearer[\s:=\\\"']{1,8}+)(?P<token>[a-z0-9._~+/=-]{8,}+)", re.IGNORECASE),
        TOKEN_REDACTED,
        _is_token,
        _SCHEME_FENCE,
    ),
    Pattern(
        "basic",
        ("basic",),
        re.compile(
            r"(?<![^\W_])(?P<keep>basic\s{1,8}+)(?P<coded>[a-z0-9+/]{4,4096}+={0,2})(?![a-z0-9])", re.IGNORECASE
        ),
        TOKEN_REDACTED,
        _is_credentials,
        _SCHEME_FENCE,
    ),
    # A secret key of AWS is 40 characters without a prefix, so it is recognised by the name before it.
    Pattern(
        "api_key",
        ("secret",),
        re.compile(
            r"(?P<keep>secret[-_ ]?(?:access)?[-_ ]?key[\\\"'\s:=]{1,8}+)[a-z0-9/+]{40}(?![a-z0-9/+=])", re.IGNORECASE
        ),
        API_KEY_REDACTED,
        fence=_SCHEME_FENCE,
    ),
)
