"""Made-up secrets of many kinds. Each place has its own, so that a secret that is found shows where it was put in."""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Callable
from typing import NamedTuple

_ALNUM = string.ascii_letters + string.digits
_UPPER = string.ascii_uppercase + string.digits
_HEX = "0123456789abcdef"


class Canary(NamedTuple):
    """
    A made-up secret in its usual notation.

    Attributes:
        text: A text that contains the secret.
        needle: The part of the text that redaction must remove.
    """

    text: str
    needle: str


def draw_characters(seed: str, length: int, alphabet: str = _ALNUM) -> str:
    """Return *length* characters that depend on *seed* only, with a digit among the first three."""
    digest = b"".join(hashlib.sha256(f"{seed}:{block}".encode()).digest() for block in range(length // 32 + 1))
    text = "".join(alphabet[byte % len(alphabet)] for byte in digest[:length])
    return text[0] + str(digest[0] % 8 + 2) + text[2:]


def _plain(pattern: str, length: int, alphabet: str = _ALNUM) -> Callable[[str], Canary]:
    def build(seed: str) -> Canary:
        needle = draw_characters(seed, length, alphabet)
        return Canary(pattern.replace("@@", needle), needle)

    return build


def _jwt(seed: str) -> Canary:
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    claims = base64.urlsafe_b64encode(f'{{"sub":"{draw_characters(seed, 12)}"}}'.encode()).decode().rstrip("=")
    return Canary(f"{header}.{claims}.{draw_characters(seed + 's', 43)}", claims)


def _basic(seed: str) -> Canary:
    coded = base64.b64encode(f"user:{draw_characters(seed, 16)}".encode()).decode()
    return Canary(f"sent Basic {coded} along", coded.rstrip("="))


def _pem(end: str) -> Callable[[str], Canary]:
    def build(seed: str) -> Canary:
        needle = draw_characters(seed, 44)
        return Canary(f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{needle}\n{end}", needle)

    return build


def _card(seed: str) -> Canary:
    digits = [4, *(int(char) for char in draw_characters(seed, 14, string.digits))]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[::-2]]
    check = -(sum(doubled) + sum(digits[-2::-2])) % 10
    number = "".join(map(str, [*digits, check]))
    shown = " ".join(number[at : at + 4] for at in range(0, 16, 4))
    return Canary(f"charged {shown} twice", shown)


def _number(pattern: str, first: str = "") -> Callable[[str], Canary]:
    def build(seed: str) -> Canary:
        digits = iter(first + draw_characters(seed, 12, string.digits)[1:])
        needle = "".join(next(digits) if char == "#" else char for char in pattern)
        return Canary(f"call {needle} now", needle)

    return build


#: Kind of secret -> the function that builds one from a seed.
KINDS: dict[str, Callable[[str], Canary]] = {
    "openai project": _plain("sk-proj-@@", 48),
    "openai": _plain("sk-@@", 48),
    "anthropic": _plain("sk-ant-api03-@@", 80),
    "openrouter": _plain("sk-or-v1-@@", 64, _HEX),
    "aws id": _plain("AKIA@@", 16, _UPPER),
    "aws session id": _plain("ASIA@@", 16, _UPPER),
    "aws secret": _plain("aws_secret_access_key = @@", 40),
    "github": _plain("ghp_@@", 36),
    "github oauth": _plain("gho_@@", 36),
    "github app": _plain("ghs_@@", 36),
    "github fine": _plain("github_pat_@@", 60),
    "gitlab": _plain("glpat-@@", 20),
    "slack bot": _plain("xoxb-123456789012-@@", 24),
    "slack user": _plain("xoxp-123456789012-@@", 32),
    "slack hook": _plain("https://hooks.slack.com/services/T012345/B012345/@@", 24),
    "google": _plain("AIzaSy@@", 33),
    "google oauth": _plain("ya29.@@", 40),
    "stripe": _plain("sk_live_@@", 24),
    "stripe restricted": _plain("rk_live_@@", 24),
    "stripe hook": _plain("whsec_@@", 32),
    "hugging face": _plain("hf_@@", 34),
    "npm": _plain("npm_@@", 36),
    "pypi": _plain("pypi-AgEIcHlwaS5vcmc@@", 60),
    "sendgrid": _plain("SG.abcdefghij0123456789kl.@@", 43),
    "twilio key": _plain("SK@@", 32, _HEX),
    "twilio account": _plain("AC@@", 32, _HEX),
    "digitalocean": _plain("dop_v1_@@", 64, _HEX),
    "cost katana": _plain("dak_@@", 32),
    "cost katana short": _plain("ck_@@", 32),
    "groq": _plain("gsk_@@", 52),
    "langsmith": _plain("lsv2_pt_@@", 42, _HEX),
    "databricks": _plain("dapi@@", 32, _HEX),
    "vault": _plain("hvs.@@", 40),
    "grafana": _plain("glsa_@@", 40),
    "shopify": _plain("shpat_@@", 32, _HEX),
    "jwt": _jwt,
    "bearer": _plain("curl -H 'X: Bearer @@'", 24),
    "basic": _basic,
    "private key": _pem("-----END RSA PRIVATE KEY-----"),
    "private key cut off": _pem(""),
    "url": _plain("postgres://app:@@@db.example.com:5432/shop", 20),
    "url token": _plain("https://@@@git.example.com/repo.git", 24),
    "email": _plain("mail @@@example.com today", 16),
    "phone": _number("(###) ###-####", "4"),
    "phone abroad": _number("+49 ## ########", "3"),
    "ssn": _number("###-##-####"),
    "card": _card,
    "password": _plain("login failed: password=@@", 16),
    "api key": _plain("api_key: @@", 20),
    "json secret": _plain('{"client_secret": "@@"}', 20),
    "header": _plain("Authorization: Digest @@", 24),
}


def canary(kind: str, place: str) -> Canary:
    """Return the secret of *kind* for *place*; the same arguments give the same secret."""
    return KINDS[kind](f"{kind}/{place}")
