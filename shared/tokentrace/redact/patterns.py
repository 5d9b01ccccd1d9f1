"""
What secrets look like wherever they stand: keys of vendors, tokens, private keys, credentials in a URL.

Each pattern reads a text in a number of steps that grows with its length and no faster: what is repeated without a
bound is followed by nothing that could fail, and what needs a second look gets it once the match is over.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import NamedTuple

API_KEY_REDACTED = "[API_KEY_REDACTED]"
TOKEN_REDACTED = "[TOKEN_REDACTED]"
JWT_REDACTED = "[JWT_REDACTED]"
KEY_REDACTED = "[KEY_REDACTED]"
CREDENTIALS_REDACTED = "[CREDENTIALS_REDACTED]"

#: How often each kind of secret was taken out.
RedactionCounts = dict[str, int]


class Pattern(NamedTuple):
    """
    A form of secret.

    Attributes:
        kind: What it is counted as.
        hints: One of them is in every text that holds such a secret; looked for first, because that is fast.
        regex: What is taken out; a group called ``keep`` stays.
        stand_in: What stands there instead.
        confirm: Says of a match whether it is one; None = always.
    """

    kind: str
    hints: tuple[str, ...]
    regex: re.Pattern[str]
    stand_in: str
    confirm: Callable[[re.Match[str]], bool] | None = None

    def hinted(self, text: str) -> bool:
        """False when *text* holds none."""
        return any(hint in text for hint in self.hints)

    def sub(self, text: str, found: RedactionCounts) -> str:
        """*text* without these secrets; *found* is told how many there were."""
        if self.regex.search(text) is None:
            return text
        keeps = "keep" in self.regex.groupindex
        count = 0

        def hide(match: re.Match[str]) -> str:
            nonlocal count
            if self.confirm is not None and not self.confirm(match):
                return match[0]
            count += 1
            return match["keep"] + self.stand_in if keeps else self.stand_in

        clean = self.regex.sub(hide, text)
        if count:
            found[self.kind] = found.get(self.kind, 0) + count
        return clean


_DIGIT = re.compile(r"[0-9]")
_RANDOM = re.compile(r"(?=[A-Za-z]{0,11}[0-9])[A-Za-z0-9]{12}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}")


def _is_random(match: re.Match[str]) -> bool:
    """True when twelve characters in a row look drawn: names of words and dashes (``sk-learn-…``) do not."""
    return _RANDOM.search(match[0]) is not None


def _key(hints: str, body: str, confirm: Callable[[re.Match[str]], bool] | None = None) -> Pattern:
    """A vendor's key: it does not begin inside a word."""
    regex = re.compile(rf"(?<![A-Za-z0-9]){body}")
    return Pattern("api_key", tuple(hints.split()), regex, API_KEY_REDACTED, confirm)


#: No key below is shorter, or holds white space.
MIN_KEY = 16
#: Forms that vendors publish for scanners of secrets.
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
    ),
)

#: Something of this is in every text that holds one of KEYS.
KEY_HINT = re.compile("|".join(re.escape(hint) for pattern in KEYS for hint in pattern.hints))

#: One that is cut off has no end: then all that follows is key.
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

#: ``scheme://user:password@host`` up to the last @ before the path; a user alone when it is as long as a key.
URL_CREDENTIALS = Pattern(
    "url_credentials",
    ("://",),
    re.compile(
        r"(?<=://)(?!\[CREDENTIALS)"
        r"(?:[^\s/?#\"'<>:@]{0,256}:[^\s/?#\"'<>]{1,512}|[^\s/?#\"'<>:@]{16,512})(?=@[^\s@])"
    ),
    CREDENTIALS_REDACTED,
)


def _is_credentials(match: re.Match[str]) -> bool:
    """True when ``user:password`` in base64 follows ``Basic``, and not an English word."""
    coded = match["coded"].rstrip("=")
    try:
        plain = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in plain and plain.isprintable()


def _is_token(match: re.Match[str]) -> bool:
    """True for what is no English word: ``bearer authentication`` is about tokens and holds none."""
    return len(match["token"]) >= 24 or _DIGIT.search(match["token"]) is not None


#: Looked for in a text whose case is folded, as their hints are.
SCHEMES = (
    Pattern(
        "bearer",
        ("bearer",),
        re.compile(r"(?<![^\W_])(?P<keep>bearer[\s:=\\\"']{1,8}+)(?P<token>[a-z0-9._~+/=-]{8,}+)", re.IGNORECASE),
        TOKEN_REDACTED,
        _is_token,
    ),
    Pattern(
        "basic",
        ("basic",),
        re.compile(
            r"(?<![^\W_])(?P<keep>basic\s{1,8}+)(?P<coded>[a-z0-9+/]{4,4096}+={0,2})(?![a-z0-9])", re.IGNORECASE
        ),
        TOKEN_REDACTED,
        _is_credentials,
    ),
    # The forty characters of AWS have no form of their own, only a name before them.
    Pattern(
        "api_key",
        ("secret",),
        re.compile(
            r"(?P<keep>secret[-_ ]?(?:access)?[-_ ]?key[\\\"'\s:=]{1,8}+)[a-z0-9/+]{40}(?![a-z0-9/+=])", re.IGNORECASE
        ),
        API_KEY_REDACTED,
    ),
)
