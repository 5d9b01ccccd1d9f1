"""What routes need of the api service, as narrow interfaces; ``app.compose`` passes them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tokentrace.records import Batch
from tokentrace_api.store import Store

T = TypeVar("T")


class StoreReader(Protocol):
    """Runs queries on the span store, each in a worker thread."""

    async def read(self, work: Callable[[Store], T]) -> T:
        """
        Return what *work* returns.

        Raises:
            Unavailable: The store is not open yet, or is overloaded.
        """
        ...

    async def find(self, work: Callable[[Store], list[T]]) -> list[T]:
        """Return what *work* returns; while that is empty, ask again for a second: spans may be on their way in."""
        ...


class Publisher(Protocol):
    """Publishes what the api itself decides."""

    async def publish(self, batch: Batch, shard: int | None = None) -> None:
        """Publish *batch* and return once this api has stored it; see ``Api.publish``."""
        ...
