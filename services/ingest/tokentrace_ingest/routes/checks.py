"""Checks that the routes share: the limits of a request, and the id by which its repetition is recognised."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re

from starlette.requests import Request

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Conflict, Rejected
from tokentrace.records import MAX_SPAN_BYTES, Batch, Span, encode_batch

_MAX_KEY = 256
_DIGEST = re.compile(rb"[0-9a-f]{64}")


def check_count(count: int, limit: int) -> None:
    """
    Check that a request has at most *limit* spans.

    Raises:
        Rejected: 413 if *count* is more than *limit*.
    """
    if count > limit:
        raise Rejected(f"batch: {count} spans, at most {limit} are taken in one request", status=413)


def check_sizes(spans: list[Span], body_bytes: int) -> None:
    """
    Check that each span has at most ``MAX_SPAN_BYTES``; the spans of a smaller body are not checked, to save time.

    Raises:
        Rejected: 413 if a span is too large; the text names its index.
    """
    if body_bytes > MAX_SPAN_BYTES:
        for index, span in enumerate(spans):
            if len(encode_batch(Batch(id="size", spans=[span]))) > MAX_SPAN_BYTES:
                raise Rejected(f"span {index}: over {MAX_SPAN_BYTES} bytes", status=413)


class RequestKeys:
    """The bucket of Idempotency-Keys, with the digests of the bodies that they were used with."""

    def __init__(self, bus: Bus) -> None:
        self._bucket, self._set_aside = bus.kv(subjects.REQUESTS), bus.set_aside

    async def is_of_another_body(self, name: str, digest: bytes) -> bool:
        """
        Note that the key *name* is used with a body of this digest; return True if it was used with another one.

        An entry that is not a digest is set aside and replaced.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        try:
            await self._bucket.create(name, digest)
        except Conflict:
            entry = await self._bucket.get(name)
            if entry is None or entry.value == digest:
                return False
            if _DIGEST.fullmatch(entry.value):
                return True
            which = f"key {name} revision {entry.revision}"
            self._set_aside.note(subjects.REQUESTS, which, "Idempotency-Key: the entry is not a digest")
            with contextlib.suppress(Conflict):
                await self._bucket.update(name, digest, entry.revision)
        return False


async def request_id(keys: RequestKeys, request: Request, body: bytes, *, has_ids: bool) -> str:
    """
    Return the batch id of a request.

    A repetition gets the same id if it has the same Idempotency-Key, or if neither has a key and *has_ids* is true.

    Args:
        keys: The Idempotency-Keys of the last day.
        has_ids: True = every record in *body* has its ids, so that two equal bodies mean the same records.

    Raises:
        Rejected: 422 if the Idempotency-Key was used with another body within a day, 400 if it is too long.
        Unavailable: The broker cannot be reached.
    """
    key = request.headers.get("idempotency-key", "")
    if key:
        if len(key) > _MAX_KEY:
            raise Rejected(f"Idempotency-Key: longer than {_MAX_KEY} characters")
        digest = hashlib.sha256(body).hexdigest()
        name = hashlib.sha256(f"{request.url.path}\n{key}".encode()).hexdigest()
        if await keys.is_of_another_body(name, digest.encode()):
            raise Rejected("Idempotency-Key: was used with another body within the last 24 hours", status=422)
        return f"key.{name}.{digest}"
    if has_ids:
        return f"body.{hashlib.sha256(body).hexdigest()}"
    return f"request.{os.urandom(16).hex()}"
