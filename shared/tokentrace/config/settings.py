"""``tokentrace.yml`` as a whole: one schema for all programs. Each program checks the whole file and uses its part."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokentrace.config.custom_metrics import CustomMetric
from tokentrace.config.http_server import HttpServer
from tokentrace.config.mist import Mist
from tokentrace.config.nats import Nats
from tokentrace.config.pricing import Pricing
from tokentrace.config.redaction import Redaction
from tokentrace.config.retention import Retention
from tokentrace.config.section import Section
from tokentrace.config.storage import Storage
from tokentrace.config.transport import Transport
from tokentrace.errors import ConfigError


class Delivery(Section, frozen=True, kw_only=True):
    """Where the events of a rule are delivered, besides the alert subject."""

    type: Annotated[
        Literal["stdout", "http", "webhook", "alertmanager", "custom"], Meta(description="The kind of delivery.")
    ] = "stdout"
    url: Annotated[str | None, Meta(description="URL of a webhook or of an Alertmanager.")] = None
    target: Annotated[str | None, Meta(description="Function or object of type custom, as package.module:name.")] = None
    timeout: Annotated[str | None, Meta(description="Timeout of one attempt, such as 5s, which is the default.")] = None
    headers: Annotated[dict[str, str] | None, Meta(description="Headers of each request.")] = None
    max_retries: Annotated[int | None, Meta(description="Attempts after the first one; 12 by default.")] = None
    send_resolved: Annotated[bool | None, Meta(description="Also deliver the end of an episode.")] = None
    secret: Annotated[str | None, Meta(description="Key of the signature in the header X-Tokentrace-Signature.")] = None
    format: Annotated[Literal["tokentrace", "alertmanager"] | None, Meta(description="Form of a webhook's body.")] = (
        None
    )


class AlertDelivery(Section, frozen=True, kw_only=True):
    """Where the events of all rules may be delivered."""

    allow_hosts: Annotated[
        list[str] | None,
        Meta(
            description="Names, addresses and CIDR ranges that deliveries may go to, each with :port if wanted. "
            "Unset = every host, [] = none. A listed name may have any address. Link-local and metadata addresses "
            "(169.254.0.0/16, fe80::/10) are always refused. Deliveries of type custom are not limited."
        ),
    ] = None


class AlertRule(Section, frozen=True, kw_only=True):
    """A rule as the file writes it. The alerter checks what its values mean."""

    name: Annotated[str, Meta(description="Name of the rule.")]
    metric: Annotated[str, Meta(description="Any number of GET /metrics/{name}, or a custom metric.")]
    op: Annotated[
        Literal["gt", "gte", "lt", "lte", ">", ">=", "<", "<="], Meta(description="How the value is compared.")
    ]
    threshold: Annotated[float, Meta(description="What the value is compared with.")]
    window: Annotated[str, Meta(description="Window of the metric, such as 1h.")]
    eval_interval: Annotated[
        str | None,
        Meta(
            description="How often the rule is evaluated; by default a tenth of the window, at least 30 s, "
            "or 1 s for windows under 5 minutes."
        ),
    ] = None
    cooldown: Annotated[
        str | None, Meta(description="Time for which a firing rule does not fire again; by default the window.")
    ] = None
    min_spans: Annotated[int, Meta(description="The rule decides nothing on fewer spans than this.")] = 0
    filter: Annotated[dict[str, str], Meta(description="Dimensions and attributes that a span must have.")] = (
        msgspec.field(default_factory=dict)
    )
    delivery: Annotated[Delivery | None, Meta(description="Where events are delivered besides the subject.")] = None
    level: Annotated[Literal["warning", "critical"], Meta(description="Severity of the events.")] = "warning"
    silenced: Annotated[bool, Meta(description="Evaluate the rule and publish nothing.")] = False
    for_: Annotated[str | None, Meta(description="How long the condition must hold before the rule fires.")] = (
        msgspec.field(default=None, name="for")
    )
    recovery_threshold: Annotated[
        float | None, Meta(description="Value at which a firing rule is resolved; by default the threshold.")
    ] = None
    no_data: Annotated[
        Literal["ignore", "fire", "keep"] | None,
        Meta(
            description="What happens without data. ignore, the default: a firing rule is resolved; fire: the rule "
            "fires; keep: its state stays."
        ),
    ] = None
    group_by: Annotated[
        str | None, Meta(description="Dimension or attribute; each of its values has a state of its own.")
    ] = None
    change: Annotated[
        Literal["absolute", "percent"] | None,
        Meta(description="Compare the difference to the window before, as a number or in percent."),
    ] = None


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
        str | None, Meta(description="Cooldown of the rules that set none; by default each rule's window.")
    ] = None
    alert_delivery: Annotated[AlertDelivery, Meta(description="Limits of all deliveries.")] = AlertDelivery()
    custom_metrics: Annotated[list[CustomMetric], Meta(description="Custom metrics.")] = msgspec.field(
        default_factory=list
    )
    pricing: Annotated[Pricing, Meta(description="Rates that take precedence over the price tables.")] = Pricing()
    nats: Annotated[Nats, Meta(description="The broker, the shards, and the sizes of the streams.")] = Nats()
    storage: Annotated[Storage, Meta(description="Where a service keeps its files.")] = Storage()
    redaction: Annotated[Redaction, Meta(description="Which values are removed before storage.")] = Redaction()
    mist: Annotated[Mist, Meta(description="The endpoint for messages of MIST.")] = Mist()

    def check(self) -> None:
        """
        Check every section.

        Raises:
            ConfigError: Names the key.
        """
        for section in (self.nats, self.http_server, self.pricing, self.transport, self.retention):
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
        """Paths that need no bearer token: health checks, and ``/mist``, whose Go clients cannot send one."""
        return ("/healthz", "/readyz") if self.mist.require_auth else ("/healthz", "/readyz", "/mist")
