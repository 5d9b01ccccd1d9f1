"""What the routes need of ingest, as narrow interfaces; ``app.compose`` passes them in."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from tokentrace.records import Batch
from tokentrace_ingest.cleaning import Cleaned


class Limits(NamedTuple):
    """
    What one request may bring.

    Attributes:
        spans: How many.
        body_bytes: After decompression.
    """

    spans: int
    body_bytes: int


class Intake(Protocol):
    """Takes batches in; ``tokentrace_ingest.service.Ingest`` is the one that does."""

    async def accept(self, batch: Batch, way: str, *, size_bytes: int = 0, strict: bool = True) -> Cleaned:
        """Take in one batch; see ``Ingest.accept``."""
        ...

    async def accept_batches(self, body: bytes) -> tuple[int, int]:
        """Take in a reporter's batches; see ``Ingest.accept_batches``."""
        ...

    def check_backpressure(self) -> None:
        """Raise ``Unavailable`` while a reader is too far behind; see ``Ingest.check_backpressure``."""
        ...

    def count_refused(self, way: str, spans: int = 1) -> None:
        """Count a request that was refused whole."""
        ...
