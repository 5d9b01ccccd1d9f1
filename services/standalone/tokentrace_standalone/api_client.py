"""Requests of commands to the API of a running pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from tokentrace.errors import ConfigError, Rejected, Unavailable, shorten
from tokentrace.shown import shown_url

#: Where ``tokentrace serve`` listens.
DEFAULT_API = "http://127.0.0.1:8700"
_TIMEOUT_S = 30.0


def get_json(url: str, path: str, params: Mapping[str, str]) -> Any:
    """
    Return what ``GET`` *path* answers, decoded.

    The token is that of ``TOKENTRACE_TOKEN``, or else of ``TOKENTRACE_AUTH_TOKEN``.

    Args:
        url: The base URL, such as ``http://127.0.0.1:8700``.

    Raises:
        ConfigError: *url* is not an HTTP URL.
        Rejected: The API refuses the request, and says why.
        Unavailable: The API does not answer, or answers something else.
    """
    check_http_url("--api", url)
    token = os.environ.get("TOKENTRACE_TOKEN") or os.environ.get("TOKENTRACE_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    shown = shown_url(url)
    try:
        with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = client.get(path, params=params)
    except (httpx.InvalidURL, ValueError, UnicodeError) as exc:
        raise ConfigError("--api: the URL cannot be read") from exc
    except httpx.HTTPError as exc:
        raise Unavailable(f"GET {path} at {shown}: {type(exc).__name__}") from exc
    if answer.status_code == 400:
        raise Rejected(_error_of(answer))
    if answer.status_code != 200:
        raise Unavailable(f"GET {path} at {shown}: {answer.status_code} {_error_of(answer)}")
    try:
        return answer.json()
    except ValueError as exc:
        raise Unavailable(f"GET {path} at {shown}: the answer is not JSON") from exc


def check_http_url(option: str, url: str) -> None:
    """
    Check the value of *option*.

    Raises:
        ConfigError: *url* is not an HTTP URL with a host.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{option}: must start with http:// or https://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as exc:
        raise ConfigError(f"{option}: the URL cannot be read") from exc
    if not host or port == 0 or not all(sign.isalnum() or sign in "-._:%" for sign in host):
        raise ConfigError(f"{option}: the URL has no host that can be asked")


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return shorten(answer.text, 200)
