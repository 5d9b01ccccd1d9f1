"""
The identity of a call: what two tellings of the same call have in common.

A span is known by the id of the response if it has a usable one, else by its own ids. Ingest computes the identity of
every span once and sends it with the batch (``Batch.identities``), so that all readers compare the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from tokentrace.records import MODEL_KINDS, Batch, Span, is_long, is_response_id
from tokentrace.units import MS, SECOND

#: One identity, 32 bytes. ``key`` is the hash by which calls are found and sharded, ``span_key`` belongs to the ids of
#: the span, ``usage`` and ``cost`` are hashes of what was used and of what it cost (usage 0 = nothing is known),
#: ``duration`` is milliseconds, ``start`` holds milliseconds since 1970, a hash of the way in, and ``FLAGS``.
IDENTITY = np.dtype(
    [("key", "<u8"), ("span_key", "<u4"), ("usage", "<u4"), ("cost", "<u4"), ("duration", "<u4"), ("start", "<u8")]
)
_PACKED = struct.Struct("<QIIIIQ")
#: Bits of ``start``: 0 = the key is a short response id, 1-3 unused, 4-19 = the way in, from 20 on the milliseconds.
SHORT, WAY_SHIFT, WAY_MASK, START_SHIFT = 1, 4, 0xFFFF, 20
_MAX_DURATION_MS = 2**32 - 1
_USAGE = struct.Struct("<7q")
_EMPTY = blake2b(digest_size=8)
_from_bytes = int.from_bytes
#: The values of one ``IDENTITY``, in its order.
_Identity = tuple[int, int, int, int, int, int]


def hash64(*parts: str) -> int:
    """Return the first 64 bits of the BLAKE2b hash of *parts*; the parts are joined by zero bytes."""
    # A copy of an empty hash is made in a quarter of the time of a new one.
    hashed = _EMPTY.copy()
    hashed.update("\0".join(parts).encode())
    return _from_bytes(hashed.digest(), "little")


def span_key(project: str, trace_id: str, span_id: str) -> int:
    """Return the key of a span without a usable response id, 64 bits."""
    return hash64(project, trace_id, span_id)


def _response_id(span: Span) -> str:
    """Return the response id by which *span* is known; "" = it is known by its own ids."""
    if not span.response_id or span.kind not in MODEL_KINDS:
        return ""
    if not _has_tokens(span):
        return ""
    return span.response_id if is_response_id(span.response_id) else ""


def _has_tokens(span: Span) -> bool:
    return bool(span.prompt_tokens or span.completion_tokens or span.total_tokens)


def usage_hash(span: Span) -> int:
    """Return a hash of the tokens and other units of *span*, 32 bits, not 0; 0 if neither usage nor cost is known."""
    usage = span.usage
    if not (usage or _has_tokens(span)) and span.cost_nusd is None:
        return 0
    data = _USAGE.pack(
        span.prompt_tokens,
        span.completion_tokens,
        span.total_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )
    if usage:
        data += repr(sorted(usage.items())).encode()
    return zlib.crc32(data) or 1


def identities_of(spans: Sequence[Span], project: str) -> bytes:
    """
    Return the identities of *spans* in order, 32 bytes each (``IDENTITY``).

    A model call that only repeats the usage of a model call inside it, such as a framework's span around that of the
    provider's library, gets the key of the inner one if both are among *spans*.
    """
    ways: dict[tuple[str, str], int] = {}
    identities = [_identity(span, project, ways) for span in spans]
    if any(span.parent_span_id and span.kind in MODEL_KINDS for span in spans):
        _join_outer_calls(spans, identities)
    return b"".join([_PACKED.pack(*identity) for identity in identities])


def _identity(span: Span, project: str, ways: dict[tuple[str, str], int]) -> _Identity:
    own = span_key(project, span.trace_id, span.span_id)
    response_id = _response_id(span)
    key = hash64(project, "", response_id) if response_id else own
    cost = span.cost_nusd
    way = ways.get((span.source, span.scope))
    if way is None:
        way = ways[span.source, span.scope] = zlib.crc32(f"{span.source}\0{span.scope}".encode()) & WAY_MASK
    start = span.started_ns // MS << START_SHIFT | way << WAY_SHIFT
    if response_id and not is_long(response_id):
        start |= SHORT
    duration = min(max(span.ended_ns // MS - span.started_ns // MS, 0), _MAX_DURATION_MS)
    cost_hash = 0 if cost is None else zlib.crc32(cost.to_bytes(8, "little")) or 1
    return key, own & 0xFFFFFFFF, usage_hash(span), cost_hash, duration, start


def _join_outer_calls(spans: Sequence[Span], identities: list[_Identity]) -> None:
    """Give a model call without response id the key of the only model call inside it, if the usage is the same."""
    inside: dict[tuple[str, str], list[int]] = {}
    for index, span in enumerate(spans):
        if span.parent_span_id and span.kind in MODEL_KINDS:
            inside.setdefault((span.trace_id, span.parent_span_id), []).append(index)
    joined: dict[int, _Identity] = {}
    for index, (inner, depth) in _innermost(spans, identities, inside).items():
        if depth:
            key, _, _, _, _, start = identities[inner]
            # Another way in for each depth, because a short response id is compared only between two ways.
            way = (start >> WAY_SHIFT) + depth & WAY_MASK
            own_start = identities[index][5] >> START_SHIFT << START_SHIFT | way << WAY_SHIFT | start & SHORT
            joined[index] = (key, *identities[index][1:5], own_start)
    for index, identity in joined.items():
        identities[index] = identity


def _innermost(
    spans: Sequence[Span], identities: list[_Identity], inside: Mapping[tuple[str, str], Sequence[int]]
) -> dict[int, tuple[int, int]]:
    """
    Return index -> (index of the innermost call of equal usage inside it, how many calls deeper that is).

    Each span is looked at once, however long the chain of calls is; a chain that closes in a circle ends there.
    """
    ends: dict[int, tuple[int, int]] = {}
    for index in range(len(spans)):
        path, inner = list[int](), index
        while inner not in ends:
            path.append(inner)
            ends[inner] = (inner, 0)
            call = _call_inside(spans[inner], inside.get((spans[inner].trace_id, spans[inner].span_id), ()), spans)
            if call is None or identities[call][2] != identities[inner][2]:
                break
            inner = call
        end, depth = ends[inner]
        for at in reversed(path):
            depth = ends[inner][1] if at == inner else depth + 1
            ends[at] = (end, depth)
    return ends


def _call_inside(outer: Span, inner: Sequence[int], spans: Sequence[Span]) -> int | None:
    """Return the index of the only model call inside *outer*, if *outer* may be another view of it."""
    if len(inner) != 1 or outer.kind not in MODEL_KINDS or _response_id(outer):
        return None
    return inner[0] if _has_tokens(outer) and _contains(outer, spans[inner[0]]) else None


def _contains(outer: Span, inner: Span) -> bool:
    """Return True if *inner* ran while *outer* did, give or take a second."""
    return outer.started_ns - SECOND <= inner.started_ns and inner.ended_ns <= outer.ended_ns + SECOND


def batch_identity(batch: Batch, project: str) -> bytes:
    """Return the identity under which the records of an unnumbered *batch* that are not spans are remembered."""
    key = hash64(project, "", "", batch.id, str(batch.part))
    return _PACKED.pack(key, key & 0xFFFFFFFF, 1, 0, 0, batch.arrived_ns // MS << START_SHIFT)


def shard_of_key(key: int, shards: int) -> int:
    """Return the shard of the call with *key*, from 0 to *shards* - 1."""
    return key % shards


def decode_identities(batch: Batch, project: str) -> Any:
    """Return the identities of the spans of *batch* as an array of ``IDENTITY``; computed if the batch has none."""
    data = batch.identities
    if len(data) != IDENTITY.itemsize * len(batch.spans):
        data = identities_of(batch.spans, project)
    return np.frombuffer(data, IDENTITY)


def select_identities(identities: bytes, indices: Sequence[int]) -> bytes:
    """Return those of the encoded *identities* at *indices*, in this order."""
    return np.frombuffer(identities, IDENTITY)[np.array(indices, np.intp)].tobytes()


def keys_of(identities: bytes) -> list[int]:
    """Return the keys of encoded *identities*, in order."""
    keys: list[int] = np.frombuffer(identities, IDENTITY)["key"].tolist()
    return keys
