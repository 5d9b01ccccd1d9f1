"""The targets of ``otlp.forward``, with what their settings mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokentrace.bus import subjects
from tokentrace.config import Settings
from tokentrace.dialect.otlp.messages import Signal
from tokentrace.errors import ConfigError, Rejected
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.shown import shown_url
from tokentrace.units import SECOND

_ALLOW_HOSTS = "otlp.forward_allow_hosts"


@dataclass(frozen=True, repr=False)
class Target:
    """
    A backend that takes OTLP over HTTP.

    Attributes:
        url: The URL to which ``/v1/traces`` and the like are appended; may hold secrets.
        headers: Headers of each request; may hold secrets.
        redact: True = secrets are removed from requests, as from records.
        spans: True = spans that did not come by OTLP are sent as well.
        timeout_s: Limit of one request, seconds.
        max_age_ns: How long a request waits at most, nanoseconds; 0 = no limit.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    signals: frozenset[Signal]
    redact: bool = True
    spans: bool = False
    timeout_s: float = 10.0
    max_age_ns: int = 0

    @property
    def stream(self) -> str:
        """The stream of what waits to be sent to it."""
        return subjects.forward_stream(self.name)

    @property
    def shown(self) -> str:
        """Its URL without secrets: scheme, host and port."""
        return shown_url(self.url)

    def url_of(self, signal: Signal) -> str:
        """Return the URL that takes requests of *signal*."""
        return f"{self.url.rstrip('/')}/v1/{signal}"


@dataclass(frozen=True)
class Forwarding:
    """Where ingest sends on what it accepted, and which hosts may be called."""

    targets: tuple[Target, ...] = ()
    allowed: AllowedHosts = field(default_factory=lambda: AllowedHosts((), _ALLOW_HOSTS))

    @classmethod
    def of(cls, settings: Settings) -> Forwarding:
        """
        Return the targets of *settings*.

        Raises:
            ConfigError: A host may not be called; the text names the key.
        """
        allowed = AllowedHosts.parse(settings.otlp.forward_allow_hosts, _ALLOW_HOSTS, private=False)
        targets = tuple(
            Target(
                name=target.name,
                url=target.url,
                headers=target.headers,
                signals=frozenset(target.signals),
                redact=target.redact,
                spans=target.spans,
                timeout_s=target.timeout / SECOND,
                max_age_ns=target.max_age,
            )
            for target in settings.otlp.forward
        )
        for index, target in enumerate(targets):
            try:
                allowed.check_url(target.url)
            except Rejected as exc:
                raise ConfigError(f"otlp.forward[{index}].url: {exc}") from exc
        return cls(targets, allowed)
