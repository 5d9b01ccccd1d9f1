"""What a trace needs of its tracer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tokentrace.records import Span


class Owner(Protocol):
    """The tracer of a trace."""

    def hand_over(self, spans: Sequence[Span]) -> None:
        """Give *spans* to the transport. Never raises."""
        ...

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until all spans that were handed over are accepted or lost."""
        ...

    def forget(self, trace: Any) -> None:
        """Take note that *trace* has ended."""
        ...
