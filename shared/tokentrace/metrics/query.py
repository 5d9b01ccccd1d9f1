"""
The question ``tokentrace.query.metrics`` and its partial answers.

The api fixes the interval once and asks; every aggregator answers for each shard it holds; the answers merge by adding.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tokentrace.bad_data import reading

ALL_KINDS = "all"


class Query(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What some spans come to.

    Attributes:
        what: ``window``; ``series``, the window in steps; or ``lifetime``, everything since the stream began.
        from_s, to_s, now_s: Unix seconds; the interval is widened to the buckets that are kept.
        step_s: Of a series: a multiple of the buckets kept at from_s, which is a multiple of it.
        kind: Whose counts, tokens and latencies; ``all`` = every kind. Money and quality ask for more kinds by
            themselves unless ``only_kind`` is set.
        filters: Dimension -> value.
        groupby: Dimension, or "" for totals only.
        by_model: Sums by model as well.
        fields: Which distributions, of ``cell.FIELDS``.
        custom: Which metrics of one's own.
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
    """*query* for the bus."""
    return _encoder.encode(query)


def decode_query(payload: bytes) -> Query:
    """
    A query from the bus.

    Raises:
        Rejected: Not one.
    """
    with reading("query"):
        return _queries.decode(payload)
