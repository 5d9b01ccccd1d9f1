"""
The query on the subject ``tokentrace.query.metrics``.

The api fixes the interval and publishes a query; every aggregator replies with a result for each shard that it holds;
the api adds the results up.
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
        what: ``window``; ``series``, the window in steps; or ``lifetime``, the cumulative counters.
        from_s, to_s, now_s: Unix seconds; the interval is widened to the buckets that are kept.
        step_s: Width of a step of a series, a multiple of the width of the buckets kept at from_s.
        kind: Kind whose spans, tokens and latencies are counted; ``all`` = every kind. Cost counts every kind that is
            not a roll-up kind, and quality every kind, unless ``only_kind`` is set.
        filters: Dimension -> value.
        groupby: Dimension, or "" for totals only.
        by_model: Return sums by model as well.
        fields: Names of the distributions to return, of ``rollup.FIELDS``.
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
    """*query* as a message on the bus."""
    return _encoder.encode(query)


def decode_query(payload: bytes) -> Query:
    """
    A query from a message on the bus.

    Raises:
        Rejected: *payload* is not a query.
    """
    with reading("query"):
        return _queries.decode(payload)
