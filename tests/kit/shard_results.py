"""Encoding and decoding of a shard's result, as between aggregator and api."""

from __future__ import annotations

from tokentrace.metrics import ShardResult, decode_result, encode_result


def as_received(result: ShardResult) -> ShardResult:
    """Return *result* as the api receives it: encoded and decoded."""
    received = decode_result(encode_result(result))
    assert isinstance(received, ShardResult)  # not the number of a shard that is still working
    return received
