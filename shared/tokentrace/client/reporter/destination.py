"""Where a reporter sends its batches, and the contract of what carries them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from tokentrace.bus.access import Access
from tokentrace.bus.urls import parse_urls
from tokentrace.errors import ConfigError
from tokentrace.records import RefusalNotice, SpanError

_SCHEMES = ("nats", "tls", "http", "https")


class Destination(NamedTuple):
    """
    Where a reporter sends its batches.

    Attributes:
        url: ``nats://``, ``tls://``, ``http://`` or ``https://``; for NATS, several separated by commas.
        name: The name of the connection, shown by the monitoring of NATS.
        project: Part of the raw subjects; NATS only.
        shards: Number of raw subjects that the batches are spread over, at least 1; NATS only.
        access: What admits the reporter.
        inbox_prefix: The beginning of the subjects on which it receives replies; NATS only.
    """

    url: str
    name: str
    project: str
    shards: int
    access: Access
    inbox_prefix: str = "_INBOX"

    @property
    def is_nats(self) -> bool:
        """True = the batches go to NATS, False = over HTTP."""
        return self.url.partition("://")[0] in ("nats", "tls")


class Answer(msgspec.Struct):
    """
    What ingest says at once about an accepted batch; over NATS it says nothing at once.

    Attributes:
        rejected: Number of spans that it found invalid.
        errors: The first of them.
    """

    rejected: int = 0
    errors: list[SpanError] = []


#: Called with what ingest says later about an accepted batch.
OnNotice = Callable[[RefusalNotice], None]


class Carrier(Protocol):
    """Sends encoded batches and waits until the pipeline has accepted each. Nothing in it blocks the event loop."""

    async def send(self, payload: bytes, id: str, sequence: int, project: str | None = None) -> Answer:
        """
        Send one encoded batch and return once the pipeline has stored it.

        Args:
            payload: The batch in the form that ``records.decode_batches`` reads.
            id: The message id by which the broker recognises a repetition; NATS only.
            sequence: The number of the batch, which chooses the raw subject; NATS only.
            project: That of a batch of another reporter; None = that of the destination; NATS only.

        Raises:
            Unavailable: The batch was not acknowledged and may or may not have been stored; sending it again under the
                same id is safe.
            Rejected: The pipeline refuses the batch and always will.
        """
        ...


def check_url(destination: Destination) -> None:
    """
    Check that a reporter can send to the URL of *destination*, with its access.

    Raises:
        ConfigError: A scheme is unknown, the host is missing, the port is not usable, or the access is one that the
            scheme does not know.
    """
    url, access = destination.url, destination.access
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES or not rest:
        raise ConfigError("reporter: the URL must start with nats://, tls://, http:// or https://")
    if destination.is_nats:
        try:
            servers = parse_urls(url)
        except ConfigError as exc:
            raise ConfigError(f"reporter: {exc}") from exc
        if any(urlsplit(server).scheme not in ("nats", "tls") for server in servers):
            raise ConfigError("reporter: in a list of servers, each URL must start with nats:// or tls://")
        return
    for name, value in (("creds", access.creds), ("nkey", access.nkey)):
        if value:
            raise ConfigError(f"reporter: {name} is for nats:// and tls:// only")
    if scheme == "http" and (access.ca or access.cert):
        raise ConfigError("reporter: ca and cert need https://, because http:// is not encrypted")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        # The text of the exception repeats what stands in the place of the port, which may be part of a password.
        raise ConfigError("reporter: the host or port of the URL cannot be read") from exc
    if not parts.hostname:
        raise ConfigError("reporter: the URL names no host")
    if port == 0:
        raise ConfigError("reporter: the URL names port 0, which cannot be connected to")
    if parts.username and access.token:
        raise ConfigError("reporter: the URL names a user and there is a token, of which a request carries only one")
