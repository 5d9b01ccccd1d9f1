"""Opens the carrier for a destination, and imports what it needs."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from tokentrace.client.lifecycle import importing
from tokentrace.client.reporter.destination import Carrier, Destination, OnNotice


def open_carrier(destination: Destination, id: str, on_notice: OnNotice) -> AbstractAsyncContextManager[Carrier]:
    """
    Connect to *destination*; the connection is closed at the end of the block.

    What is needed for it is imported now, so that a program loads neither nats-py nor TLS before its first span.

    Args:
        id: The id of the reporter.
        on_notice: Called with what ingest says later about batches of this reporter; NATS only.

    Raises:
        Unavailable: The broker does not answer. HTTP connects later, at the first ``send``.
        ConfigError: The destination is not usable, as ``check_url``.
    """
    with importing:
        # asyncio imports it when it first looks up a name.
        import encodings.idna  # noqa: F401

        if destination.is_nats:
            from tokentrace.client.reporter.over_nats import open_nats
        else:
            from tokentrace.client.reporter.over_http import open_http
    return open_nats(destination, id, on_notice) if destination.is_nats else open_http(destination)
