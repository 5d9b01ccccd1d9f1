"""Rows that need no broker: decode, fold, report()."""

from __future__ import annotations

import time

from bench.spans import make_batches, make_spans
from bench.table import Row, seconds_per_call
from tokentrace import Reporter
from tokentrace.machine import Message
from tokentrace.records import decode_batches, encode_batches
from tokentrace_aggregator.machine import Shard

_SIZE = 256
_BATCHES = 400


def rows() -> list[Row]:
    """Decode, fold, report()."""
    batches = make_batches(_BATCHES, _SIZE)
    messages = [
        Message("tokentrace.spans.default.0", encode_batches([batch]), index + 1, batch.arrived_ns, {})
        for index, batch in enumerate(batches)
    ]

    def decode() -> None:
        for message in messages:
            decode_batches(message.payload)

    def fold() -> None:
        shard = Shard(0, 1)
        for message in messages:
            shard.fold(message, 1)
        shard.tick(messages[-1].time_ns)

    spans = _SIZE * _BATCHES
    # In turn, so that a machine whose speed drifts drifts for both.
    pairs = [(seconds_per_call(decode, tries=1), seconds_per_call(fold, tries=1)) for _ in range(5)]
    decode_s, fold_s = min(pair[0] for pair in pairs) / spans, min(pair[1] for pair in pairs) / spans
    report_s = _report()
    return [
        Row("decode a span of a 256-span batch", f"{decode_s * 1e6:.2f} µs"),
        Row(
            "fold a batch, decode included",
            f"{fold_s * 1e6:.2f} µs a span",
            f"decode: {fold_s / decode_s:.1f} ×",
            "<= 4 × decode",
            fold_s <= 4 * decode_s,
        ),
        Row("report() on the caller's thread", f"{report_s * 1e6:.2f} µs", "", "<= 5 µs", report_s <= 5e-6),
    ]


def _report() -> float:
    """Nobody listens at the address: what is timed is the caller's side alone."""
    reporter = Reporter("bench", "nats://127.0.0.1:9", max_queue_spans=2_000_000, max_queue_bytes=2**31)
    spans = make_spans(1000)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for span in spans:
            reporter.report(span)
        best = min(best, (time.perf_counter() - began) / len(spans))
    reporter.close(0)
    return best
