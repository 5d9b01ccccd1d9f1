"""The bucket of shared budgets as a test sees and changes it, beside the budgets of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tokentrace.bus import jetstream
from tokentrace.bus.contract import KeyValue
from tokentrace.bus.subjects import BUDGETS
from tokentrace.client.money.shared_budget.ledger import Ledger, decode_ledger, encode_ledger

T = TypeVar("T")


def _on_bucket(url: str, work: Callable[[KeyValue], Awaitable[T]]) -> T:
    async def run() -> T:
        async with jetstream.connect(url, name="test") as bus:
            return await work(bus.kv(BUDGETS))

    return asyncio.run(run())


def read_key(url: str, key: str) -> Ledger:
    """Return the ledger of *key*, which must exist."""
    entry = _on_bucket(url, lambda bucket: bucket.get(key))
    assert entry is not None
    return decode_ledger(entry.value)


def keys_of(url: str) -> list[str]:
    """Return all keys, sorted."""

    async def keys(bucket: KeyValue) -> list[str]:
        return sorted(await bucket.items())

    return _on_bucket(url, keys)


def write_key(url: str, key: str, value: Ledger | bytes) -> None:
    """Write *key*, whatever it holds."""
    data = value if isinstance(value, bytes) else encode_ledger(value)
    _on_bucket(url, lambda bucket: bucket.put(key, data))


def delete_key(url: str, key: str) -> None:
    """Delete *key*."""
    _on_bucket(url, lambda bucket: bucket.delete(key))


def is_acknowledgement(data: bytes) -> bool:
    """Return True if *data*, a piece of what the broker sent, acknowledges a write of the bucket."""
    return b'"stream":"KV_tt_budgets"' in data
