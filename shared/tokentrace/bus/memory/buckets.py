"""Key-value buckets and object stores on a broker in memory."""

from __future__ import annotations

from tokentrace.bus.contract import Bus, Entry
from tokentrace.bus.memory.broker import MemoryBroker


class MemoryKeyValue:
    """``KeyValue`` on the memory stream ``KV_<bucket>``."""

    def __init__(self, bus: Bus, broker: MemoryBroker, bucket: str) -> None:
        self._bus, self._broker, self._stream, self._prefix = bus, broker, f"KV_{bucket}", f"$KV.{bucket}."

    async def get(self, key: str) -> Entry | None:
        """As ``KeyValue.get``."""
        message = self._broker.log(self._stream).last_of(self._prefix + key)
        if message is None or "KV-Operation" in message.headers:
            return None
        return Entry(message.payload, message.sequence)

    async def put(self, key: str, value: bytes) -> int:
        """As ``KeyValue.put``."""
        return (await self._bus.publish(self._prefix + key, value)).sequence

    async def create(self, key: str, value: bytes) -> int:
        """As ``KeyValue.create``."""
        message = self._broker.log(self._stream).last_of(self._prefix + key)
        deleted = message is not None and "KV-Operation" in message.headers
        return await self.update(key, value, message.sequence if message is not None and deleted else 0)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """As ``KeyValue.update``."""
        return (await self._bus.publish(self._prefix + key, value, expect_last=revision)).sequence

    async def delete(self, key: str) -> None:
        """As ``KeyValue.delete``."""
        await self._bus.publish(self._prefix + key, b"", headers={"KV-Operation": "DEL"})

    async def items(self) -> dict[str, Entry]:
        """As ``KeyValue.items``."""
        keys = {
            message.subject.removeprefix(self._prefix) for message in self._broker.log(self._stream).messages.values()
        }
        entries = {key: await self.get(key) for key in sorted(keys)}
        return {key: entry for key, entry in entries.items() if entry is not None}


class MemoryObjects:
    """``Objects`` on the memory stream ``OBJ_<bucket>``."""

    def __init__(self, bus: Bus, broker: MemoryBroker, bucket: str) -> None:
        self._bus, self._broker, self._stream, self._prefix = bus, broker, f"OBJ_{bucket}", f"$O.{bucket}.M."

    async def put(self, name: str, data: bytes) -> None:
        """As ``Objects.put``."""
        self._broker.log(self._stream)
        await self._bus.publish(self._prefix + name.replace(".", "%"), data)

    async def get(self, name: str) -> bytes | None:
        """As ``Objects.get``."""
        message = self._broker.log(self._stream).last_of(self._prefix + name.replace(".", "%"))
        return None if message is None else message.payload

    async def names(self) -> list[str]:
        """As ``Objects.names``."""
        messages = self._broker.log(self._stream).messages.values()
        return sorted(message.subject.removeprefix(self._prefix).replace("%", ".") for message in messages)

    async def delete(self, name: str) -> None:
        """As ``Objects.delete``."""
        message = self._broker.log(self._stream).last_of(self._prefix + name.replace(".", "%"))
        if message is not None:
            self._broker.log(self._stream).remove(message.sequence)
