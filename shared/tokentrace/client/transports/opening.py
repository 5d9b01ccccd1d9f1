"""From a URL to a transport."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Unpack
from urllib.parse import parse_qsl, unquote

from tokentrace.client.transports.contract import Transport
from tokentrace.client.transports.file import FileTransport
from tokentrace.client.transports.noop import NoopTransport
from tokentrace.client.transports.pipeline import NatsTransport, PipelineTransport, ReporterOptions
from tokentrace.client.transports.stdout import StdoutTransport
from tokentrace.errors import ConfigError, quoted, shorten

_SCHEMES = ("nats", "tls", "http", "https", "file", "stdout", "noop")
#: A scheme may be shown; anything else before a colon may be a part of a password.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")


class TransportOptions(ReporterOptions, total=False):
    """
    The options of all transports that a URL can name; None stands for the default.

    Attributes:
        rotate, max_size_mb, max_files, sync, buffer_kb, disk_days: Those of a ``FileTransport``.
        pretty: That of a ``StdoutTransport``.
    """

    rotate: bool | None
    max_size_mb: float | None
    max_files: int | None
    sync: bool | None
    buffer_kb: int | None
    disk_days: int | None
    pretty: bool | None


def open_transport(
    url: str | None = None, *, source: str | None = None, **options: Unpack[TransportOptions]
) -> Transport:
    """
    Return the transport that *url* names.

    Args:
        url: ``nats://host``, ``tls://host``, ``http://host`` or ``https://host`` for a pipeline, or ``noop:``, which
            discards spans. ``file:path`` and ``file:///path`` write JSON lines, ``stdout:`` prints them. Their options
            follow a question mark: ``stdout:?pretty=true``, ``file:traces.jsonl?rotate=true&max_files=3``. None reads
            ``TOKENTRACE_URL``; without it, and for "", spans are ignored.
        source: The name of this program; None reads ``TOKENTRACE_SOURCE``, or else takes the name of its main file.
        options: Those of the transport that *url* names; what stands in *url* wins. Those of a ``Reporter`` are ignored
            by the other transports, except for ``redactor``.

    Returns:
        The transport, which connects when it has spans.

    Raises:
        ConfigError: The scheme of *url* is unknown, or *url* or an option cannot be used.
    """
    named = os.environ.get("TOKENTRACE_URL") if url is None else url
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not named:
        return PipelineTransport(url, source=source, **_pipeline_options(given))
    scheme, colon, rest = named.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        raise ConfigError(f"transport: the URL has no scheme; it must start with one of {_listed()}")
    scheme = scheme.lower()
    if scheme in ("nats", "tls"):
        return NatsTransport(named, source=source, **_pipeline_options(given))
    if scheme in ("http", "https"):
        return PipelineTransport(named, source=source, **_pipeline_options(given))
    path, _, query = rest.partition("?")
    if scheme == "noop":
        if rest.strip("/"):
            raise ConfigError("transport: noop: takes no path and no options")
        return NoopTransport()
    if scheme == "stdout":
        if path.strip("/"):
            raise ConfigError("transport: stdout: takes no path")
        return StdoutTransport(**_line_options(scheme, given, query, {"pretty": _flag}))
    if scheme == "file":
        return FileTransport(_path(path), **_line_options(scheme, given, query, _FILE_OPTIONS))
    raise ConfigError(f"transport: the scheme {scheme}: is none of {_listed()}")


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


_FILE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "rotate": _flag,
    "max_size_mb": float,
    "max_files": int,
    "sync": _flag,
    "buffer_kb": int,
    "disk_days": int,
}


def _path(path: str) -> str:
    """Return the path of a file from what follows ``file:``."""
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ConfigError("transport: file: names a host; write file:path or file:///path")
        path = f"/{path}"
    return unquote(path)


def _pipeline_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return *given* if all of them are options of a ``Reporter``."""
    unknown = sorted(given.keys() & TransportOptions.__annotations__.keys() - ReporterOptions.__annotations__.keys())
    if unknown:
        raise ConfigError(f"transport: {', '.join(unknown)}: is no option of a transport to a pipeline")
    return dict(given)


def _line_options(
    scheme: str, given: Mapping[str, Any], query: str, known: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """Return the options of a transport that writes lines: those in *given*, then those in the query of the URL."""
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in known or name == "redactor":
            options[name] = value
        elif name not in ReporterOptions.__annotations__:
            raise _no_such_option(scheme, name, known)
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise _no_such_option(scheme, name, known)
        try:
            options[name] = known[name](text)
        except ValueError as exc:
            raise ConfigError(f"transport: {scheme}: {name}={shorten(text)} cannot be read") from exc
    return options


def _no_such_option(scheme: str, name: str, known: Mapping[str, object]) -> ConfigError:
    return ConfigError(f"transport: {scheme}: has no option {quoted(name)}, only {', '.join(known)}")


def _listed() -> str:
    return ", ".join(f"{scheme}:" for scheme in _SCHEMES)
