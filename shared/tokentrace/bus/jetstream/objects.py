"""Object stores on JetStream streams, in the layout that every NATS client knows."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

from tokentrace.bad_data import reading
from tokentrace.bus.jetstream.access import StreamAccess
from tokentrace.errors import Rejected

_OBJECT_CHUNK = 128 * 1024


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

    def __init__(self, streams: StreamAccess, bucket: str) -> None:
        self._streams, self._bucket, self._stream = streams, bucket, f"OBJ_{bucket}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def put(self, name: str, data: bytes) -> None:
        """As ``Objects.put``; the description is published last, so half an object is none."""
        nuid = uuid.uuid4().hex
        subject = f"$O.{self._bucket}.C.{nuid}"
        chunks = [data[at : at + _OBJECT_CHUNK] for at in range(0, len(data), _OBJECT_CHUNK)]
        for chunk in chunks:
            await self._streams.publish(subject, chunk)
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
        await self._streams.publish(self._meta_subject(name), json.dumps(meta).encode(), headers={"Nats-Rollup": "sub"})

    async def get(self, name: str) -> bytes | None:
        """As ``Objects.get``."""
        subject = self._meta_subject(name)
        meta = await self._meta(subject)
        if meta is None:
            return None
        parts = (
            await self._streams.read(self._stream, f"$O.{self._bucket}.C.{meta.nuid}", meta.chunks)
            if meta.chunks
            else []
        )
        data = b"".join(parts)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        if len(data) != meta.size or meta.digest != f"SHA-256={digest}":
            if await self._meta(subject) != meta:  # removed or replaced while it was read
                return await self.get(name)
            raise Rejected(f"object {name}: damaged, {len(data)} of {meta.size} bytes")
        return data

    async def _meta(self, subject: str) -> _Description | None:
        message = await self._streams.last(self._stream, subject)
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
        for subject in await self._streams.subjects(self._stream, f"$O.{self._bucket}.M.>"):
            with self._streams.set_aside.guard(self._bucket, f"object {subject}"):
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
        await self._streams.purge(self._stream, subject)
        if meta is not None and meta.nuid:
            await self._streams.purge(self._stream, f"$O.{self._bucket}.C.{meta.nuid}")
