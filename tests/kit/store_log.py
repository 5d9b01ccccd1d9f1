"""What tests of the span store share: messages for it, and what it has to show, folded in plain Python."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings

from kit.builders import make_batch
from tokentrace.bus import Message
from tokentrace.records import Batch, Span, encode_batches
from tokentrace_api.reads import Search, find_spans, newest_ordinal
from tokentrace_api.store import Item, Store

SECOND, DAY = 10**9, 86_400 * 10**9
#: 2027-01-15T12:00:00Z, when nearly everything in these tests arrives and is asked for.
NOW_NS = 1_800_014_400 * SECOND
#: Examples of a property are so many times more when this is set.
MORE = int(os.environ.get("TOKENTRACE_EXAMPLES", "1"))
ROLLUPS = {"http", "agent", "workflow", "chain"}


def examples(count: int) -> settings:
    """*count* examples of a property, none of them timed."""
    return settings(
        max_examples=count * MORE,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


class Log:
    """A stream: numbers its messages shard by shard, and gives them again from any position."""

    def __init__(self, shards: int = 1) -> None:
        self.items: list[list[Item]] = [[] for _ in range(shards)]
        self._batches = 0

    def say(self, *batches: Batch, shard: int = 0, time_ns: int = NOW_NS) -> Item:
        """The next message of *shard*."""
        message = Message("spans", encode_batches(batches), len(self.items[shard]) + 1, time_ns, {})
        item = Item(shard, 1, message)
        self.items[shard].append(item)
        return item

    def spans(self, *spans: Span, shard: int = 0, time_ns: int = NOW_NS, **fields: Any) -> Item:
        """The next message, with one new batch."""
        return self.say(self.batch(spans=list(spans), **fields), shard=shard, time_ns=time_ns)

    def batch(self, **fields: Any) -> Batch:
        """A batch that nobody has seen."""
        self._batches += 1
        return make_batch(**{"id": f"batch-{self._batches}", "sequence": 0, "arrived_ns": NOW_NS, "spans": []} | fields)

    def after(self, store: Store) -> list[Item]:
        """What *store* has not read."""
        missing = []
        for shard, items in enumerate(self.items):
            position = store.position(shard)
            missing += items[0 if position is None else position.sequence :]
        return missing


def shown(store: Store, now_ns: int = NOW_NS) -> list[Span]:
    """Every span of *store*, its last version, in order of arrival."""
    last = newest_ordinal(store, now_ns)
    return find_spans(store, Search(), 0, last, now_ns, last)


def last_versions(spans: Iterable[Span]) -> list[Span]:
    """Of several versions of a span the last, where it stands."""
    rows = list(enumerate(spans))
    last = {(span.trace_id, span.span_id): number for number, span in rows}
    return [span for number, span in rows if last[span.trace_id, span.span_id] == number]
