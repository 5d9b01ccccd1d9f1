"""The result of a shard on its way to the api."""

from __future__ import annotations

from tokentrace.metrics import ShardResult, decode_result, encode_result


def as_received(result: ShardResult) -> ShardResult:
    """*result*, encoded and decoded as the api receives it."""
    received = decode_result(encode_result(result))
    assert isinstance(received, ShardResult)  # and not the number of a shard that is still at work
    return received
