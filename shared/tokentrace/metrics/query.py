"""
The query for metrics, and its form on the bus.

The api fixes the interval and sends the query on the subject ``tokentrace.query.metrics``. Every aggregator replies
with a result for each shard that it holds, and the api merges the results.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tokentrace.bad_data import reading

ALL_KINDS = "all"


class Query(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A query for sums and distributions.

    Attributes:
        what: ``window`` = numbers over the interval; ``series`` = numbers over each step of the interval;
            ``lifetime`` = the cumulative counters.
        from_s, to_s: The interval, Unix seconds; to_s is not included. It is widened to whole buckets that are kept.
        now_s: When the query was made, Unix seconds; it decides which buckets are kept.
        step_s: Width of a step, seconds; a multiple of the width of the finest buckets kept at from_s.
        kind: The kind of the spans that count; ``all`` = every kind. Cost counts every kind that is not a roll-up kind,
            and quality every kind, unless ``only_kind`` is set.
        only_kind: Whether cost and quality count spans of ``kind`` only.
        filters: Dimension -> value that a span must have.
        groupby: Dimension to group by; "" = totals only.
        by_model: Whether to return sums by model too.
        fields: Names of the distributions to return, from ``rollup.FIELDS``.
        custom: Names of the custom metrics to return.
    """

    what: Literal["window", "lifetime", "series"] = "window"
    from_s: int = 0
    to_s: int = 0
    now_s: int = 0
    step_s: int = 0
    kind: str = "llm"
    only_kind: bool = False
    filters: dict[str, str] = {}
    groupby: str = ""
    by_model: bool = False
    fields: list[str] = []
    custom: list[str] = []


_encoder = msgspec.msgpack.Encoder()
_queries = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """Return *query* as a message on the bus."""
    return _encoder.encode(query)


def decode_query(payload: bytes) -> Query:
    """
    Return the query in a message on the bus.

    Raises:
        Rejected: *payload* is not a query.
    """
    with reading("query"):
        return _queries.decode(payload)
