"""The interface through which every way in hands over requests of OTLP."""

from __future__ import annotations

from typing import Protocol

from tokentrace.service.body import Room
from tokentrace.service.otlp_answers import Encoding, Signal


class Exports(Protocol):
    """Takes requests of OTLP; ``tokentrace_ingest.otlp.OtlpRequests`` implements it."""

    @property
    def room(self) -> Room:
        """The memory for all requests that are read or processed at the same time."""
        ...

    async def export(self, signal: Signal, encoding: Encoding, body: bytes) -> tuple[int, str]:
        """
        Store a request; return once it is acknowledged.

        Returns:
            (Number of records that are not stored, and never will be; why).

        Raises:
            Rejected: The request is invalid; nothing is stored.
            Unavailable: Send the same request again.
        """
        ...

    def count_refused(self) -> None:
        """Count a request that was refused."""
        ...
