"""``http_server``: paths, limits and the token of the HTTP API."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from tokentrace.config.section import LARGEST, Duration, Section, without_effect
from tokentrace.errors import ConfigError, quoted
from tokentrace.shown import shown_url

_PATHS = ("metrics_path", "prometheus_path", "ingest_path", "health_path")
_PATH = {"pattern": "^/"}
_PATH_FORM = re.compile(r"/|(?:/[A-Za-z0-9._~-]+)+")
#: First names of the paths of fixed routes; a path that can be configured begins with none of them.
TAKEN_PATHS = frozenset(
    {
        *("alerts", "api", "calls", "coverage", "docs", "export", "healthz", "internal", "keys", "mist"),
        *(
            "openapi.json",
            "prices",
            "readyz",
            "rejected",
            "reporters",
            "scores",
            "session",
            "stats",
            "traces",
            "v1",
            "values",
        ),
        *("favicon.svg", "page.css", "page.js", "page.json"),
    }
)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.IGNORECASE)
#: What a header can hold: printable ASCII.
_TOKEN = re.compile(r"[ -~]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CANNOT_LIMIT = "its HTTP server has no such limit, and a live tail or an export may take as long as it needs"


class HttpServer(Section, frozen=True, kw_only=True):
    """The HTTP API: paths, limits and the token."""

    enabled: Annotated[bool, without_effect("Serve HTTP.", "it always serves HTTP")] = False
    addr: Annotated[
        str,
        Meta(
            description="Where the api listens if neither --addr nor TOKENTRACE_ADDR is given; the second address of "
            "`tokentrace serve` if --also is not given. Without a host: 127.0.0.1."
        ),
    ] = ":9090"
    metrics_path: Annotated[str, Meta(description="Path of the metrics.", extra_json_schema=_PATH)] = "/metrics"
    prometheus_path: Annotated[
        str, Meta(description="Path of the metrics in Prometheus' text format.", extra_json_schema=_PATH)
    ] = "/metrics/prometheus"
    ingest_path: Annotated[str, Meta(description="Path to which spans are posted.", extra_json_schema=_PATH)] = "/spans"
    health_path: Annotated[
        str, Meta(description="Path of the health of the whole pipeline.", extra_json_schema=_PATH)
    ] = "/health"
    read_timeout: Annotated[Duration, without_effect("Time to read a request.", _CANNOT_LIMIT)] = Duration(
        5_000_000_000
    )
    write_timeout: Annotated[Duration, without_effect("Time to answer a request.", _CANNOT_LIMIT)] = Duration(
        10_000_000_000
    )
    auth_token: Annotated[
        str,
        Meta(
            description="Bearer token that requests need; empty = none. /healthz, /readyz and /docs need none, and "
            "neither does /mist unless mist.require_auth is set."
        ),
    ] = ""
    hosts: Annotated[
        list[str],
        Meta(
            description="Names and addresses by which clients reach the servers, without a port. Loopback names, the "
            "address at which a request arrives and the host of public_url need not be listed; a request for any other "
            "host is refused."
        ),
    ] = msgspec.field(default_factory=list)
    public_url: Annotated[
        str,
        Meta(
            description="URL under which browsers reach the api, if a proxy stands in front of it. Only pages of this "
            "origin may then ask, and alerts hold a link to their rule; empty = pages of the host and port of the "
            "request, and no links."
        ),
    ] = ""
    allowed_origins: Annotated[
        list[str],
        Meta(
            description="Other origins, such as https://shop.example.com, whose pages may send spans, without cookies."
        ),
    ] = msgspec.field(default_factory=list)
    ingest_url: Annotated[
        str, Meta(description="URL of the ingest to which an api in a process of its own forwards posted spans.")
    ] = ""
    max_batch_size: Annotated[int, Meta(ge=1, le=LARGEST, description="Maximum number of spans in a POST request.")] = (
        1000
    )
    max_body_bytes: Annotated[
        int, Meta(ge=1, le=LARGEST, description="Maximum size of the body of a POST request, in bytes.")
    ] = 8 * 1024 * 1024

    @property
    def public_hosts(self) -> list[str]:
        """The host of ``public_url``, if that is set."""
        host = urlsplit(self.public_url).hostname
        return [host] if host else []

    def check(self) -> None:
        """
        Check the paths, the token, the hosts, the origins and the URL of ingest.

        Raises:
            ConfigError: One of them cannot work; the message names the key.
        """
        self._check_paths()
        token = self.auth_token
        if token != token.strip():
            raise ConfigError("http_server.auth_token: the token begins or ends with white space, such as a newline")
        if not _TOKEN.fullmatch(token):
            raise ConfigError("http_server.auth_token: only printable ASCII can be sent as a token")
        for index, host in enumerate(self.hosts):
            if not _is_host(host):
                raise ConfigError(
                    f"http_server.hosts[{index}]: {quoted(host)} is not a name or an address without port"
                )
        origins = {f"http_server.allowed_origins[{at}]": origin for at, origin in enumerate(self.allowed_origins)}
        if self.public_url:
            origins["http_server.public_url"] = self.public_url.removesuffix("/")
        for key, origin in origins.items():
            if not _is_origin(origin):
                shown = shown_url(origin) if "@" in origin else origin
                raise ConfigError(f"{key}: {quoted(shown)} is not of the form https://host or http://host:port")
        if self.ingest_url and not _is_url(self.ingest_url):
            raise ConfigError(
                f"http_server.ingest_url: {quoted(shown_url(self.ingest_url))} is not an http or https URL"
            )

    def _check_paths(self) -> None:
        key_of: dict[str, str] = {}
        for key in _PATHS:
            path = getattr(self, key)
            if not path.startswith("/"):
                raise ConfigError(f"http_server.{key}: must start with /")
            names = path.split("/")[1:]
            if not _PATH_FORM.fullmatch(path) or "." in names or ".." in names:
                raise ConfigError(f"http_server.{key}: {quoted(path)} is not of the form /name/name")
            if path in key_of:
                raise ConfigError(f"http_server.{key}: {path} is the path of http_server.{key_of[path]} already")
            if names[0] in TAKEN_PATHS:
                raise ConfigError(f"http_server.{key}: {path}: the paths below /{names[0]} are taken")
            if key != "metrics_path" and key != "prometheus_path" and path.startswith(f"{self.metrics_path}/"):
                raise ConfigError(f"http_server.{key}: {path} is below http_server.metrics_path")
            key_of[path] = key
        if self.metrics_path == "/":
            raise ConfigError("http_server.metrics_path: must name more than /")


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return True


def _is_origin(text: str) -> bool:
    """Return True if *text* is an origin as a browser sends it: lower case, without a default port or a path."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == _DEFAULT_PORTS[parts.scheme]:
        return False
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return _is_host(host) and text == f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0 and text == text.strip()
    except ValueError:
        return False
