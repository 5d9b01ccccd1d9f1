"""URLs of NATS servers."""

from __future__ import annotations

from urllib.parse import urlsplit

from tokentrace.errors import ConfigError, shorten
from tokentrace.shown import shown_url

_SCHEMES = ("nats", "tls", "ws", "wss")


def parse_urls(text: str) -> list[str]:
    """
    Return the server URLs in *text*, separated by commas; a URL without a scheme gets ``nats://``.

    Raises:
        ConfigError: A part is not a URL of NATS; the message shows the part without secrets.
    """
    return [_checked(_with_scheme(url)) for url in _split(text)]


def shown_urls(text: str) -> str:
    """Return *text*, one or several server URLs separated by commas, as it may be shown; see ``shown_url``."""
    return ",".join(shown_url(_with_scheme(url)) for url in _split(text))


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"nats://{url}"


def _split(text: str) -> list[str]:
    urls: list[str] = []
    for part in text.split(","):
        if urls and "@" in part and "://" not in part:
            # The comma before this part belongs to a password, so the part continues the URL before it.
            urls[-1] += f",{part}"
        else:
            urls.append(part.strip())
    return urls


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and not any(letter.isspace() for letter in url)
        # A name with an empty or a very long part would be looked up again and again, and never be found.
        (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        shown = shorten(shown_url(url))
        raise ConfigError(
            f"NATS URL {shown!r} is not of the form nats://host:port, or several of them separated by commas"
        )
    return url
