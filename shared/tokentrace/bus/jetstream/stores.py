"""Key-value buckets and object stores on JetStream: streams with a layout that every NATS client knows."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from tokentrace.bad_data import reading
from tokentrace.bus.contract import Entry
from tokentrace.errors import Conflict, Rejected

if TYPE_CHECKING:
    from tokentrace.bus.jetstream.client import JetStream

_OBJECT_CHUNK = 128 * 1024


class JetStreamKeyValue:
    """``KeyValue`` on the stream ``KV_<bucket>``."""

    def __init__(self, bus: JetStream, bucket: str) -> None:
        self._bus, self._stream, self._prefix = bus, f"KV_{bucket}", f"$KV.{bucket}."

    async def get(self, key: str) -> Entry | None:
        """As ``KeyValue.get``."""
        message = await self._bus.last(self._stream, self._prefix + key)
        if message is None or "KV-Operation" in message.headers:
            return None
        return Entry(message.payload, message.sequence)

    async def put(self, key: str, value: bytes) -> int:
        """As ``KeyValue.put``."""
        return (await self._bus.publish(self._prefix + key, value)).sequence

    async def create(self, key: str, value: bytes) -> int:
        """As ``KeyValue.create``; a deleted key counts as not there."""
        try:
            return await self.update(key, value, 0)
        except Conflict:
            message = await self._bus.last(self._stream, self._prefix + key)
            if message is None or "KV-Operation" not in message.headers:
                raise
            return await self.update(key, value, message.sequence)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """As ``KeyValue.update``."""
        return (await self._bus.publish(self._prefix + key, value, expect_last=revision)).sequence

    async def delete(self, key: str) -> None:
        """As ``KeyValue.delete``."""
        await self._bus.publish(self._prefix + key, b"", headers={"KV-Operation": "DEL"})

    async def items(self) -> dict[str, Entry]:
        """As ``KeyValue.items``."""
        found = {}
        for subject in await self._bus.subjects(self._stream, self._prefix + ">"):
            key = subject.removeprefix(self._prefix)
            entry = await self.get(key)
            if entry is not None:
                found[key] = entry
        return found


class _Description(msgspec.Struct, frozen=True):
    """
    What an object's meta subject holds, as every NATS client writes it.

    Attributes:
        nuid: Token of the subject of its pieces; a wildcard would name those of others.
        size: Bytes. chunks: Pieces.
        digest: ``SHA-256=`` and the digest in URL-safe base64.
        deleted: Some clients leave the description of an object that is gone.
    """

    nuid: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]*$")] = ""
    size: Annotated[int, Meta(ge=0)] = 0
    chunks: Annotated[int, Meta(ge=0)] = 0
    digest: str = ""
    deleted: bool = False


_descriptions = msgspec.json.Decoder(_Description)


class JetStreamObjects:
    """``Objects`` on the stream ``OBJ_<bucket>``, laid out as every NATS client expects an object store to be."""

    def __init__(self, bus: JetStream, bucket: str) -> None:
        self._bus, self._bucket, self._stream = bus, bucket, f"OBJ_{bucket}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def put(self, name: str, data: bytes) -> None:
        """As ``Objects.put``; the description is published last, so half an object is none."""
        nuid = uuid.uuid4().hex
        subject = f"$O.{self._bucket}.C.{nuid}"
        chunks = [data[at : at + _OBJECT_CHUNK] for at in range(0, len(data), _OBJECT_CHUNK)]
        for chunk in chunks:
            await self._bus.publish(subject, chunk)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        meta = {
            "name": name,
            "bucket": self._bucket,
            "nuid": nuid,
            "size": len(data),
            "chunks": len(chunks),
            "digest": f"SHA-256={digest}",
            "options": {"max_chunk_size": _OBJECT_CHUNK},
        }
        await self._bus.publish(self._meta_subject(name), json.dumps(meta).encode(), headers={"Nats-Rollup": "sub"})

    async def get(self, name: str) -> bytes | None:
        """As ``Objects.get``."""
        subject = self._meta_subject(name)
        meta = await self._meta(subject)
        if meta is None:
            return None
        parts = (
            await self._bus.read(self._stream, f"$O.{self._bucket}.C.{meta.nuid}", meta.chunks) if meta.chunks else []
        )
        data = b"".join(parts)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        if len(data) != meta.size or meta.digest != f"SHA-256={digest}":
            if await self._meta(subject) != meta:  # removed or replaced while it was read
                return await self.get(name)
            raise Rejected(f"object {name}: damaged, {len(data)} of {meta.size} bytes")
        return data

    async def _meta(self, subject: str) -> _Description | None:
        message = await self._bus.last(self._stream, subject)
        if message is None:
            return None
        with reading(f"its description, message {message.sequence}"):
            meta = _descriptions.decode(message.payload)
            if meta.chunks and not meta.nuid:
                raise ValueError("names no pieces")
        return None if meta.deleted else meta

    async def names(self) -> list[str]:
        """As ``Objects.names``."""
        names = []
        for subject in await self._bus.subjects(self._stream, f"$O.{self._bucket}.M.>"):
            with self._bus.set_aside.guard(self._bucket, f"object {subject}"):
                names.append(self._name_of(subject))
        return sorted(names)

    def _name_of(self, subject: str) -> str:
        """
        The name of the object whose meta subject this is.

        Raises:
            Rejected: It is none: whoever reads the object by its name would look elsewhere.
        """
        with reading("its name"):
            name = base64.urlsafe_b64decode(subject.rpartition(".")[2]).decode()
            if self._meta_subject(name) != subject:
                raise ValueError("not in the one form of base64 that names have")
        return name

    async def delete(self, name: str) -> None:
        """As ``Objects.delete``; of one whose description is damaged the pieces stay, for nothing names them."""
        subject = self._meta_subject(name)
        try:
            meta = await self._meta(subject)
        except Rejected:
            meta = None
        await self._bus.purge(self._stream, subject)
        if meta is not None and meta.nuid:
            await self._bus.purge(self._stream, f"$O.{self._bucket}.C.{meta.nuid}")
