"""Deduplication: one call counts once, however often and by whomever it is told, for every reader of the log alike."""

from tokentrace.dedup.batches import MAX_GAPS, MAX_INTERVALS, MAX_REPORTERS, REPORTER_NS, FoldedBatches
from tokentrace.dedup.deduplicator import DIGEST_EVERY, Deduplicator, Digest, LeftOut, Taken, total
from tokentrace.dedup.identity import (
    IDENTITY,
    hash64,
    identities_of,
    keys_of,
    select_identities,
    shard_of_key,
    span_key,
)
from tokentrace.dedup.memory import LEAST_CALLS, TOTAL_CALLS, CallMemory, Verdict, capacity_for

__all__ = [
    "DIGEST_EVERY",
    "IDENTITY",
    "LEAST_CALLS",
    "MAX_GAPS",
    "MAX_INTERVALS",
    "MAX_REPORTERS",
    "REPORTER_NS",
    "TOTAL_CALLS",
    "CallMemory",
    "Deduplicator",
    "Digest",
    "FoldedBatches",
    "LeftOut",
    "Taken",
    "Verdict",
    "capacity_for",
    "hash64",
    "identities_of",
    "keys_of",
    "select_identities",
    "shard_of_key",
    "span_key",
    "total",
]
