"""Key-value buckets, in the layout that every NATS client uses."""

from __future__ import annotations

from tokentrace.bus.contract import Entry
from tokentrace.bus.jetstream.contents import StreamContents
from tokentrace.errors import Conflict


class JetStreamKeyValue:
    """``KeyValue`` on the stream ``KV_<bucket>``."""

    def __init__(self, contents: StreamContents, bucket: str) -> None:
        self._contents, self._stream, self._prefix = contents, f"KV_{bucket}", f"$KV.{bucket}."

    async def get(self, key: str) -> Entry | None:
        """As ``KeyValue.get``."""
        message = await self._contents.last(self._stream, self._prefix + key)
        if message is None or "KV-Operation" in message.headers:
            return None
        return Entry(message.payload, message.sequence)

    async def put(self, key: str, value: bytes) -> int:
        """As ``KeyValue.put``."""
        return (await self._contents.publish(self._prefix + key, value)).sequence

    async def create(self, key: str, value: bytes) -> int:
        """As ``KeyValue.create``; a key whose last message is a deletion does not exist."""
        try:
            return await self.update(key, value, 0)
        except Conflict:
            message = await self._contents.last(self._stream, self._prefix + key)
            if message is None or "KV-Operation" not in message.headers:
                raise
            return await self.update(key, value, message.sequence)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """As ``KeyValue.update``."""
        return (await self._contents.publish(self._prefix + key, value, expect_last=revision)).sequence

    async def delete(self, key: str) -> None:
        """As ``KeyValue.delete``."""
        await self._contents.publish(self._prefix + key, b"", headers={"KV-Operation": "DEL"})

    async def items(self) -> dict[str, Entry]:
        """As ``KeyValue.items``."""
        entries = {}
        for subject in await self._contents.subjects(self._stream, self._prefix + ">"):
            key = subject.removeprefix(self._prefix)
            entry = await self.get(key)
            if entry is not None:
                entries[key] = entry
        return entries
