"""Asking for the usage of a stream where the application does not, so that its cost is known."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from tokentrace.client.track.decoding import KNOWN

#: Hosts that take the option and honour it. Other vendors refuse requests with options that they do not know.
HOSTS = frozenset({"api.openai.com"})
_NAME = "stream_options"


def asking(options: Any, client: Any, hosts: Collection[str]) -> Any:
    """
    Return a copy of *options*, those of a streamed request, that asks for usage; None if nothing may be asked.

    Nothing is asked where the application gives stream options itself, or where the host is not known to take them.

    Args:
        options: The options of the request, as the SDK makes them.
        client: The client that sends it.
        hosts: Further hosts that take the option, as ``host`` or ``host:port``.
    """
    body = options.json_data
    extra = options.extra_json if isinstance(options.extra_json, Mapping) else {}
    if not isinstance(body, Mapping) or _NAME in body or _NAME in extra:
        return None
    url = urlsplit(str(client.base_url))
    if url.hostname not in HOSTS and not {url.hostname, url.netloc} & set(hosts):
        return None
    if not (body.get("stream") is True or extra.get("stream") is True):
        return None
    encodings = _encodings(options, client)
    if encodings is None:
        return None
    asked = copy.copy(options)
    asked.json_data = {**body, _NAME: {"include_usage": True}}
    if not encodings <= KNOWN:
        # The frame that states the usage is found, and left out, in encodings that the standard library knows.
        asked.headers = {**_headers(options), "Accept-Encoding": "gzip, deflate"}
    return asked


def _headers(options: Any) -> dict[str, Any]:
    return dict(options.headers) if isinstance(options.headers, Mapping) else {}


def _encodings(options: Any, client: Any) -> frozenset[str] | None:
    """Return the encodings that the client accepts; None if the application chose others than ``KNOWN``."""
    chosen = [value for name, value in _headers(options).items() if name.lower() == "accept-encoding"]
    own = getattr(client, "_custom_headers", None)
    if isinstance(own, Mapping):
        chosen += [value for name, value in own.items() if name.lower() == "accept-encoding"]
    accepted = chosen[0] if chosen else client._client.headers.get("accept-encoding", "")
    names = frozenset(part.partition(";")[0].strip().lower() for part in str(accepted).split(","))
    return None if chosen and not names <= KNOWN else names
