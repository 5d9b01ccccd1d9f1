"""``otlp``: the endpoints for OpenTelemetry's OTLP."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tokentrace.config.forward import ForwardTarget
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
    forward: Annotated[
        list[ForwardTarget],
        Meta(description="Other backends to which ingest sends on what it accepted, by OTLP over HTTP."),
    ] = msgspec.field(default_factory=list)
    forward_allow_hosts: Annotated[
        list[str] | None,
        Meta(
            description="Names, addresses and CIDR ranges that otlp.forward may send to, each with :port if wanted. "
            "Unset = every host with a public address, [] = none. A listed name may have any address, so a collector "
            "on this machine or in a private network must be listed. Link-local and metadata addresses are always "
            "refused."
        ),
    ] = None

    def check(self) -> None:
        """
        Check the targets, and that the two addresses differ.

        Raises:
            ConfigError: A target is invalid, two have one name, or the addresses are the same text.
        """
        names: set[str] = set()
        for index, target in enumerate(self.forward):
            target.check_at(f"otlp.forward[{index}]")
            if target.name in names:
                raise ConfigError(f"otlp.forward[{index}].name: {target.name} is the name of another target already")
            names.add(target.name)
        if self.http_addr and self.http_addr == self.grpc_addr:
            raise ConfigError(f"otlp.grpc_addr: {self.grpc_addr} is the address of otlp.http_addr already")
