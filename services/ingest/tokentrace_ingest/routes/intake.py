"""The interfaces through which the routes use ingest; ``app.compose`` passes the objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tokentrace.dialect.docs import BadSpan
from tokentrace.records import Batch, Span, SpanError
from tokentrace_ingest.cleaning import Cleaned


class Limits(NamedTuple):
    """
    The limits of one request.

    Attributes:
        spans: Largest number of spans.
        body_bytes: Largest size of the body after decompression, bytes.
    """

    spans: int
    body_bytes: int


class Intake(Protocol):
    """Accepts batches; ``tokentrace_ingest.service.Ingest`` implements it."""

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds; see ``Ingest.now_ns``."""
        ...

    async def accept(self, batch: Batch, source: str, *, size_bytes: int = 0, strict: bool = True) -> Cleaned:
        """Accept one batch; see ``Ingest.accept``."""
        ...

    async def accept_batches(self, body: bytes) -> tuple[int, list[SpanError]]:
        """Accept a reporter's batches; see ``Ingest.accept_batches``."""
        ...

    async def accept_valid(
        self, batch_id: str, spans: Sequence[Span], bad: Sequence[BadSpan], size_bytes: int
    ) -> tuple[int, list[SpanError]]:
        """Accept the valid spans of a request; see ``Ingest.accept_valid``."""
        ...

    def check_backpressure(self) -> None:
        """Raise ``Unavailable`` while a reader is too far behind; see ``Ingest.check_backpressure``."""
        ...

    def count_refused(self, source: str, spans: int = 1) -> None:
        """Count a request that was rejected as a whole; see ``Ingest.count_refused``."""
        ...
