"""The transport that discards spans."""

from __future__ import annotations

from collections.abc import Sequence

from tokentrace.client.reporter import Stats
from tokentrace.records import Span


class NoopTransport:
    """Discards spans and counts none of them."""

    def send(self, spans: Sequence[Span]) -> None:
        """
        Do nothing.

        Args:
            spans: Ignored.
        """

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Do nothing.

        Args:
            timeout: Seconds; ignored.

        Returns:
            True.
        """
        return True

    def close(self, timeout: float = 5.0) -> None:
        """
        Do nothing.

        Args:
            timeout: Seconds; ignored.
        """

    def stats(self) -> Stats:
        """
        Return counters that are all 0.

        Returns:
            Counts of spans.
        """
        return Stats(sent=0, acked=0, dropped=0, failed=0, queue_depth=0)
