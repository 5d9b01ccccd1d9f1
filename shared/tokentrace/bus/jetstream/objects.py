"""Object stores, in the layout that every NATS client uses."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

from tokentrace.bad_data import reading
from tokentrace.bus.jetstream.contents import StreamContents
from tokentrace.errors import Rejected

_OBJECT_CHUNK = 128 * 1024


class _Description(msgspec.Struct, frozen=True):
    """
    The description of an object, stored as JSON on the object's meta subject.

    Attributes:
        nuid: Last token of the subject of the object's chunks. Wildcards are refused, because they would match the
            chunks of other objects.
        size: Bytes.
        chunks: Number of chunks.
        digest: ``SHA-256=`` and the digest in URL-safe base64.
        deleted: True if another client deleted the object and left this description.
    """

    nuid: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]*$")] = ""
    size: Annotated[int, Meta(ge=0)] = 0
    chunks: Annotated[int, Meta(ge=0)] = 0
    digest: str = ""
    deleted: bool = False


_descriptions = msgspec.json.Decoder(_Description)


class JetStreamObjects:
    """``Objects`` on the stream ``OBJ_<bucket>``."""

    def __init__(self, contents: StreamContents, bucket: str) -> None:
        self._contents, self._bucket, self._stream = contents, bucket, f"OBJ_{bucket}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def put(self, name: str, data: bytes) -> None:
        """As ``Objects.put``; the description is published last, so an unfinished object does not exist."""
        nuid = uuid.uuid4().hex
        subject = f"$O.{self._bucket}.C.{nuid}"
        chunks = [data[at : at + _OBJECT_CHUNK] for at in range(0, len(data), _OBJECT_CHUNK)]
        for chunk in chunks:
            await self._contents.publish(subject, chunk)
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
        await self._contents.publish(
            self._meta_subject(name), json.dumps(meta).encode(), headers={"Nats-Rollup": "sub"}
        )

    async def get(self, name: str) -> bytes | None:
        """As ``Objects.get``."""
        subject = self._meta_subject(name)
        meta = await self._meta(subject)
        if meta is None:
            return None
        parts = (
            await self._contents.read(self._stream, f"$O.{self._bucket}.C.{meta.nuid}", meta.chunks)
            if meta.chunks
            else []
        )
        data = b"".join(parts)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        if len(data) != meta.size or meta.digest != f"SHA-256={digest}":
            # If the description has changed, the object was removed or replaced during the read.
            if await self._meta(subject) != meta:
                return await self.get(name)
            raise Rejected(f"object {name}: damaged: {len(data)} of {meta.size} bytes, or the digest differs")
        return data

    async def _meta(self, subject: str) -> _Description | None:
        message = await self._contents.last(self._stream, subject)
        if message is None:
            return None
        with reading(f"description, message {message.sequence}"):
            meta = _descriptions.decode(message.payload)
            if meta.chunks and not meta.nuid:
                raise ValueError("nuid is empty")
        return None if meta.deleted else meta

    async def names(self) -> list[str]:
        """As ``Objects.names``."""
        names = []
        for subject in await self._contents.subjects(self._stream, f"$O.{self._bucket}.M.>"):
            with self._contents.set_aside.guard(self._bucket, f"object {subject}"):
                names.append(self._name_of(subject))
        return sorted(names)

    def _name_of(self, subject: str) -> str:
        """
        Return the name of the object with this meta subject.

        Raises:
            Rejected: ``put`` would derive another subject from the name, so ``get`` would not find the object.
        """
        with reading("name"):
            name = base64.urlsafe_b64decode(subject.rpartition(".")[2]).decode()
            if self._meta_subject(name) != subject:
                raise ValueError("not in canonical URL-safe base64")
        return name

    async def delete(self, name: str) -> None:
        """As ``Objects.delete``; the chunks stay if the description is damaged, because only it names them."""
        subject = self._meta_subject(name)
        try:
            meta = await self._meta(subject)
        except Rejected:
            meta = None
        await self._contents.purge(self._stream, subject)
        if meta is not None and meta.nuid:
            await self._contents.purge(self._stream, f"$O.{self._bucket}.C.{meta.nuid}")
