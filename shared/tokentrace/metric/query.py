"""
The question ``tokentrace.query.metrics`` and its partial answers.

The api fixes the interval once and asks; every aggregator answers for each shard it holds; the answers merge by adding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from tokentrace.cell import Sums
from tokentrace.errors import Rejected
from tokentrace.quantile import Summary, merge
from tokentrace.records.position import Position

ALL_KINDS = "all"


class Query(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What some spans come to.

    Attributes:
        what: ``window`` or ``lifetime`` (everything since the stream began, from_s to_s unused).
        from_s, to_s, now_s: Unix seconds; the interval is widened to the buckets that are kept.
        kind: Whose counts, tokens and latencies; ``all`` = every kind. Money and quality ask for more kinds by
            themselves unless ``only_kind`` is set.
        filters: Dimension -> value.
        groupby: Dimension, or "" for totals only.
        fields: Which distributions, of ``cell.FIELDS``.
    """

    what: Literal["window", "lifetime"] = "window"
    from_s: int = 0
    to_s: int = 0
    now_s: int = 0
    kind: str = "llm"
    only_kind: bool = False
    filters: dict[str, str] = {}
    groupby: str = ""
    fields: list[str] = []


class Figures(msgspec.Struct, kw_only=True, array_like=True):
    """
    What a group of spans comes to, each number from the spans it is about.

    Attributes:
        sums: Counts, tokens and times of the kind asked for; cost and what is unpriced over every kind that costs;
            scores over every kind.
        summaries: Field -> distribution.
        paid: How many spans are of a kind that costs.
    """

    sums: Sums = msgspec.field(default_factory=Sums)
    summaries: dict[str, Summary] = {}
    paid: int = 0


class Partial(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    One shard's answer.

    Attributes:
        position: How far the shard had read.
        caught_up: It had read everything there was.
        from_s, to_s: The interval it covers, exactly.
        since_ns: Before this instant something is missing, Unix nanoseconds; 0 = nothing is.
        groups: Value of the dimension asked for -> figures.
        by_operation: Lifetime only: name -> (spans, spans with status error).
        walls: Lifetime only: histogram of ended - started over ``lifetime.WALL_EDGES_MS``.
        longest_ns: Lifetime only: the longest ended - started.
    """

    shard: int
    position: Position | None = None
    caught_up: bool = False
    from_s: int = 0
    to_s: int = 0
    since_ns: int = 0
    total: Figures = msgspec.field(default_factory=Figures)
    groups: dict[str, Figures] = {}
    by_operation: dict[str, tuple[int, int]] = {}
    walls: list[int] = []
    longest_ns: int = 0


_encoder = msgspec.msgpack.Encoder()
_queries = msgspec.msgpack.Decoder(Query)
_partials = msgspec.msgpack.Decoder(Partial)


def encode_query(query: Query) -> bytes:
    """*query* for the bus."""
    return _encoder.encode(query)


def decode_query(payload: bytes) -> Query:
    """
    A query from the bus.

    Raises:
        Rejected: Not one.
    """
    try:
        return _queries.decode(payload)
    except msgspec.DecodeError as exc:
        raise Rejected(f"query: {exc}") from exc


def encode_partial(partial: Partial) -> bytes:
    """*partial* for the bus."""
    return _encoder.encode(partial)


def decode_partial(payload: bytes) -> Partial:
    """
    A partial answer from the bus.

    Raises:
        Rejected: Not one.
    """
    try:
        return _partials.decode(payload)
    except msgspec.DecodeError as exc:
        raise Rejected(f"partial answer: {exc}") from exc


def merge_figures(figures: Iterable[Figures]) -> Figures:
    """Everything together."""
    sums, paid = Sums(), 0
    summaries: dict[str, list[Summary]] = {}
    for one in figures:
        paid += one.paid
        sums.add(one.sums)
        for name, summary in one.summaries.items():
            summaries.setdefault(name, []).append(summary)
    return Figures(sums=sums, summaries={name: merge(parts) for name, parts in summaries.items()}, paid=paid)


class Answer(msgspec.Struct, kw_only=True):
    """
    The partial answers of all shards, merged.

    Attributes:
        from_s, to_s: The interval covered, Unix seconds, to_s not included.
        since_ns: Before this instant something is missing; 0 = nothing is.
        missing_shards: Shards nobody answered for: the figures lack them.
        caught_up: Every shard had read everything there was.
    """

    from_s: int
    to_s: int
    since_ns: int = 0
    total: Figures = msgspec.field(default_factory=Figures)
    groups: dict[str, Figures] = {}
    missing_shards: list[int] = []
    caught_up: bool = True
    by_operation: dict[str, tuple[int, int]] = {}
    walls: list[int] = []
    longest_ns: int = 0


def furthest(partials: Iterable[Partial]) -> dict[int, Partial]:
    """One answer for each shard: the one that has read furthest, when two workers hold the same."""
    best: dict[int, Partial] = {}
    for partial in partials:
        held = best.get(partial.shard)
        if held is None or _key(partial) > _key(held):
            best[partial.shard] = partial
    return best


def _key(partial: Partial) -> tuple[int, int]:
    return (partial.position.created_ns, partial.position.sequence) if partial.position else (0, 0)


def merge_partials(partials: Sequence[Partial], shards: int, query: Query) -> Answer:
    """The answer of *shards* shards from what came in, merged in the order of the shards."""
    best = furthest(partials)
    chosen = [best[shard] for shard in sorted(best)]
    names = sorted({name for partial in chosen for name in partial.groups})
    operations: dict[str, tuple[int, int]] = {}
    for partial in chosen:
        for name, (count, errors) in partial.by_operation.items():
            had = operations.get(name, (0, 0))
            operations[name] = (had[0] + count, had[1] + errors)
    return Answer(
        from_s=min((partial.from_s for partial in chosen), default=query.from_s),
        to_s=max((partial.to_s for partial in chosen), default=query.to_s),
        since_ns=max((partial.since_ns for partial in chosen), default=0),
        total=merge_figures(partial.total for partial in chosen),
        groups={name: merge_figures(p.groups[name] for p in chosen if name in p.groups) for name in names},
        missing_shards=[shard for shard in range(shards) if shard not in best],
        caught_up=len(best) == shards and all(partial.caught_up for partial in chosen),
        by_operation=operations,
        walls=[sum(column) for column in zip(*(p.walls for p in chosen if p.walls), strict=True)],
        longest_ns=max((partial.longest_ns for partial in chosen), default=0),
    )
