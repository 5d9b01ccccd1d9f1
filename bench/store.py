"""The span store of the api: appends, and queries on 1 and on 10 million spans over a week."""

from __future__ import annotations

import os
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench.process import fsync_note
from bench.reference import APPEND, BATCH, SCAN, at_least, at_most
from bench.row import Measured, Plan, Runner
from bench.spans import make_batches
from bench.table import quantity
from tokentrace.bus import Message
from tokentrace.records import encode_batches
from tokentrace.units import DAY, MS, SECOND
from tokentrace_api.reads import Search, find_page
from tokentrace_api.store import COLUMNS, Item, Segment, Store, day_of, trace_hash

SPANS = [int(n) for n in os.environ.get("BENCH_STORE_SPANS", "1000000,10000000").split(",")]
_BATCHES = 800
#: Messages in one append: about those of a quarter of a second at full speed.
_AT_ONCE = 64
_APPENDS = 3
_DAYS = 7
_IN_A_TRACE = 3
_TRIES = 15
_CHUNK = 240_000


#: Seconds after which the search for a page returns the part found so far.
_PAGE_S = 0.2
#: Query -> (seconds allowed, seconds of these that are waits by design).
_ASKED = {
    "a trace by id": (0.1, 0.0),
    "the newest page": (0.1, 0.0),
    "a filter that many match": (0.3, 0.0),
    "a filter that few match": (0.3, _PAGE_S),
    "a text that few contain": (0.3, _PAGE_S),
    "a filter that nothing matches": (0.3, _PAGE_S),
    "a text that nothing contains": (0.3, _PAGE_S),
}

ROWS = Plan("append, decode included", "rows/s", "bare append in turn", at_least(100_000, APPEND))


def _plan(spans: int, what: str) -> Plan:
    allowed, waits_s = _ASKED[what]
    return Plan(f"{spans / 1e6:g} million spans: {what}", "s", SCAN, at_most(allowed, SCAN, waits_s=waits_s))


PLANS = (ROWS, *(_plan(spans, what) for spans in SPANS for what in _ASKED))


def run(runner: Runner) -> None:
    """Measure appends as the store writer does them, decoding included, and then queries."""
    runner.row(ROWS, _append)
    for spans in SPANS:
        runner.share([_plan(spans, what) for what in _ASKED], partial(_questions, runner, spans))


def _append() -> Measured:
    items = [
        Item(0, 1, Message("tokentrace.spans.default.0", encode_batches([batch]), index + 1, batch.arrived_ns, {}))
        for index, batch in enumerate(make_batches(_BATCHES, BATCH))
    ]
    ours, bare = [], []
    for _ in range(_APPENDS):
        with tempfile.TemporaryDirectory() as name:
            store = Store(Path(name), shards=1)
            began = time.perf_counter()
            stored = sum(len(store.append(items[at : at + _AT_ONCE])) for at in range(0, len(items), _AT_ONCE))
            ours.append(stored / (time.perf_counter() - began))
            store.close()
            size = sum(file.stat().st_size for file in Path(name).iterdir() if file.is_file())
            note = f"{size / stored:.0f} bytes a span, {fsync_note(Path(name))}"
        bare.append(APPEND.measure())
    return Measured(max(ours), max(bare), note)


