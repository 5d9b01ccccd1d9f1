"""``http_server``: paths, limits and the token of the HTTP API."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import Duration, Section, without_effect
from tokentrace.errors import ConfigError

_PATHS = ("metrics_path", "prometheus_path", "ingest_path", "health_path")
_PATH = {"pattern": "^/"}
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
    ingest_url: Annotated[
        str, Meta(description="URL of the ingest to which an api in a process of its own forwards posted spans.")
    ] = ""
    max_batch_size: Annotated[int, Meta(ge=1, description="Maximum number of spans in a POST request.")] = 1000
    max_body_bytes: Annotated[int, Meta(ge=1, description="Maximum size of the body of a POST request, in bytes.")] = (
        8 * 1024 * 1024
    )

    def check(self) -> None:
        """
        Check the paths and the token.

        Raises:
            ConfigError: A path does not start with / or is that of another key, metrics_path is /, or the token begins
                or ends with white space; the message names the key.
        """
        key_of: dict[str, str] = {}
        for key in _PATHS:
            path = getattr(self, key)
            if not path.startswith("/"):
                raise ConfigError(f"http_server.{key}: must start with /")
            if path in key_of:
                raise ConfigError(f"http_server.{key}: {path} is the path of http_server.{key_of[path]} already")
            key_of[path] = key
        if self.metrics_path == "/":
            raise ConfigError("http_server.metrics_path: must name more than /")
        if self.auth_token != self.auth_token.strip():
            raise ConfigError("http_server.auth_token: the token begins or ends with white space, such as a newline")
