"""``transport_queue_depth``: what waits behind the last batch of each reporter, for half a minute."""

from __future__ import annotations

from kit.builders import make_span
from tokentrace.bus import Message
from tokentrace.metrics import Query, finish, merge_results
from tokentrace.records import Batch, ReporterStats, encode_batches
from tokentrace.units import SECOND
from tokentrace_aggregator.shard import Shard

NOW_S = 1_790_000_000


class Told:
    """A log of reporters' batches, each with its figures, that shards fold."""

    def __init__(self, shards: int = 1) -> None:
        self._shards = [Shard(shard, shards) for shard in range(shards)]
        self._sequence = 0

    def tell(self, reporter: str, number: int, depth: int, *, shard: int = 0, at_s: int = NOW_S) -> None:
        """Fold the batch *number* of *reporter*, behind which *depth* spans waited."""
        self._sequence += 1
        stats = ReporterStats(queue_depth=depth)
        batch = Batch(id=f"p.{reporter}.x", sequence=number, spans=[make_span()], reporter=stats, layout=1, part=shard)
        subject = f"tokentrace.spans.default.{shard}"
        message = Message(subject, encode_batches([batch]), self._sequence, at_s * SECOND, {})
        self._shards[shard].fold(message, 7)

    def depth(self, now_s: int = NOW_S) -> int:
        """Return what the metric shows."""
        query = Query(what="lifetime", to_s=now_s, now_s=now_s)
        results = []
        for shard in self._shards:
            shard.tick(now_s * SECOND)
            results.append(finish(shard.answer(query, caught_up=True)))
        return merge_results(results, len(self._shards), query).transport.queue_depth


def test_each_reporter_counts_with_its_last_figure() -> None:
    told = Told()
    told.tell("a", 1, 500)
    told.tell("b", 1, 40)
    told.tell("a", 2, 7)
    told.tell("a", 1, 500)
    assert told.depth() == 47


def test_a_reporter_that_has_closed_counts_0_at_once() -> None:
    told = Told()
    told.tell("a", 1, 500)
    assert told.depth() == 500
    told.tell("a", 2, 0)
    assert told.depth() == 0


def test_a_reporter_that_says_nothing_for_half_a_minute_counts_0() -> None:
    told = Told()
    told.tell("a", 1, 500)
    told.tell("b", 1, 3, at_s=NOW_S + 20)
    assert told.depth(NOW_S + 30) == 503
    assert told.depth(NOW_S + 31) == 3
    assert told.depth(NOW_S + 51) == 0


def test_a_reporter_whose_batches_reach_several_shards_counts_once() -> None:
    told = Told(shards=3)
    told.tell("a", 1, 500, shard=0)
    told.tell("a", 3, 20, shard=1)
    told.tell("a", 2, 300, shard=2)
    assert told.depth() == 20
