"""What a transport is: where a tracer hands its finished spans to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tokentrace.client.reporter import Stats
from tokentrace.records import Span


@runtime_checkable
class Transport(Protocol):
    """
    Where a tracer hands its finished spans to. All methods may be called from any thread.

    An object with these four methods can be given to a tracer. What a transport raises is counted and logged; it never
    reaches the application.
    """

    def send(self, spans: Sequence[Span]) -> None:
        """
        Take *spans*, without waiting for the network.

        Args:
            spans: Finished calls. They are copied as far as needed, so their attributes may be changed afterwards.

        Raises:
            Unavailable: The spans were not taken, and later ones may be.
            Rejected: The spans were not taken, and never will be.
        """
        ...

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Wait until every span is delivered or counted as lost, spans that are sent meanwhile included.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        ...

    def close(self, timeout: float = 5.0) -> None:
        """
        Deliver the waiting spans and end; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not delivered by then are dropped and counted.
        """
        ...

    def stats(self) -> Stats:
        """
        Return the counters of this transport.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        ...
