"""Interfaces of the api service that routes use; ``app.compose`` passes the service to the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tokentrace.records import Batch
from tokentrace_api.store import Store

T = TypeVar("T")


class StoreReader(Protocol):
    """Runs queries on the span store, each in a worker thread."""

    def now_ns(self) -> int:
        """Return the time at which a query is answered: the broker's, Unix nanoseconds."""
        ...

    async def read(self, work: Callable[[Store], T]) -> T:
        """
        Return what *work* returns.

        Raises:
            Unavailable: The store is not open, or *work* could not read it.
        """
        ...

    async def find(self, work: Callable[[Store], list[T]]) -> list[T]:
        """
        Return what *work* returns; repeat it for up to a second while that is empty.

        Raises:
            Unavailable: As ``read``.
        """
        ...


class Publisher(Protocol):
    """Publishes batches that the api itself creates, for example scores."""

    async def publish(self, batch: Batch, shard: int | None = None) -> None:
        """Publish *batch* and return once this api has stored it; see ``Api.publish``."""
        ...
