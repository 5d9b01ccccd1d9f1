"""Helpers for tests of the span store: a log in memory, and the expected content of a store, computed from it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from msgspec.structs import replace

from kit.builders import make_batch, make_span
from kit.examples import examples
from tokentrace.bus import Message, subjects
from tokentrace.records import Batch, Score, Span, encode_batches
from tokentrace_api.reads import Search, find_spans, newest_ordinal
from tokentrace_api.store import Item, Store, segment

SECOND, DAY = 10**9, 86_400 * 10**9
#: 2027-01-15T12:00:00Z, the arrival of nearly all records in these tests and the time of nearly all queries.
NOW_NS = 1_800_014_400 * SECOND
ROLLUPS = {"http", "agent", "workflow", "chain"}
#: The default number of shards of ``open_store``.
SHARDS = 3
_FOREVER_NS = 10**18


def untimed(count: int) -> settings:
    """Return settings for *count* examples of a property, without a time limit."""
    return settings(
        max_examples=examples(count),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


def open_store(directory: Path, **options: Any) -> Store:
    """Open a store that shows records of any age."""
    return Store(directory, **{"shards": SHARDS, "keep_ns": _FOREVER_NS, **options})


def stored_span(trace: str, number: int = 0, **fields: Any) -> Span:
    """Return the span *number* of *trace*, which arrived at NOW_NS."""
    return make_span(**{"trace_id": trace, "span_id": f"{number}", "arrived_ns": NOW_NS, **fields})


class Log:
    """A stream in memory, with numbered messages on each shard."""

    def __init__(self, shards: int = 1) -> None:
        self.items: list[list[Item]] = [[] for _ in range(shards)]
        self._batches = 0

    def add(self, *batches: Batch, shard: int = 0, time_ns: int = NOW_NS) -> Item:
        """Add a message with *batches* to *shard* and return it."""
        message = Message(
            subjects.spans("default", shard), encode_batches(batches), len(self.items[shard]) + 1, time_ns, {}
        )
        item = Item(shard, 1, message)
        self.items[shard].append(item)
        return item

    def spans(self, *spans: Span, shard: int = 0, time_ns: int = NOW_NS, **fields: Any) -> Item:
        """Add a message with one new batch of *spans* and return it."""
        return self.add(self.batch(spans=list(spans), **fields), shard=shard, time_ns=time_ns)

    def batch(self, **fields: Any) -> Batch:
        """Return a batch with a new id."""
        self._batches += 1
        return make_batch(**{"id": f"batch-{self._batches}", "sequence": 0, "arrived_ns": NOW_NS, "spans": []} | fields)

    def after(self, store: Store) -> list[Item]:
        """Return the messages after the positions of *store*."""
        missing = []
        for shard, items in enumerate(self.items):
            position = store.position(shard)
            missing += items[0 if position is None else position.sequence :]
        return missing


def shown(store: Store, now_ns: int = NOW_NS) -> list[Span]:
    """Return every span that *store* shows and that counts, in order of arrival."""
    return [telling.span for telling in find_spans(store, Search(), 0, newest_ordinal(store, now_ns), now_ns)]


def first_tellings(spans: Iterable[Span]) -> list[Span]:
    """Return the first telling of each span; later ones are left out."""
    first: dict[tuple[str, str], Span] = {}
    for span in spans:
        first.setdefault((span.trace_id, span.span_id), span)
    return list(first.values())


def files(directory: Path) -> list[str]:
    """Return the names of the files of a store, sorted."""
    return sorted(file.name for file in directory.glob(segment.GLOB))


def read_to(store: Store) -> int:
    """Return the sequence number of the last message of shard 0 in *store*; 0 = none."""
    position = store.position(0)
    return position.sequence if position else 0


def incompressible(log: Log, number: int) -> Item:
    """Add and return a message with a hundred spans that take about 100 kB on disk."""
    dice = random.Random(number)
    return log.spans(*(stored_span(f"{number}", index, error=dice.randbytes(400).hex()) for index in range(100)))


# -- a log whose content is computed from its sequence numbers


def spans_of_message(sequence: int) -> list[Span]:
    """Return the spans in the message *sequence* of ``numbered_log``."""
    dice = random.Random(sequence)
    return [
        stored_span(f"{sequence}", number, error=dice.randbytes(dice.randrange(200)).hex())
        for number in range(dice.randrange(1, 60))
    ]


def numbered_log(count: int) -> Log:
    """Return a log of *count* messages; each but the first also scores the first span of the previous message."""
    log = Log(1)
    for sequence in range(1, count + 1):
        scores = [Score(trace_id=f"{sequence - 1}", span_id="0", name="eval.score", value=sequence)]
        log.add(log.batch(spans=spans_of_message(sequence), scores=scores if sequence > 1 else []))
    return log


def assert_exact(store: Store, upto: int, *, scores_ahead: bool = False) -> None:
    """
    Check that *store* holds the spans of messages 1 to *upto* of ``numbered_log``, each once, with their scores.

    Args:
        scores_ahead: Do not compare scores. After a kill, a span in an older file may have the score of a message
            after *upto*, because older files are updated before the transaction of the newest file commits.
    """
    expected = []
    for sequence in range(1, upto + 1):
        first, *others = spans_of_message(sequence)
        if sequence < upto:
            first = replace(first, score=sequence + 1, attributes={"eval.score": (sequence + 1) / 10**9})
        expected += [first, *others]
    assert store.count(NOW_NS) == len(expected)
    if scores_ahead:
        assert [(span.trace_id, span.span_id, span.error) for span in shown(store)] == [
            (span.trace_id, span.span_id, span.error) for span in expected
        ]
    else:
        assert shown(store) == expected
