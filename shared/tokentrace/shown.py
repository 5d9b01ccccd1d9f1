"""
What of a URL may be shown: in logs, errors, answers, records and on standard output.

A URL may hold secrets: user and password, an API key in the query, and the whole path of a webhook of Slack, Discord or
Teams. So of every URL only scheme, host and port are shown.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: A name or an address, with or without a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/?#@:\\\[\]]+)(:[0-9]{0,5})?")


def shown_url(url: str) -> str:
    """
    Return *url* as it may be shown: ``scheme://host:port``, then ``/...`` if there is a path, a query or a fragment.

    If the host cannot be read for certain, because a secret may stand in its place, ``...`` stands for it.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return "..."
    rest = url[scheme.end() :]
    try:
        authority = urlsplit(f"//{rest}").netloc
    except ValueError:
        return f"{scheme[0]}..."
    host, behind = authority.rpartition("@")[2], rest[len(authority) :]
    # An unescaped "/", "?" or "#" in a password ends the authority early, and the "@" follows only behind it.
    if not _HOST.fullmatch(host) or "@" in behind:
        return f"{scheme[0]}..."
    return f"{scheme[0]}{host}{'' if behind in ('', '/') else '/...'}"