def _questions(runner: Runner, spans: int) -> None:
    """Measure each query several times on a store that was just opened; the value is the longest time."""
    with tempfile.TemporaryDirectory() as name:
        now_ns = time.time_ns()
        _fill(Path(name), spans, now_ns)
        store = Store(Path(name), shards=1, keep_ns=8 * DAY)
        trace_ids = [_trace_id(spans // _TRIES * number // _IN_A_TRACE) for number in range(_TRIES)]
        asked: dict[str, Callable[[int], object]] = {
            "a trace by id": lambda n: store.trace(trace_ids[n], now_ns),
            "the newest page": lambda n: find_page(store, Search(), 20, 0, None, now_ns),
            "a filter that many match": lambda n: _page(store, Search(columns={"model": ["model-3"]}), now_ns),
            "a filter that few match": lambda n: _page(store, _rare(n), now_ns),
            "a text that few contain": lambda n: _page(store, _rare(n, "TASK-3"), now_ns),
            "a filter that nothing matches": lambda n: _page(store, _nothing(n), now_ns),
            "a text that nothing contains": lambda n: _page(store, Search(text=f"nothing {n}"), now_ns),
        }
        for what, ask in asked.items():

            def measure(ask: Callable[[int], object] = ask) -> Measured:
                took = sorted(_timed(ask, number) for number in range(_TRIES))
                return Measured(took[-1], note=f"the worst of {_TRIES}; median {quantity(took[_TRIES // 2], 's')}")

            runner.row(_plan(spans, what), measure)
        store.close()


def _timed(ask: Callable[[int], object], number: int) -> float:
    began = time.perf_counter()
    ask(number)
    return time.perf_counter() - began


def _page(store: Store, search: Search, now_ns: int) -> object:
    return find_page(store, search, 20, 0, None, now_ns)


def _nothing(number: int) -> Search:
    return Search(attributes={"workflow": [f"none-{number}"]}, columns={"status": ["ok"]})


def _rare(number: int, text: str = "") -> Search:
    return Search(text=text, least={"cost_nusd": 9_999_000 + number})


def _trace_id(number: int) -> str:
    return f"{number * 2654435761 % 2**64:016x}{number:016x}"


def _fill(directory: Path, spans: int, now_ns: int) -> None:
    """Create a store with rows as the store writer makes them, by SQL; making spans would take minutes."""
    store = Store(directory, shards=1)
    step = _DAYS * DAY // spans
    first_ns = now_ns - spans * step
    days = [day_of(first_ns + n * _DAYS * DAY // 100) for n in range(100)]
    for day in sorted({*days, day_of(now_ns)}):
        store.catalog.attach(directory / Segment(day, 0).file_name)
    wanted = ", ".join(f"{text} AS {name}" for name, text in _columns(first_ns, step).items())
    for segment in store.catalog.segments:
        start = bisect_left(range(spans), segment.day, key=lambda n: day_of(first_ns + n * step))
        end = bisect_right(range(spans), segment.day, key=lambda n: day_of(first_ns + n * step))
        for low in range(start, end, _CHUNK):
            high = min(low + _CHUNK, end)
            traces = range(low // _IN_A_TRACE, high // _IN_A_TRACE + 1)
            ids = [_trace_id(number) for number in traces]
            held = {
                "trace": np.array(traces, np.int64),
                "tid": np.array(ids, dtype=object),
                "crc": np.array([trace_hash(text) for text in ids], np.uint32),
            }
            with store.catalog.database.registered("held", held):
                store.catalog.database.run(
                    f"INSERT INTO {segment.name}.spans SELECT {wanted} FROM range(?, ?) AS t(i) "
                    f"JOIN held ON held.trace = i // {_IN_A_TRACE} ORDER BY i",
                    [low, high],
                )
    store.close()


def _columns(first_ns: int, step: int) -> dict[str, str]:
    """Return column -> SQL expression for its value in row *i*."""
    ended, latency = f"({first_ns} + i * {step})", f"({MS} + i * 829304951 % {3 * SECOND})"
    prompt, completion = "(100 + i * 17 % 3000)", "(i % 500)"
    return {name: "''" if kind == "VARCHAR" else "0" for name, kind in COLUMNS.items()} | {
        "ordinal": "i + 1",
        "trace_hash": "crc",
        "sequence": f"i // {BATCH}",
        "event_ns": ended,
        "trace_id": "tid",
        "span_id": "printf('%016x', hash(i))",
        "parent_span_id": f"CASE WHEN i % {_IN_A_TRACE} = 0 THEN NULL ELSE 'root' END",
        "name": "'task-' || (i * 7919 % 40)",
        "kind": f"CASE WHEN i % {_IN_A_TRACE} = 0 THEN 'agent' ELSE 'llm' END",
        "caller": "'caller-' || (i % 20)",
        "model": "'model-' || (i * 31 % 10)",
        "provider": "'vendor-' || (i % 5)",
        "status": "CASE WHEN i % 50 = 0 THEN 'error' ELSE 'ok' END",
        "started_ns": f"{ended} - {latency}",
        "ended_ns": ended,
        "latency_ns": latency,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": f"{prompt} + {completion}",
        "cost_nusd": "i * 977 % 10000000",
        "score": "CASE WHEN i % 10 = 0 THEN i % 1000000000 END",
        "arrived_ns": f"{ended} + {MS}",
        "counted": "true",
        "session_id": "CASE WHEN i % 4 = 0 THEN 's' || (i // 400) END",
        "user_id": "'u' || (i * 31 % 1000)",
        "attributes": """'{"step":' || (i % 7) || ',"workflow":"w' || (i % 13) || '"}'""",
        "rest": "NULL",
    }
