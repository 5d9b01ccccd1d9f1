"""What every way in asks of a request: how much it may bring, and how a repetition of it is told."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from starlette.requests import Request

from tokentrace.bus import subjects
from tokentrace.errors import Conflict, Rejected
from tokentrace.records import Batch, Span, encode_batch
from tokentrace_ingest.cleaning import MAX_SPAN_BYTES

if TYPE_CHECKING:
    from tokentrace_ingest.service import Ingest

_MAX_KEY = 256


def check_count(count: int, limit: int) -> None:
    """
    How many spans one request may bring.

    Raises:
        Rejected: 413, more than *limit*.
    """
    if count > limit:
        raise Rejected(f"batch: {count} spans, at most {limit} are taken in one request", status=413)


def check_sizes(spans: list[Span], body_bytes: int) -> None:
    """
    How large one span may be.

    Raises:
        Rejected: 413, names the index.
    """
    if body_bytes > MAX_SPAN_BYTES:
        for index, span in enumerate(spans):
            if len(encode_batch(Batch(id="size", spans=[span]))) > MAX_SPAN_BYTES:
                raise Rejected(f"span {index}: over {MAX_SPAN_BYTES} bytes", status=413)


async def request_id(ingest: Ingest, request: Request, body: bytes, *, has_ids: bool) -> str:
    """
    The batch id of a request: the same for a repetition, if there is any way to tell one.

    Args:
        has_ids: Every record in *body* has ids of its own, so that two equal bodies tell the same.

    Raises:
        Rejected: 422 for an Idempotency-Key that was used with another body within a day.
    """
    given = request.headers.get("idempotency-key", "")
    if given:
        if len(given) > _MAX_KEY:
            raise Rejected(f"Idempotency-Key: longer than {_MAX_KEY} characters")
        digest = hashlib.sha256(body).hexdigest()
        name = hashlib.sha256(f"{request.url.path}\n{given}".encode()).hexdigest()
        requests = ingest.bus.kv(subjects.REQUESTS)
        try:
            await requests.create(name, digest.encode())
        except Conflict:
            entry = await requests.get(name)
            if entry is not None and entry.value != digest.encode():
                raise Rejected(
                    "Idempotency-Key: was used with another body within the last 24 hours", status=422
                ) from None
        return f"key.{name}.{digest}"
    if has_ids:
        return f"body.{hashlib.sha256(body).hexdigest()}"
    return f"request.{os.urandom(16).hex()}"
