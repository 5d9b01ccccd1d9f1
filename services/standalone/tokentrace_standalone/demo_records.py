"""Sends what a reporter does not: starts of spans, messages, ends of sessions, and a few broken spans."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from tokentrace.bus.access import Access
from tokentrace.client.reporter.carriers import open_carrier
from tokentrace.client.reporter.destination import Carrier
from tokentrace.client.reporter.settings import read_settings
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import Batch, Span, encode_batches

_BATCH_RECORDS = 500
_RETRY_S = 0.5


def broken_spans() -> list[Span]:
    """Return spans that ingest refuses, each for another reason, so that there are dead letters to see."""
    call = Span(caller="support-chat", name="answer", provider="openai", model="gpt-4o-mini")
    return [
        call,
        replace(call, model="", prompt_tokens=900, completion_tokens=120),
        replace(call, prompt_tokens=900, total_tokens=12),
        replace(call, prompt_tokens=900, attributes={"eval.score": 7}),
    ]


class RecordSender:
    """
    Sends records with the access that a reporter has, and tries again while the pipeline is away.

    Attributes:
        refusal: Why the pipeline refuses the records for good; "" = it does not. Nothing more is sent then.
    """

    def __init__(self, url: str) -> None:
        from_environment: dict[str, Any] = dict.fromkeys(Access._fields)
        self._destination = read_settings(source="demo", url=url, **from_environment).destination
        #: (Field of a batch, record).
        self._waiting: deque[tuple[str, Any]] = deque()
        self._sending: Batch | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.refusal = ""

    def put(self, field: str, records: Iterable[Any]) -> None:
        """Queue *records* for the list *field* of a batch."""
        self._waiting.extend((field, record) for record in records)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until all is accepted, stop, and return whether all was accepted."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self._unsent and not self.refusal and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return not self._unsent

    @property
    def _unsent(self) -> bool:
        return bool(self._waiting or self._sending)

    async def _run(self) -> None:
        while not self.refusal:
            try:
                async with open_carrier(self._destination, f"demo.{secrets.token_hex(8)}", lambda _: None) as carrier:
                    await self._send_all(carrier)
            except Unavailable:
                await asyncio.sleep(_RETRY_S)
            except Rejected as exc:
                self.refusal = str(exc)

    async def _send_all(self, carrier: Carrier) -> None:
        while True:
            while self._sending or self._waiting:
                # A batch that may have arrived is sent again under the same id.
                self._sending = self._sending or self._batch()
                await carrier.send(encode_batches([self._sending]), self._sending.id, 0)
                self._sending = None
            self._wake.clear()
            await self._wake.wait()

    def _batch(self) -> Batch:
        lists: dict[str, list[Any]] = {}
        for _ in range(min(_BATCH_RECORDS, len(self._waiting))):
            field, record = self._waiting.popleft()
            lists.setdefault(field, []).append(record)
        return replace(Batch(id=f"demo.{secrets.token_hex(16)}", source="demo"), **lists)
