"""``otlp``: the endpoints for OpenTelemetry's OTLP."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import LARGEST, Section
from tokentrace.errors import ConfigError

_MIN_BATCH = 8192


class Otlp(Section, frozen=True, kw_only=True):
    """The endpoints for OpenTelemetry's OTLP; OTLP over HTTP is always served where spans are posted."""

    http_addr: Annotated[
        str,
        Meta(
            description="A further address at which ingest and `tokentrace serve` take only OTLP over HTTP, "
            "such as :4318; empty = none. Without a host: 127.0.0.1."
        ),
    ] = ""
    grpc_addr: Annotated[
        str,
        Meta(
            description="Address at which ingest and `tokentrace serve` take OTLP over gRPC, such as :4317; empty = "
            "none. Without a host: 127.0.0.1. It needs the extra `grpc`."
        ),
    ] = ""
    max_body_bytes: Annotated[
        int,
        Meta(ge=1, le=LARGEST, description="Maximum size of an OTLP request in bytes, before and after decompression."),
    ] = 64 * 1024 * 1024
    max_batch_size: Annotated[
        int,
        Meta(
            ge=_MIN_BATCH,
            le=LARGEST,
            description="Maximum number of spans or log records in an OTLP request; OpenTelemetry's collector sends "
            "8192 at a time.",
        ),
    ] = 65_536

    def check(self) -> None:
        """
        Check that the two addresses differ.

        Raises:
            ConfigError: They are the same text.
        """
        if self.http_addr and self.http_addr == self.grpc_addr:
            raise ConfigError(f"otlp.grpc_addr: {self.grpc_addr} is the address of otlp.http_addr already")
