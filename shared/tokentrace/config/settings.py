"""The schema of ``tokentrace.yml``. Each program checks the whole file and uses the part that it needs."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tokentrace.config.alerts import AlertRule
from tokentrace.config.custom_metrics import CustomMetric
from tokentrace.config.http_server import HttpServer
from tokentrace.config.mist import Mist
from tokentrace.config.nats import Nats
from tokentrace.config.otlp import Otlp
from tokentrace.config.pricing import Pricing
from tokentrace.config.redaction import Redaction
from tokentrace.config.retention import Retention
from tokentrace.config.section import Section
from tokentrace.config.storage import Storage
from tokentrace.config.transport import Transport
from tokentrace.errors import ConfigError


class AlertDelivery(Section, frozen=True, kw_only=True):
    """Where events may be delivered, and how."""

    allow_hosts: Annotated[
        list[str] | None,
        Meta(
            description="Names, addresses and CIDR ranges that deliveries may go to, each with :port if wanted. "
            "Unset = every host, [] = none. A listed name may have any address. Link-local and metadata addresses "
            "(169.254.0.0/16, fe80::/10) are always refused. Deliveries of type custom are not limited."
        ),
    ] = None
    proxy: Annotated[
        str,
        Meta(
            description="URL of an HTTP proxy for webhooks and Alertmanagers, such as http://user:password@proxy:3128; "
            "empty = none. Its host must be in allow_hosts too, if that is set. The proxy resolves the names of "
            "receivers. HTTP_PROXY and similar variables are ignored."
        ),
    ] = ""


class Settings(Section, frozen=True, kw_only=True):
    """All settings of tokentrace."""

    transport: Annotated[
        Transport,
        Meta(
            description="Client programs only: where an application's tracer sends its spans.",
            extra={"reason": "it is for client programs"},
        ),
    ] = Transport()
    http_server: Annotated[HttpServer, Meta(description="Paths, limits and the token of the HTTP API.")] = HttpServer()
    retention: Annotated[Retention, Meta(description="How long the span store keeps spans.")] = Retention()
    alerts: Annotated[list[AlertRule], Meta(description="Alert rules.")] = msgspec.field(default_factory=list)
    alert_cooldown: Annotated[
        str | None, Meta(description="Cooldown of the rules that have none; by default the window of the rule.")
    ] = None
    alert_delivery: Annotated[AlertDelivery, Meta(description="Where events may be delivered, and how.")] = (
        AlertDelivery()
    )
    custom_metrics: Annotated[list[CustomMetric], Meta(description="Custom metrics.")] = msgspec.field(
        default_factory=list
    )
    pricing: Annotated[Pricing, Meta(description="Rates that take precedence over the price tables.")] = Pricing()
    nats: Annotated[Nats, Meta(description="The broker, the shards, and the sizes of the streams.")] = Nats()
    storage: Annotated[Storage, Meta(description="Where a service keeps its files.")] = Storage()
    redaction: Annotated[Redaction, Meta(description="Which values are removed before storage.")] = Redaction()
    mist: Annotated[Mist, Meta(description="The endpoint for messages of MIST.")] = Mist()
    otlp: Annotated[Otlp, Meta(description="The endpoints for OpenTelemetry's OTLP.")] = Otlp()

    def check(self) -> None:
        """
        Check the sections and the thresholds of the rules.

        Raises:
            ConfigError: A value is invalid; the message names its key.
        """
        sections: tuple[Section, ...] = (self.nats, self.storage, self.http_server, self.retention)
        for section in (*sections, self.pricing, self.transport, self.redaction, self.otlp):
            section.check()
        for index, rule in enumerate(self.alerts):
            if not math.isfinite(rule.threshold):
                raise ConfigError(f"alerts[{index}].threshold: must be a finite number")

    @property
    def customs(self) -> list[dict[str, Any]]:
        """``custom_metrics`` as dicts."""
        return [msgspec.structs.asdict(metric) for metric in self.custom_metrics]

    @property
    def open_paths(self) -> tuple[str, ...]:
        """Paths that need no token or key: health checks, and ``/mist`` unless ``mist.require_auth`` is set."""
        return ("/healthz", "/readyz") if self.mist.require_auth else ("/healthz", "/readyz", "/mist")
