"""
Every metric that ``GET /metrics`` knows, however it is asked for, against a recount of the spans themselves.

The routes, the api's store, the aggregators' shards and the bus between them are real. The recount adds up with
``Fraction`` and ``numpy`` over the interval that the answer says it is about, and takes nothing from the project but
the spans: SPEC C and H-10, H-21, H-22 and DESIGN 3 and 7a are what it is written from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokentrace.rollup.series
import tokentrace_api.aggregator_client
import tokentrace_api.metrics_query
import tokentrace_api.store.store
from tokentrace.bus import Message, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace.errors import ConfigError
from tokentrace.metrics import ALIASES, BREAKDOWNS, GROUPS, METRICS, CustomMetric, parse_custom_metrics
from tokentrace.records import KINDS, Batch, ReporterStats, Span, encode_batches
from tokentrace.service.web import make_app
from tokentrace_aggregator.service import Aggregator
from tokentrace_aggregator.service import Config as AggregatorConfig
from tokentrace_aggregator.shard import Shard
from tokentrace_api.app import compose
from tokentrace_api.service import Api
from tokentrace_api.service import Config as ApiConfig
from tokentrace_api.store import Item, Store

SECOND = 10**9
MINUTE, HOUR, DAY = 60, 3600, 86400
NOON_S = 1_800_057_600
ROLLUPS = {"http", "agent", "workflow", "chain"}
DIMENSIONS = ("model", "caller", "provider", "name", "status", "kind")
#: DESIGN 7a: a histogram's quantile is off by at most 0.55 %, and nothing is up to 100 values.
LARGEST_ERROR = 0.0055
EXACT_UP_TO = 100


# ---- what is reported


EDGES_S = (0, 1, 9, 10, 59, 60, 599, 600, 1200, 3599, 3600, 3 * HOUR, 36 * HOUR, 8 * DAY, 30 * DAY, 31 * DAY)
AGES_S = st.one_of(
    st.integers(0, 90),
    st.integers(0, 90),
    st.sampled_from(EDGES_S),
    st.integers(0, 4 * HOUR),
    st.integers(0, 40 * DAY),
)
#: What a span may say, by field; what is there twice is twice as likely.
FIELDS: Mapping[str, Sequence[Any]] = {
    "times": (1, 1, 1, 1, 1, 2, 40, 110),
    "ns": (0, 1, SECOND // 3, SECOND - 1),
    "kind": ("llm", "llm", "llm", "embedding", "tool", "custom", "agent", "http", "chain"),
    "model": ("gpt-4o", "gpt-4o", "o3", "größer/x y", ""),
    "provider": ("openai", ""),
    "caller": ("a", "b", ""),
    "name": ("x", "y", ""),
    "status": ("ok", "ok", "error", "timeout"),
    "prompt_tokens": (0, 1, 374, 2**40),
    "completion_tokens": (0, 44, 2**40),
    "only_total": (0, 0, 0, 2**41),
    "cost_nusd": (None, 0, 1, 1_375_000, 1_375_000, 10**15),
    "cost_source": ("priced", "reported", "partly_priced"),
    "latency_ns": (0, 1, 10**6, 1_234_567_890, 30 * DAY * SECOND),
    "ttft_ns": (0, 0, 1, 312_500_000),
    "score": (None, None, 0, 333_333_333, 10**9),
}
VALUES: Mapping[str, Sequence[Any]] = {
    "step": ("plan", "act", 'ü "x" \\ \x00', "", None),
    "n": (0, 3, -3, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 999_999_999),
    "x": (0.1, 0.1, -2.5, 3, 1e-9, 0.5e-9, 1.5e-9, 0.0, 999_999_999.999999, -999_999_999.5, True, "7", None),
    "flag": (True, False),
    "deep": ({"n": 5}, {"n": {"m": 1.5}}, {"n": "text"}, {}, [1, 2], "flat"),
    "deep.n": (7, 2.25),
    "model": ("mine",),
    "k/e~y": ("a", 1.5),
}
LATE_S = st.one_of(st.just(0), st.integers(0, 5), st.integers(-400, -1), st.sampled_from([-299, -300, -301]), AGES_S)
#: Spans that differ in little: how many, when they arrived, how late they were (below 0 their clock was ahead).
TEMPLATES = st.fixed_dictionaries(
    {
        "arrived_ago_s": AGES_S,
        "late_s": LATE_S,
        "attributes": st.fixed_dictionaries(
            {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
        ),
        **{name: st.sampled_from(values) for name, values in FIELDS.items()},
    }
)


def make_templates(dice: random.Random, count: int, most_ago_s: int) -> list[dict[str, Any]]:
    """Spans of all sorts, most of them of lately."""

    def age_s() -> int:
        return dice.randrange(min(most_ago_s, dice.choice([60, 1500, 4 * HOUR, 4 * DAY, 35 * DAY])))

    return [
        {
            **{name: dice.choice(values) for name, values in FIELDS.items()},
            "arrived_ago_s": age_s(),
            "late_s": dice.choice([0, 0, 0, 2, 700, -20, -299, -300, -301, age_s()]),
            "attributes": {key: dice.choice(values) for key, values in VALUES.items() if dice.random() < 0.5},
        }
        for _ in range(count)
    ]


class World(NamedTuple):
    """
    What was reported until *now*.

    Attributes:
        spans: Each once, by arrival.
        streams: The messages of each shard; some batches come more than once.
        sent, dropped, failed, waiting: What the reporters told of themselves.
    """

    spans: list[Span]
    streams: list[list[Message]]
    now_s: int
    sent: int
    dropped: int
    failed: int
    waiting: int


def make_spans(templates: Sequence[Mapping[str, Any]], now_s: int) -> list[Span]:
    """The spans of *templates*, by arrival; those of one template differ in their numbers."""
    spans = []
    for template in templates:
        fields = dict(template)
        times, late_s, ns = fields.pop("times"), fields.pop("late_s"), fields.pop("ns")
        only_total = fields.pop("only_total")
        arrived = (now_s - fields.pop("arrived_ago_s")) * SECOND
        ended = arrived - late_s * SECOND + ns
        # Of calls whose clock is ahead more than a few would push those of the window out of what is kept raw.
        times = 1 if ended >= (now_s + 1) * SECOND else times
        for n in range(times):
            own = dict(fields)
            for name in ("latency_ns", "ttft_ns", "prompt_tokens", "completion_tokens", "cost_nusd"):
                if own[name] and own[name] < 10**9:
                    own[name] += 7 * n * n
            if own["score"] == 333_333_333:
                own["score"] += n * 10**6
            if own["attributes"].get("x") == 0.1:
                own["attributes"] = {**own["attributes"], "x": 0.1 + n / 8}
            if not own["cost_nusd"]:
                own["cost_source"] = "unpriced" if own["cost_nusd"] is None else "priced"
            total = only_total or own["prompt_tokens"] + own["completion_tokens"]
            if only_total:
                own["prompt_tokens"] = own["completion_tokens"] = 0
            number = len(spans)
            spans.append(
                Span(
                    trace_id=f"{number // 2:032x}",
                    span_id=f"{number:016x}",
                    started_ns=ended - own["latency_ns"] % (100 * SECOND),
                    ended_ns=ended,
                    arrived_ns=arrived,
                    total_tokens=total,
                    cache_read_tokens=own["prompt_tokens"] // 2,
                    cache_write_tokens=own["prompt_tokens"] // 3,
                    cache_write_1h_tokens=own["prompt_tokens"] // 5,
                    reasoning_tokens=own["completion_tokens"] // 2,
                    **own,
                )
            )
    return sorted(spans, key=lambda span: span.arrived_ns)


def make_world(
    templates: Sequence[Mapping[str, Any]], now_s: int, shards: int, dice: random.Random, *, most: int = 200
) -> World:
    """The spans in batches of reporters and of requests, over *shards* shards, some of them sent twice."""
    spans = make_spans(templates, now_s)
    streams: list[list[Message]] = [[] for _ in range(shards)]
    numbers = dict.fromkeys(("default.r0.0", "default.r1.0"), 0)
    told: dict[str, tuple[int, int]] = {}
    sent = dropped = failed = 0
    rest, clock_ns = list(spans), 0
    while rest:
        size = min(dice.choice([1, 2, 5, 40, 200]), most)
        taken, rest = rest[:size], rest[size:]
        clock_ns = max(clock_ns, min(taken[-1].arrived_ns + dice.choice([0, 0, 10**8, SECOND]), now_s * SECOND))
        if dice.random() < 0.7:
            name = dice.choice(sorted(numbers))
            numbers[name] += 1
            stats = ReporterStats(
                queue_depth=dice.randrange(50), newly_dropped=dice.randrange(3), newly_failed=dice.randrange(3)
            )
            batch = Batch(id=name, sequence=numbers[name], spans=taken, reporter=stats)
            shard = batch.sequence % shards
            sent, dropped, failed = sent + len(taken), dropped + stats.newly_dropped, failed + stats.newly_failed
            told[name] = (clock_ns, stats.queue_depth)
        else:
            batch = Batch(id=f"request-{len(rest)}", spans=taken)
            shard = dice.randrange(shards)
        stream = streams[shard]
        for _ in range(dice.choice([1, 1, 1, 2])):
            payload = encode_batches([batch])
            stream.append(Message(subjects.spans("default", shard), payload, len(stream) + 1, clock_ns, {}))
    # Who has told nothing for two minutes has nothing waiting.
    waiting = sum(depth for at_ns, depth in told.values() if at_ns >= (now_s - 120) * SECOND)
    return World(spans, streams, now_s, sent, dropped, failed, waiting)


CUSTOM_FIELDS = ("cost", "prompt_tokens", "comp_tokens", "total_tokens", "latency_ms", "ttft_ms")
CUSTOM_ATTRIBUTES = ("attr.x", "attr.n", "attr.deep.n", "attr.flag", "attr.k/e~y")
CUSTOM_FILTERS = st.sampled_from(
    [
        {},
        {},
        {"filter_key": "step"},
        {"filter_key": "attr.deep.n"},
        {"filter_key": "caller", "filter_val": "a"},
        {"filter_key": "status", "filter_val": "error"},
        {"filter_key": "kind", "filter_val": "tool"},
        {"filter_key": "provider", "filter_val": "unknown"},
        {"filter_key": "model", "filter_val": "gpt-4o"},
        {"filter_key": "attr.model", "filter_val": "mine"},
        {"filter_key": "attr.step", "filter_val": "plan"},
        {"filter_key": "flag", "filter_val": "true"},
        {"filter_key": "n", "filter_val": "3"},
        {"filter_key": "attr.n", "filter_val": str(2**64 - 1)},
        {"filter_key": "x", "filter_val": "0.1"},
        {"filter_key": "deep.n", "filter_val": "5"},
        {"filter_key": "deep", "filter_val": '{"n":5}'},
        {"filter_key": "k/e~y", "filter_val": "a"},
    ]
)
CUSTOM_TYPES = ("sum", "count", "avg", "p95")
CUSTOMS = st.lists(
    st.one_of(
        st.builds(
            lambda kind, field, chosen: {"type": kind, "field": field, **chosen},
            st.sampled_from(CUSTOM_TYPES),
            st.sampled_from([*CUSTOM_FIELDS, *CUSTOM_ATTRIBUTES]),
            CUSTOM_FILTERS,
        ),
        st.builds(lambda chosen: {"type": "count", **chosen}, CUSTOM_FILTERS),
    ),
    min_size=1,
    max_size=4,
)


def name_customs(drawn: Sequence[Mapping[str, Any]], dice: random.Random) -> list[dict[str, Any]]:
    """Those drawn, and one of every field that every span adds to."""
    every = [{"type": dice.choice(CUSTOM_TYPES), "field": field} for field in (*CUSTOM_FIELDS, *CUSTOM_ATTRIBUTES)]
    return [{"name": f"own_{number}", **one} for number, one in enumerate([*drawn, {"type": "count"}, *every])]


# ---- the pipeline from the streams to HTTP


class Desk:
    """Shards of real aggregators, a real store and the api's routes, at an instant of one's choosing."""

    world: World
    customs: list[dict[str, Any]]
    keep_s: int
    now_ns: int
    store: Store
    api: Api
    aggregators: list[Aggregator]
    client: httpx.AsyncClient

    def __init__(self, directory: Path, clock: SimpleNamespace) -> None:
        self._directory, self.clock = directory, clock
        self._runner = asyncio.Runner()
        self._readers = ThreadPoolExecutor(2)
        self._open = contextlib.AsyncExitStack()
        self._opened = 0

    def open(
        self,
        world: World,
        customs: Sequence[dict[str, Any]],
        dice: random.Random,
        *,
        restart: bool = False,
        keep_s: int = 60 * DAY,
    ) -> None:
        """Fold and store everything; with *restart* every reader dies somewhere on the way."""
        self.world, self.customs, self.keep_s = world, list(customs), keep_s
        self.now_ns = self.clock.now_ns = world.now_s * SECOND + dice.randrange(SECOND)
        shards, own = len(world.streams), parse_custom_metrics(customs)
        bus = MemoryBus(MemoryBroker())
        self.aggregators = []
        for held in (range(shards // 2), range(shards // 2, shards)):
            aggregator = Aggregator(bus, AggregatorConfig(shards, tuple(held), custom=tuple(own.values())))
            machines = [fold(m, world.streams[m.shard], dice, restart=restart) for m in aggregator.machines]
            for machine in machines:
                machine.tick(self.now_ns)
            aggregator.machines[:] = machines
            self.aggregators.append(aggregator)
            self._runner.run(self._open.enter_async_context(bus.serve(subjects.QUERY_METRICS, aggregator._answer)))
        self._opened += 1
        self._fill(self._directory / f"store-{self._opened}", dice, restart=restart)
        self._bus = bus
        self.start_api(own)

    def start_api(self, own: dict[str, CustomMetric]) -> None:
        """An api with these custom metrics on the bus and the store that there are."""
        config = replace(ApiConfig.of(Settings()), shards=len(self.world.streams), custom=own)
        app = compose(self._bus, config)
        assert isinstance(app.service, Api)
        self.api, self.routes = app.service, app.routes
        self.api.store_writer._readers, self.api.store_writer._store = self._readers, self.store
        self._connect()

    def _connect(self) -> None:
        transport = httpx.ASGITransport(make_app(self.routes))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://api")
        self._runner.run(self._open.enter_async_context(self.client))

    def _fill(self, directory: Path, dice: random.Random, *, restart: bool) -> None:
        shards = len(self.world.streams)
        streams = enumerate(self.world.streams)
        items = [Item(shard, 7, message) for shard, stream in streams for message in stream]
        items.sort(key=lambda item: item.message.time_ns)
        again = 0
        if restart:
            again = dice.randrange(len(items) + 1)
            before = Store(directory, shards=shards, keep_ns=self.keep_s * SECOND, memory_limit_mb=256)
            before.append(items[:again])
            before.close()
        self.store = Store(directory, shards=shards, keep_ns=self.keep_s * SECOND, memory_limit_mb=256)
        # The last one that is on disk comes once more.
        self.store.append(items[max(again - 1, 0) :])

    def close(self) -> None:
        """Let everything of this world go."""
        self._runner.run(self._open.aclose())
        self.store.close()

    def serve(self, world: World, customs: Sequence[dict[str, Any]], directory: Path) -> None:
        """Run both services on one bus, publish everything, and let both die when half of it is there."""
        self.world, self.customs, self.keep_s = world, list(customs), 7 * DAY
        self.now_ns = self.clock.now_ns = world.now_s * SECOND
        self._runner.run(self._serve(directory))
        self._connect()

    async def _serve(self, directory: Path) -> None:
        bus, shards = MemoryBus(MemoryBroker()), len(self.world.streams)
        for stream in subjects.streams():
            await bus.ensure(stream)
        messages = sorted((m for stream in self.world.streams for m in stream), key=lambda message: message.time_ns)
        half = len(messages) // 2
        await self._start(bus, shards, directory)
        for message in messages[:half]:
            await bus.publish(message.subject, message.payload)
        await self._until_read(messages[:half])
        await asyncio.sleep(0.6)  # a snapshot or two
        assert await bus.objects(subjects.SNAPSHOTS).names()
        for message in messages[half : half + 5]:
            await bus.publish(message.subject, message.payload)
        await self._stop()
        for message in messages[half + 5 :]:
            await bus.publish(message.subject, message.payload)
        await self._start(bus, shards, directory)
        await self._until_read(messages)

    async def _start(self, bus: MemoryBus, shards: int, directory: Path) -> None:
        own = parse_custom_metrics(self.customs)
        config = AggregatorConfig(shards, tuple(range(shards)), snapshot_every_s=0.2, custom=tuple(own.values()))
        self.aggregators = [Aggregator(bus, config)]
        app = compose(bus, replace(ApiConfig.of(Settings()), shards=shards, custom=own, directory=directory))
        assert isinstance(app.service, Api)
        self.api, self.routes = app.service, app.routes
        self._stopping = asyncio.Event()
        self._running = [asyncio.create_task(one.run(self._stopping)) for one in (*self.aggregators, self.api)]

    async def _until_read(self, messages: Sequence[Message]) -> None:
        """Until the state of every shard, and the store, is that of its last message."""
        count = len({(m.subject, m.payload) for m in messages})

        def is_read() -> bool:
            machines = self.aggregators[0].machines
            ready = not self.aggregators[0].health().missing and not self.api.health().missing
            return (
                ready
                and sum(machine.batches for machine in machines) == count
                and not self.api.store_writer.queue_depth
            )

        async with asyncio.timeout(60):
            while not is_read() or self.api.store_writer.store.count(self.now_ns) != sum(
                machine.spans for machine in self.aggregators[0].machines
            ):
                await asyncio.sleep(0.02)

    async def _stop(self) -> None:
        """The aggregator is killed, the api is asked to stop."""
        aggregator, api = self._running
        aggregator.cancel()
        self._stopping.set()
        await asyncio.gather(aggregator, api, return_exceptions=True)

    def stop(self) -> None:
        """Let the services go."""
        self._runner.run(self._open.aclose())
        self._runner.run(self._stop())

    def shutdown(self) -> None:
        """Let the threads go as well."""
        self._readers.shutdown()
        self._runner.close()

    def ask(self, path: str, given: Mapping[str, str]) -> tuple[int, Any]:
        """(Status, body) of GET *path*."""
        answer = self._runner.run(self._get(path, given))
        return answer.status_code, json.loads(answer.content)

    async def _get(self, path: str, given: Mapping[str, str]) -> httpx.Response:
        return await self.client.get(path, params=dict(given))

    def get(self, path: str, given: Mapping[str, str]) -> Any:
        """The body of an answer that is well."""
        status, body = self.ask(path, given)
        assert status == 200, (path, given, body)
        assert "incomplete" not in body
        return body


def fold(machine: Shard, stream: Sequence[Message], dice: random.Random, *, restart: bool) -> Shard:
    """*machine*, or the one restored in its place, when it has read *stream*."""
    fresh = lambda: Shard(machine.shard, machine._shards, machine._custom)  # noqa: E731
    cut = dice.randrange(len(stream) + 1) if restart else -1
    for index, message in enumerate(stream):
        if index == cut:
            saved = machine.snapshot({})
            state, parts = saved.state(), {name: part.encode() for name, part in saved.parts.items() if part.encode}
            machine.fold(message, 7)  # folded after the snapshot, lost in the crash, folded again below
            machine = fresh()
            machine.restore(state, parts)
        machine.fold(message, 7)
        if dice.random() < 0.1:
            machine.tick(message.time_ns)
    return machine


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose clock follows the world that is opened."""
    clock = SimpleNamespace(now_ns=None)

    def time_ns() -> int:
        return time.time_ns() if clock.now_ns is None else int(clock.now_ns)

    with pytest.MonkeyPatch.context() as patch:
        for module in (tokentrace_api.metrics_query, tokentrace_api.store.store):
            patch.setattr(module, "time", SimpleNamespace(time_ns=time_ns, time=time.time))
        # However busy the machine is: no answer is given up.
        patch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 30.0)
        made = Desk(tmp_path_factory.mktemp("recount"), clock)
        yield made
        made.shutdown()


@contextlib.contextmanager
def opened(desk: Desk, *args: Any, **options: Any) -> Iterator[Desk]:
    """*desk* with a world on it."""
    desk.open(*args, **options)
    try:
        yield desk
    finally:
        desk.close()


# ---- the recount


class Spans(NamedTuple):
    """What is counted of some spans: whose calls, whose money, whose scores (SPEC H-10)."""

    calls: list[Span]
    paid: list[Span]
    scored: list[Span]
    every: list[Span]


def split_by_use(spans: Iterable[Span], kind: str) -> Spans:
    """Counts, tokens and latency are of *kind*; money and quality of every kind unless one is asked for."""
    every = list(spans)
    calls = every if kind == "all" else [span for span in every if span.kind == (kind or "llm")]
    wide = every if kind in ("", "all") else calls
    return Spans(
        calls=calls,
        paid=[span for span in wide if span.kind not in ROLLUPS],
        scored=[span for span in wide if span.score is not None],
        every=wide,
    )


class Sum(NamedTuple):
    """An exact number; None without anything that contributes."""

    value: Fraction | None


class Mean(NamedTuple):
    """A number that a division came last to."""

    value: Fraction | None


class Quantile(NamedTuple):
    """
    A quantile of integers.

    Attributes:
        unit: What one is divided by.
        rounded: Shown to so much.
    """

    values: Sequence[int]
    q: float
    unit: int
    rounded: float = 0.0


Number = Sum | Mean | Quantile


def assert_number(got: Any, want: Number, error: float, where: object) -> None:
    """*got* is *want*; *error* is what the answer says of its quantiles."""
    if isinstance(want, Quantile):
        assert_quantile(got, want, 0.0 if len(want.values) <= EXACT_UP_TO else error, where)
    elif want.value is None:
        assert got is None, (where, got)
    elif isinstance(want, Sum):
        assert got is not None, (where, want)
        assert got == (want.value if isinstance(got, int) else float(want.value)), (where, got, want)
    else:
        assert got is not None, (where, want)
        assert abs(Fraction(got) - want.value) <= abs(want.value) / 10**12, (where, got, float(want.value))


def assert_quantile(got: float | None, want: Quantile, error: float, where: object) -> None:
    if not want.values:
        assert got is None, (where, got)
        return
    assert got is not None, (where, want)
    values = np.sort(np.array(want.values, float))
    true = float(np.quantile(values, want.q)) / want.unit
    rank = want.q * (len(values) - 1)
    low, high = values[int(rank)], values[min(int(rank) + 1, len(values) - 1)]
    size = max(abs(low), abs(high)) / want.unit
    assert abs(got - true) <= error * size + 1e-12 * size + want.rounded, (where, got, true, len(values))


def ratio(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole else None


def usd(spans: Sequence[Span]) -> Fraction:
    return Fraction(sum(span.cost_nusd or 0 for span in spans), 10**9)


def total_cost(of: Spans) -> Fraction | None:
    return usd(of.paid) if of.paid else None


def latencies(of: Spans) -> list[int]:
    return [span.latency_ns for span in of.calls if span.latency_ns > 0]


def ttfts(of: Spans) -> list[int]:
    return [span.ttft_ns for span in of.calls if span.ttft_ns > 0]


def scores(of: Spans) -> list[int]:
    return [span.score for span in of.scored if span.score is not None]


def tokens(of: Spans, field: str) -> list[int]:
    return [getattr(span, field) for span in of.calls]


def failed(of: Spans, *statuses: str) -> int:
    return sum(span.status in statuses for span in of.calls)


def ms(values: Sequence[int], q: float) -> Quantile:
    return Quantile(values, q, 10**6, rounded=0.51e-6)


def token_quantile(of: Spans, field: str, q: float) -> Quantile:
    return Quantile(tokens(of, field), q, 1, rounded=0.51e-6)


def unpriced(of: Spans) -> int:
    return sum(span.cost_nusd is None for span in of.paid)


def partly_priced(of: Spans) -> int:
    return sum(span.cost_source == "partly_priced" for span in of.paid)


def if_any(contributing: Sequence[object], value: int | Fraction) -> Sum:
    """H-22: nothing is null."""
    return Sum(Fraction(value) if contributing else None)


Recount = Callable[[Spans], tuple[Number, Sequence[object]]]
#: Metric -> (its number, what contributed to it).
SCALARS: Mapping[str, Recount] = {
    "total_cost": lambda of: (Sum(total_cost(of)), of.paid),
    "cost_per_call": lambda of: (Mean(usd(of.paid) / len(of.calls) if of.calls else None), of.calls),
    "unpriced_span_count": lambda of: (if_any(of.paid, unpriced(of)), of.paid),
    "prompt_tokens": lambda of: (if_any(of.calls, sum(tokens(of, "prompt_tokens"))), of.calls),
    "completion_tokens": lambda of: (if_any(of.calls, sum(tokens(of, "completion_tokens"))), of.calls),
    "total_tokens": lambda of: (if_any(of.calls, sum(tokens(of, "total_tokens"))), of.calls),
    "prompt_token_p50": lambda of: (token_quantile(of, "prompt_tokens", 0.5), of.calls),
    "prompt_token_p95": lambda of: (token_quantile(of, "prompt_tokens", 0.95), of.calls),
    "completion_token_p50": lambda of: (token_quantile(of, "completion_tokens", 0.5), of.calls),
    "completion_token_p95": lambda of: (token_quantile(of, "completion_tokens", 0.95), of.calls),
    "latency_p50": lambda of: (ms(latencies(of), 0.5), latencies(of)),
    "latency_p95": lambda of: (ms(latencies(of), 0.95), latencies(of)),
    "latency_p99": lambda of: (ms(latencies(of), 0.99), latencies(of)),
    "latency_avg": lambda of: (average_ms(of), latencies(of)),
    "ttft_p50": lambda of: (ms(ttfts(of), 0.5), ttfts(of)),
    "ttft_p95": lambda of: (ms(ttfts(of), 0.95), ttfts(of)),
    "error_rate": lambda of: (Mean(ratio(failed(of, "error", "timeout"), len(of.calls))), of.calls),
    "error_count": lambda of: (if_any(of.calls, failed(of, "error", "timeout")), of.calls),
    "timeout_rate": lambda of: (Mean(ratio(failed(of, "timeout"), len(of.calls))), of.calls),
    "timeout_count": lambda of: (if_any(of.calls, failed(of, "timeout")), of.calls),
    "span_count": lambda of: (if_any(of.calls, len(of.calls)), of.calls),
    "quality_score": lambda of: (mean_score(of), of.scored),
    "quality_p10": lambda of: (Quantile(scores(of), 0.1, 10**9), of.scored),
    "quality_p50": lambda of: (Quantile(scores(of), 0.5, 10**9), of.scored),
}
#: Metric or group -> the values of each of its distributions.
DISTRIBUTIONS: Mapping[str, Callable[[Spans], list[Sequence[int]]]] = {
    "prompt_token_p": lambda of: [tokens(of, "prompt_tokens")],
    "completion_token_p": lambda of: [tokens(of, "completion_tokens")],
    "latency_p": lambda of: [latencies(of)],
    "latency_by": lambda of: [latencies(of)],
    "ttft_p": lambda of: [ttfts(of)],
    "quality_p": lambda of: [scores(of)],
    "tokens$": lambda of: [tokens(of, "prompt_tokens"), tokens(of, "completion_tokens")],
    "latency$": lambda of: [latencies(of), ttfts(of)],
    "quality$": lambda of: [scores(of)],
}


def average_ms(of: Spans) -> Mean:
    return Mean(ratio(sum(latencies(of)), 10**6 * len(latencies(of))))


def mean_score(of: Spans) -> Mean:
    return Mean(ratio(sum(scores(of)), 10**9 * len(scores(of))))


def cost_group(of: Spans) -> dict[str, Number]:
    return {
        "total_usd": Sum(usd(of.paid)),
        "per_call_usd": SCALARS["cost_per_call"](of)[0],
        "unpriced_span_count": Sum(Fraction(unpriced(of))),
        "partly_priced_span_count": Sum(Fraction(partly_priced(of))),
    }


def tokens_group(of: Spans) -> dict[str, Number]:
    sums = {
        "prompt_total": "prompt_tokens",
        "completion_total": "completion_tokens",
        "total": "total_tokens",
        "cache_read_total": "cache_read_tokens",
        "cache_write_total": "cache_write_tokens",
        "cache_write_1h_total": "cache_write_1h_tokens",
        "reasoning_total": "reasoning_tokens",
    }
    quantiles = {"prompt_p50": 0.5, "prompt_p95": 0.95, "completion_p50": 0.5, "completion_p95": 0.95}
    return {name: Sum(Fraction(sum(tokens(of, field)))) for name, field in sums.items()} | {
        name: token_quantile(of, f"{name.partition('_')[0]}_tokens", q) for name, q in quantiles.items()
    }


def latency_group(of: Spans) -> dict[str, Number]:
    return {
        "p50_ms": ms(latencies(of), 0.5),
        "p95_ms": ms(latencies(of), 0.95),
        "p99_ms": ms(latencies(of), 0.99),
        "avg_ms": average_ms(of),
        "ttft_p50_ms": ms(ttfts(of), 0.5),
        "ttft_p95_ms": ms(ttfts(of), 0.95),
    }


def errors_group(of: Spans) -> dict[str, Number]:
    return {
        "rate": Mean(ratio(failed(of, "error", "timeout"), len(of.calls))),
        "count": Sum(Fraction(failed(of, "error", "timeout"))),
        "timeout_rate": Mean(ratio(failed(of, "timeout"), len(of.calls))),
        "timeout_count": Sum(Fraction(failed(of, "timeout"))),
    }


def quality_group(of: Spans) -> dict[str, Number]:
    return {
        "score_avg": mean_score(of),
        "score_p10": Quantile(scores(of), 0.1, 10**9),
        "score_p50": Quantile(scores(of), 0.5, 10**9),
        "scored_span_count": Sum(Fraction(len(of.scored))),
    }


GROUP_RECOUNTS: Mapping[str, Callable[[Spans], dict[str, Number]]] = {
    "cost": cost_group,
    "tokens": tokens_group,
    "latency": latency_group,
    "errors": errors_group,
    "quality": quality_group,
}


def tokens_split(of: Spans) -> dict[str, Number] | None:
    fields = {"prompt": "prompt_tokens", "completion": "completion_tokens", "total": "total_tokens"}
    return {name: Sum(Fraction(sum(tokens(of, field)))) for name, field in fields.items()} if of.calls else None


def latency_split(of: Spans) -> dict[str, Number] | None:
    return {f"p{p}_ms": ms(latencies(of), p / 100) for p in (50, 95, 99)} if latencies(of) else None


#: Split -> (dimension, "" = the attribute asked for; what is shown of each value, None = nothing).
SPLIT_RECOUNTS: Mapping[str, tuple[str, Callable[[Spans], dict[str, Number] | Number | None]]] = {
    "cost_by_model": ("model", lambda of: Sum(usd(of.paid)) if of.paid else None),
    "cost_by_caller": ("caller", lambda of: Sum(usd(of.paid)) if of.paid else None),
    "cost_by_provider": ("provider", lambda of: Sum(usd(of.paid)) if of.paid else None),
    "cost_by_attribute": ("", lambda of: Sum(usd(of.paid)) if of.paid else None),
    "tokens_by_model": ("model", tokens_split),
    "latency_by_model": ("model", latency_split),
    "quality_by_model": ("model", lambda of: mean_score(of) if of.scored else None),
    "quality_by_attribute": ("", lambda of: mean_score(of) if of.scored else None),
}


def event_s(span: Span) -> int:
    """When it counts: when it ended, unless that lies more than five minutes after its arrival."""
    ahead = span.ended_ns - span.arrived_ns
    return (span.ended_ns if ahead <= 300 * SECOND else span.arrived_ns) // SECOND


def attribute(span: Span, key: str) -> Any:
    """DESIGN 3: the literal key first, then the path."""
    value = span.attributes.get(key)
    if value is None and "." in key:
        value = span.attributes
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def text_of(value: Any) -> str | None:
    """A value as JSON shows it, a string as it is; None where there is none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def value_of(span: Span, key: str, *, is_attribute: bool) -> str | None:
    """What *span* is grouped and filtered by: ``unknown`` for a dimension that is not set."""
    return text_of(attribute(span, key)) if is_attribute else getattr(span, key) or "unknown"


def billionths(value: Any) -> int | None:
    """A numeric attribute as an integer of 1e-9; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
        return int((exact * 10**9).to_integral_value(ROUND_HALF_EVEN))


def measured(span: Span, custom: Mapping[str, Any]) -> int | None:
    """SPEC C.3: what *span* adds to a metric of one's own, None when nothing."""
    key = custom.get("filter_key")
    if key:
        is_attribute = key not in DIMENSIONS
        found = value_of(span, key.removeprefix("attr."), is_attribute=is_attribute)
        if found is None or ("filter_val" in custom and found != custom["filter_val"]):
            return None
    field = custom.get("field", "")
    if field.startswith("attr."):
        # What does not fit into 64 bits then is the concern of a test of its own.
        number = billionths(attribute(span, field.removeprefix("attr.")))
        return number if number is not None and abs(number) < 2**63 else None
    if field == "cost":
        return None if span.kind in ROLLUPS else span.cost_nusd
    if field in ("latency_ms", "ttft_ms"):
        return getattr(span, field.replace("_ms", "_ns")) or None
    return int(getattr(span, field.replace("comp_", "completion_"))) if field else 0


def own_number(custom: Mapping[str, Any], values: Sequence[int]) -> Number:
    """A metric of one's own of what was measured, in its unit."""
    field = custom.get("field", "")
    unit = 10**9 if field.startswith("attr.") or field == "cost" else 10**6 if field.endswith("_ms") else 1
    if custom["type"] == "count":
        return if_any(values, len(values))
    if custom["type"] == "sum":
        return if_any(values, Fraction(sum(values), unit))
    return Mean(ratio(sum(values), unit * len(values))) if custom["type"] == "avg" else Quantile(values, 0.95, unit)


# ---- what is asked


class Ask(NamedTuple):
    """The parameters of a question; *groupby* as written."""

    window: str = "1h"
    kind: str = ""
    filters: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    groupby: str = ""

    @property
    def by_attribute(self) -> bool:
        return bool(self.groupby) and self.groupby not in DIMENSIONS

    @property
    def key(self) -> str:
        return self.groupby.removeprefix("attr.")

    def given(self, *, groupby: bool = True) -> dict[str, str]:
        """As query parameters."""
        given = {"window": self.window, "kind": self.kind, "groupby": self.groupby if groupby else "", **self.filters}
        named = {f"attr.{key}": value for key, value in self.attributes.items()}
        return {name: value for name, value in given.items() if value} | named


WINDOWS = {
    "1s": 1,
    "10s": 10,
    "1m30s": 90,
    "20m": 1200,
    "1h": HOUR,
    "2h30m": 9000,
    "6h": 6 * HOUR,
    "24h": DAY,
    "36h1s": 36 * HOUR + 1,
    "7d": 7 * DAY,
    "8d": 8 * DAY,
    "30d": 30 * DAY,
    "31d": 31 * DAY,
    "60d": 60 * DAY,
}
KINDS_ASKED = st.sampled_from(["", "", "", "all", "llm", "tool", "embedding", "agent"])
GROUP_ATTRIBUTES = ("step", "attr.step", "n", "x", "attr.flag", "deep.n", "attr.deep", "attr.model", "k/e~y", "nowhere")
FILTERS: Sequence[dict[str, str]] = (
    {},
    {"model": "gpt-4o"},
    {"model": "größer/x y"},
    {"provider": "unknown", "status": "ok"},
    {"caller": "a"},
    {"name": "x", "status": "error"},
    {"model": "unknown"},
    {"caller": "nobody"},
)
ATTRIBUTE_FILTERS: Sequence[dict[str, str]] = (
    {},
    {"step": "plan"},
    {"n": "3"},
    {"n": str(2**64 - 1)},
    {"x": "0.1"},
    {"x": "1.5e-9"},
    {"flag": "true"},
    {"deep.n": "5"},
    {"deep.n": "text", "flag": "false"},
    {"model": "mine"},
    {"k/e~y": "a"},
    {"nowhere": "1"},
)
ASKS = st.builds(
    Ask,
    window=st.sampled_from(list(WINDOWS)),
    kind=KINDS_ASKED,
    filters=st.sampled_from([{}, *FILTERS]),
    attributes=st.sampled_from([{}, {}, *ATTRIBUTE_FILTERS]),
    groupby=st.one_of(st.just(""), st.sampled_from(DIMENSIONS), st.sampled_from(GROUP_ATTRIBUTES)),
)
ATTRIBUTE_METRICS = ("x", "n", "deep.n", "flag", "step", "nowhere")


def instant_s(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp())


class Truth:
    """What a question of *ask* has to come to, over the interval that its answer is about."""

    def __init__(self, desk: Desk, ask: Ask, from_s: int, to_s: int) -> None:
        self.desk, self.ask, self.from_s = desk, ask, from_s
        self._window = [span for span in desk.world.spans if from_s <= event_s(span) < to_s]
        self._kept = [span for span in self._window if span.arrived_ns >= desk.now_ns - desk.keep_s * SECOND]
        self.total = split_by_use(self.matching(stored=bool(ask.attributes)), ask.kind)
        self.models = self._split(self.matching(stored=bool(ask.attributes)), "model", is_attribute=False)
        self.groups = self.by(ask.key, is_attribute=ask.by_attribute) if ask.groupby else {}

    def matching(self, *, stored: bool) -> list[Span]:
        """The spans that pass every filter; *stored*: of those that the store keeps."""
        ask = self.ask
        return [
            span
            for span in (self._kept if stored else self._window)
            if all(value_of(span, key, is_attribute=False) == value for key, value in ask.filters.items())
            and all(value_of(span, key, is_attribute=True) == value for key, value in ask.attributes.items())
        ]

    def by(self, key: str, *, is_attribute: bool) -> dict[str, Spans]:
        """Value -> its spans; without the attribute they are left out (SPEC C.2)."""
        matching = self.matching(stored=is_attribute or bool(self.ask.attributes))
        return self._split(matching, key, is_attribute=is_attribute)

    def _split(self, spans: Iterable[Span], key: str, *, is_attribute: bool) -> dict[str, Spans]:
        groups: dict[str, list[Span]] = {}
        for span in spans:
            value = value_of(span, key, is_attribute=is_attribute)
            if value is not None:
                groups.setdefault(value, []).append(span)
        return {value: split_by_use(found, self.ask.kind) for value, found in groups.items()}

    def error(self, name: str, body: Mapping[str, Any], groups: Mapping[str, Spans]) -> float:
        """What the answer says of its quantiles, which is nothing up to 100 values of each."""
        found = next((take for start, take in DISTRIBUTIONS.items() if f"{name}$".startswith(start)), None)
        if found is None:
            assert "quantile_error" not in body
            return LARGEST_ERROR
        error = float(body["quantile_error"])
        assert 0 <= error <= LARGEST_ERROR
        if all(len(values) <= EXACT_UP_TO for of in (self.total, *groups.values()) for values in found(of)):
            assert error == 0, name
        return error


def is_shown(of: Spans) -> bool:
    """A group that has anything to tell."""
    return bool(of.calls or of.scored or usd(of.paid) or unpriced(of))


def has_calls(of: Spans) -> bool:
    """A group that has calls to tell of."""
    return bool(of.calls)


def has_scores(of: Spans) -> bool:
    """A group that has scores to tell of."""
    return bool(of.scored)


#: Of a group of metrics, which values of what it is grouped by are there; of the others those with calls.
SHOWN_BY = {"cost": is_shown, "quality": has_scores}


def assert_groups(
    got: Mapping[str, Any],
    groups: Mapping[str, Spans],
    shown: Callable[[Spans], bool],
    check: Callable[[Any, Spans, object], None],
    where: object,
) -> None:
    """Every group that has to be there is, none is made up, each is right."""
    missing = {value for value, of in groups.items() if shown(of)} - set(got)
    assert not missing, (where, missing)
    assert not set(got) - set(groups), (where, got)
    for value, shown_value in got.items():
        check(shown_value, groups[value], (where, value))


def assert_all(got: Mapping[str, Any], want: Mapping[str, Number], error: float, where: object) -> None:
    for name, number in want.items():
        assert_number(got[name], number, error, (where, name))


class Checker:
    """Asks everything that one question can be put to, and compares it with the truth."""

    def __init__(self, desk: Desk, ask: Ask) -> None:
        self.desk, self.ask = desk, ask
        self._truths: dict[tuple[int, int], Truth] = {}

    def truth(self, body: Mapping[str, Any], *, stored: bool | None = None) -> Truth:
        """
        Of the answer's own interval, which is never smaller than asked, and larger by 1 % at most.

        Args:
            stored: The store was asked; None = when groups or filters are those of attributes.
        """
        ask, desk = self.ask, self.desk
        from_s, to_s = instant_s(body["from"]), instant_s(body["to"])
        now_s, length_s = desk.world.now_s, min(WINDOWS[ask.window], 31 * DAY)
        assert to_s == now_s + 1
        assert now_s - length_s - max(1, length_s / 100) <= from_s <= now_s - length_s
        since_s = 0
        if WINDOWS[ask.window] > 31 * DAY:
            since_s = now_s - 31 * DAY
        if ask.attributes or (ask.by_attribute if stored is None else stored):
            kept_s = (desk.now_ns - desk.keep_s * SECOND) // SECOND
            since_s = max(since_s, kept_s) if kept_s > from_s else since_s
        assert body["since"] is None if not since_s else abs(instant_s(body["since"]) - since_s) <= 1
        assert body.get("window", ask.window) == ask.window
        if (from_s, to_s) not in self._truths:
            self._truths[from_s, to_s] = Truth(desk, ask, from_s, to_s)
        return self._truths[from_s, to_s]

    def everything(self) -> None:
        """GET /metrics."""
        ask, body = self.ask, self.desk.get("/metrics", self.ask.given())
        truth, world = self.truth(body), self.desk.world
        assert body["span_count"] == len(truth.total.calls)
        self._assert_everything(body, truth.total, ask)
        self._assert_models(body["cost"], truth, ask)
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                assert got["span_count"] == len(of.calls), where
                self._assert_everything(got, of, where)

            assert_groups(body[f"by_{ask.key}"], truth.groups, is_shown, check, ask)
        told = {"sent": world.sent, "failed": world.failed, "dropped": world.dropped, "queue_depth": world.waiting}
        assert body["transport"] == told
        assert body["alerts"] == {"firings": {}, "delivery_failed": {}}

    def _assert_everything(self, got: Any, of: Spans, where: object) -> None:
        for name, recount in GROUP_RECOUNTS.items():
            assert_all(got[name], recount(of), LARGEST_ERROR, (where, name))
        for custom in self.desk.customs:
            assert_number(got[custom["name"]], own_number(custom, own_values(custom, of)), LARGEST_ERROR, custom)

    def _assert_models(self, got: Any, truth: Truth, where: object) -> None:
        """A model that cost nothing and answered no call need not be named."""
        assert_groups(
            got["by_model"],
            truth.models,
            lambda of: bool(of.calls or usd(of.paid)),
            lambda value, of, at: assert_number(value, Sum(usd(of.paid)), 0, at),
            where,
        )
        counts = {
            value: {"unpriced_span_count": unpriced(of), "partly_priced_span_count": partly_priced(of)}
            for value, of in truth.models.items()
            if unpriced(of) or partly_priced(of)
        }
        assert got["unpriced_by_model"] == counts, where

    def scalar(self, name: str) -> None:
        """GET /metrics/{name} of a number."""
        ask, recount = self.ask, SCALARS[ALIASES.get(name, name)]
        body = self.desk.get(f"/metrics/{name}", ask.given())
        truth, own = self.truth(body), ALIASES.get(name, name)
        assert body["metric"] == own
        number, contributing = recount(truth.total)
        error = truth.error(own, body, truth.groups)
        assert_number(body["value"], number, error, (ask, name))
        assert body["span_count"] == len(contributing), (ask, name)
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                assert_number(got, recount(of)[0], error, where)

            assert_groups(body[f"by_{ask.key}"], truth.groups, is_shown, check, (ask, name))

    def group(self, name: str) -> None:
        """GET /metrics/{name} of a group."""
        ask, recount = self.ask, GROUP_RECOUNTS[name]
        body = self.desk.get(f"/metrics/{name}", ask.given())
        truth = self.truth(body)
        error = truth.error(name, body, truth.groups)
        assert body["span_count"] == len(truth.total.calls)
        if name == "cost" or not ask.groupby:
            assert_all(body, recount(truth.total), error, (ask, name))
        if name == "cost" and ask.key != "model":
            self._assert_models(body, truth, ask)
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                if name == "cost":
                    assert_number(got, Sum(usd(of.paid)), 0, where)
                else:
                    assert_all(got, recount(of), error, where)

            assert_groups(body[f"by_{ask.key}"], truth.groups, SHOWN_BY.get(name, has_calls), check, (ask, name))
        self._assert_exemplars(name, body, truth)

    def _assert_exemplars(self, name: str, body: Mapping[str, Any], truth: Truth) -> None:
        """The largest of what was counted, each of another trace; finding them may be given up."""
        if name not in ("cost", "latency") or not body["exemplars"]:
            return
        stored = split_by_use(truth.matching(stored=True), self.ask.kind)
        field, unit, shown = ("cost_nusd", 10**9, "cost_usd") if name == "cost" else ("latency_ns", 10**6, "latency_ms")
        largest: dict[str, int] = {}
        for span in stored.paid if name == "cost" else stored.calls:
            largest[span.trace_id] = max(largest.get(span.trace_id, 0), getattr(span, field) or 0)
        ranked = sorted((value for value in largest.values() if value), reverse=True)[:3]
        assert [one[shown] for one in body["exemplars"]] == [value / unit for value in ranked]
        assert [largest[one["trace_id"]] for one in body["exemplars"]] == ranked

    def split(self, name: str, key: str = "") -> None:
        """GET /metrics/{name} of a map from a value to numbers."""
        ask = self.ask._replace(groupby="")
        dimension, recount = SPLIT_RECOUNTS[name]
        body = self.desk.get(f"/metrics/{name}", ask.given() | ({"key": key} if key else {}))
        truth = self.truth(body, stored=not dimension)
        groups = truth.by(dimension or key.removeprefix("attr."), is_attribute=not dimension)
        error = truth.error(name, body, groups)
        assert body["value"] == body[f"by_{dimension or key.removeprefix('attr.')}"]
        assert body["span_count"] == len(truth.total.calls)

        def check(got: Any, of: Spans, where: object) -> None:
            want = recount(of)
            assert want is not None, where
            if isinstance(want, dict):
                assert_all(got, want, error, where)
            else:
                assert_number(got, want, error, where)

        assert_groups(
            body["value"], groups, lambda of: is_shown(of) and recount(of) is not None, check, (ask, name, key)
        )

    def attribute(self, key: str) -> None:
        """GET /metrics/attr.<key>: of the spans themselves, so without any error."""
        ask = self.ask
        body = self.desk.get(f"/metrics/attr.{key}", ask.given())
        truth = self.truth(body, stored=True)
        custom = {"type": "p95", "field": f"attr.{key}"}
        matching = split_by_use(truth.matching(stored=True), ask.kind)
        self._assert_tally(body, own_values(custom, matching), (ask, key))
        if ask.groupby:
            groups = truth._split(truth.matching(stored=True), ask.key, is_attribute=ask.by_attribute)
            assert_groups(
                body[f"by_{ask.key}"],
                groups,
                lambda of: bool(own_values(custom, of)),
                lambda got, of, where: self._assert_tally(got, own_values(custom, of), where),
                (ask, key),
            )

    @staticmethod
    def _assert_tally(got: Mapping[str, Any], values: Sequence[int], where: object) -> None:
        assert got["count"] == len(values), where
        assert_number(got["sum"], if_any(values, Fraction(sum(values), 10**9)), 0, where)
        assert_number(got["avg"], Mean(ratio(sum(values), 10**9 * len(values))), 0, where)
        for name, q in (("p50", 0.5), ("p95", 0.95)):
            assert_quantile(got[name], Quantile(values, q, 10**9), 0.0, where)

    def own(self, custom: Mapping[str, Any]) -> None:
        """GET /metrics/{name} of a metric of one's own."""
        ask, name = self.ask, custom["name"]
        body = self.desk.get(f"/metrics/{name}", ask.given())
        truth = self.truth(body)
        values = own_values(custom, truth.total)
        assert_number(body["value"], own_number(custom, values), LARGEST_ERROR, (ask, custom))
        assert body["span_count"] == len(values)
        if ask.groupby:
            assert_groups(
                body[f"by_{ask.key}"],
                truth.groups,
                lambda of: bool(own_values(custom, of)),
                lambda got, of, at: assert_number(got, own_number(custom, own_values(custom, of)), LARGEST_ERROR, at),
                (ask, custom),
            )

    def transport(self) -> None:
        """What reporters and alerts tell of themselves, whatever the window."""
        world = self.desk.world
        told = {"sent": world.sent, "failed": world.failed, "dropped": world.dropped, "queue_depth": world.waiting}
        for name, value in told.items():
            assert self.desk.get(f"/metrics/transport_{name}", self.ask.given())["value"] == value
        for name in ("alert_firings", "alert_delivery_failed"):
            assert self.desk.get(f"/metrics/{name}", {}) == {"metric": name, "value": 0, "by_rule": {}}

    def series(self, name: str, step_s: int) -> None:
        """GET /metrics/{name}/series: every point is a window of its own, together they are the whole one."""
        ask, customs = self.ask, {one["name"]: one for one in self.desk.customs}
        body = self.desk.get(f"/metrics/{name}/series", ask.given() | {"step": f"{step_s}s"})
        truth = self.truth(body)
        from_s, to_s = instant_s(body["from"]), instant_s(body["to"])
        starts = [from_s, *range((from_s // step_s + 1) * step_s, to_s, step_s)]
        wholes = {"": body["points"], **(body.get(f"by_{ask.groupby}") or {})}
        groups = {"": truth.total, **truth.groups}
        missing = {
            value
            for value, of in truth.groups.items()
            if (own_values(customs[name], of) if name in customs else is_shown(of))
        } - set(wholes)
        assert not missing, (ask, name, missing)
        for value, points in wholes.items():
            assert [instant_s(point["at"]) for point in points] == starts
            for point, (start_s, end_s) in zip(points, pairwise([*starts, to_s]), strict=True):
                of = Spans(*([span for span in part if start_s <= event_s(span) < end_s] for part in groups[value]))
                where = (ask, name, value, point["at"])
                assert point["span_count"] == len(of.calls), where
                # A distribution of the past need not be raw any more.
                error = LARGEST_ERROR
                if name in GROUP_RECOUNTS:
                    want = GROUP_RECOUNTS[name](of)
                elif name in customs:
                    want = {"value": own_number(customs[name], own_values(customs[name], of))}
                else:
                    want = {"value": SCALARS[name](of)[0]}
                shown = point["value"] if name in GROUP_RECOUNTS else point
                for key, number in want.items():
                    if isinstance(number, Quantile):
                        assert_quantile(shown[key], number, error, where)
                    else:
                        assert_number(shown[key], number, error, where)
        self._assert_adds_up(name, body, ask)

    def _assert_adds_up(self, name: str, body: Mapping[str, Any], ask: Ask) -> None:
        """Of what is added up, the points come to exactly what the window does."""
        unit = additive_unit(name, self.desk.customs)
        if unit is None:
            return
        whole = self.desk.get(f"/metrics/{name}", ask.given())
        assert (whole["from"], whole["to"]) == (body["from"], body["to"])
        pairs = [(body["points"], whole["value"])]
        if ask.groupby:
            shown = whole[f"by_{ask.groupby}"]
            pairs += [(points, shown[value]) for value, points in body[f"by_{ask.groupby}"].items()]
        for points, total in pairs:
            parts = [point["value"] for point in points if point["value"] is not None]
            assert (total is None) == (not parts)
            # A float tells its integer apart from the next one below 2**53.
            if parts and max(abs(total), *map(abs, parts)) * unit < 2**52:
                assert sum(round(Fraction(part) * unit) for part in parts) == round(Fraction(total) * unit), (ask, name)


def own_values(custom: Mapping[str, Any], of: Spans) -> list[int]:
    """What was measured of every kind, or of the one that is asked for."""
    found = (measured(span, custom) for span in of.every)
    return [value for value in found if value is not None]


def additive_unit(name: str, customs: Sequence[Mapping[str, Any]]) -> int | None:
    """How many integers one unit of a metric that is added up comes to; None for the others."""
    if name == "total_cost":
        return 10**9
    if name in ("span_count", "prompt_tokens", "completion_tokens", "total_tokens", "error_count", "timeout_count"):
        return 1
    custom = next((one for one in customs if one["name"] == name), None)
    if custom is None or custom["type"] not in ("sum", "count"):
        return None
    return 1 if custom["type"] == "count" else 10**9


# ---- the promises


WORLDS = {
    "templates": st.lists(TEMPLATES, max_size=14),
    "more": st.sampled_from([0, 10, 40]),
    "now_s": st.integers(0, 3 * DAY).map(lambda offset: NOON_S + offset),
    "shards": st.sampled_from([1, 2, 5]),
    "restart": st.booleans(),
    "keep_s": st.sampled_from([60 * DAY, 60 * DAY, 7 * DAY]),
    "drawn": CUSTOMS,
    "seed": st.integers(0, 2**32),
}
QUIET = settings(
    deadline=None, max_examples=14, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_the_recount_knows_every_name_there_is() -> None:
    assert set(SCALARS) == set(METRICS)
    assert set(GROUP_RECOUNTS) == set(GROUPS)
    assert set(SPLIT_RECOUNTS) == set(BREAKDOWNS)
    assert set(ALIASES.values()) <= set(SCALARS)


@settings(QUIET)
@given(asks=st.lists(ASKS, min_size=1, max_size=2), key=st.sampled_from(GROUP_ATTRIBUTES), **WORLDS)
def test_every_metric_by_every_name_equals_a_recount(
    desk: Desk,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    asks: list[Ask],
    key: str,
) -> None:
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more, 40 * DAY)], now_s, shards, dice)
    with opened(desk, world, customs, dice, restart=restart, keep_s=keep_s):
        for ask in asks:
            checker = Checker(desk, ask)
            checker.everything()
            checker.transport()
            for name in (*SCALARS, dice.choice(sorted(set(ALIASES) - set(GROUPS)))):
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                checker.split(name, "" if dimension else key)
            for name in ATTRIBUTE_METRICS:
                checker.attribute(name)
            for custom in customs:
                checker.own(custom)


FINEST_S = {1200: 1, 3 * HOUR: 10, 36 * HOUR: 60, 8 * DAY: 600, 60 * DAY: 3600}


@settings(QUIET)
@given(
    ask=ASKS,
    factor=st.sampled_from([1, 2, 3, 7]),
    names=st.lists(st.sampled_from([*SCALARS, *GROUP_RECOUNTS]), min_size=1, max_size=3),
    **WORLDS,
)
def test_the_points_of_a_series_equal_a_recount_and_add_up_to_the_window(
    desk: Desk,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    ask: Ask,
    factor: int,
    names: list[str],
) -> None:
    ask = ask._replace(attributes={}, groupby="" if ask.by_attribute else ask.groupby)
    length_s = min(WINDOWS[ask.window], 31 * DAY)
    finest = next(width for keep, width in FINEST_S.items() if length_s <= keep)
    step_s = finest * -(-length_s // (40 * finest)) * factor
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more, 40 * DAY)], now_s, shards, dice)
    with opened(desk, world, customs, dice, restart=restart, keep_s=keep_s):
        checker = Checker(desk, ask)
        for name in ("total_cost", "span_count", "prompt_tokens", "error_count", *names):
            checker.series(name, step_s)
        for custom in customs:
            checker.series(custom["name"], step_s)


OVERFLOW_ASKS = ASKS.map(
    lambda ask: ask._replace(
        # Which names and callers are told apart is given up; from the spans themselves they still are.
        filters={key: value for key, value in ask.filters.items() if ask.attributes or key not in ("name", "caller")},
        groupby=ask.groupby if ask.attributes or ask.groupby not in ("name", "caller") else "model",
    )
)


@settings(QUIET, max_examples=6)
@given(ask=OVERFLOW_ASKS, key=st.sampled_from(GROUP_ATTRIBUTES), **WORLDS)
def test_totals_and_figures_by_model_stay_exact_when_there_are_too_many_cells(
    desk: Desk,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    ask: Ask,
    key: str,
) -> None:
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more + 10, 40 * DAY)], now_s, shards, dice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokentrace.rollup.series, "MAX_SERIES", 8)
        with opened(desk, world, customs, dice, restart=restart, keep_s=keep_s):
            checker = Checker(desk, ask)
            checker.everything()
            for name in SCALARS:
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                if dimension != "caller" or ask.attributes:
                    checker.split(name, "" if dimension else key)
            for custom in customs:
                checker.own(custom)
            for groupby in ("name", "caller"):
                assert_nothing_is_lost_between_groups(desk, Ask(window="31d", kind="all", groupby=groupby))


def assert_nothing_is_lost_between_groups(desk: Desk, ask: Ask) -> None:
    """What has no group of its own any more is in ``other``, and in no wrong one."""
    body = desk.get("/metrics", ask.given())
    truth = Truth(desk, ask, instant_s(body["from"]), instant_s(body["to"]))
    groups = body[f"by_{ask.groupby}"]
    assert "other" in groups or not desk.world.spans or len(truth.groups) == len(groups)
    assert sum(group["span_count"] for group in groups.values()) == len(truth.total.calls)
    nusd = sum(round(Fraction(group["cost"]["total_usd"]) * 10**9) for group in groups.values())
    assert abs(nusd - usd(truth.total.paid) * 10**9) <= usd(truth.total.paid) * 10**9 / 10**12
    assert sum(group["tokens"]["total"] for group in groups.values()) == sum(tokens(truth.total, "total_tokens"))
    for name, group in groups.items():
        assert name == "other" or group["span_count"] <= len(truth.groups[name].calls)


def make_template(**fields: Any) -> dict[str, Any]:
    """A call of a moment ago, whose every field may be another."""
    return {
        "times": 1,
        "arrived_ago_s": 5,
        "late_s": 0,
        "ns": 0,
        "kind": "llm",
        "model": "gpt-4o",
        "provider": "openai",
        "caller": "a",
        "name": "x",
        "status": "ok",
        "prompt_tokens": 512,
        "completion_tokens": 128,
        "only_total": 0,
        "cost_nusd": 1_375_000,
        "cost_source": "priced",
        "latency_ns": 10**9,
        "ttft_ns": 0,
        "score": None,
        "attributes": {},
        **fields,
    }


OWN = [
    {"name": "own_sum", "type": "sum", "field": "attr.x"},
    {"name": "own_avg", "type": "avg", "field": "attr.x", "filter_key": "step"},
    {"name": "own_p95", "type": "p95", "field": "attr.x"},
    {"name": "own_count", "type": "count", "field": "attr.x", "filter_key": "caller", "filter_val": "a"},
    {"name": "own_cost", "type": "sum", "field": "cost", "filter_key": "attr.step", "filter_val": "plan"},
    {"name": "own_latency", "type": "sum", "field": "latency_ms"},
]


@pytest.mark.parametrize("restart", [False, True])
def test_sums_that_64_bits_cannot_hold_are_exact(desk: Desk, restart: bool) -> None:
    """Over 9,000 times the largest cost, latency and attribute that a span may have."""
    dice = random.Random(64)
    largest = {"cost_nusd": 10**15, "latency_ns": 30 * DAY * SECOND, "prompt_tokens": 2**40}
    templates = [
        make_template(times=9300, attributes={"x": 999_999_999.999999, "step": "plan"}, **largest),
        make_template(times=10, late_s=700, model="o3", attributes={"x": -999_999_999.999999}, **largest),
        make_template(times=30, late_s=60, attributes={"x": 0.1, "step": "act"}),
    ]
    world = make_world(templates, NOON_S + 77, 3, dice)
    assert sum(span.cost_nusd or 0 for span in world.spans) > 2**63
    with opened(desk, world, OWN, dice, restart=restart):
        for ask in (Ask(window="20m", groupby="model"), Ask(groupby="step")):
            checker = Checker(desk, ask)
            checker.everything()
            checker.attribute("x")
            for name in ("total_cost", "cost_per_call", "latency_avg", "total_tokens"):
                checker.scalar(name)
            for custom in OWN:
                checker.own(custom)
        checker = Checker(desk, Ask(window="20m", groupby="model"))
        for name in ("total_cost", "prompt_tokens", *(custom["name"] for custom in OWN)):
            checker.series(name, 60)


def test_over_the_bus_and_through_a_crash_every_metric_equals_a_recount(desk: Desk, tmp_path: Path) -> None:
    """Both services as they run, fed by publishing; the aggregator dies in between, the api is started anew."""
    now_s = int(time.time())
    dice = random.Random(3)
    world = make_world(make_templates(dice, 40, 60), now_s, 3, dice, most=5)
    desk.serve(world, OWN, tmp_path)
    try:
        for ask in (Ask(), Ask(groupby="model"), Ask(kind="all", groupby="step"), Ask(attributes={"step": "plan"})):
            checker = Checker(desk, ask)
            checker.everything()
            checker.transport()
            for name in SCALARS:
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                checker.split(name, "" if dimension else "step")
            for custom in OWN:
                checker.own(custom)
        Checker(desk, Ask(groupby="caller")).series("total_cost", 60)
        Checker(desk, Ask(groupby="caller")).series("own_sum", 60)
    finally:
        desk.stop()


def test_an_empty_window_is_null_and_never_nought(desk: Desk) -> None:
    """SPEC H-22, of every number and with a group or a filter that nothing matches."""
    dice = random.Random(22)
    world = make_world([make_template(arrived_ago_s=HOUR)], NOON_S, 2, dice)
    with opened(desk, world, OWN, dice):
        for given in ({"window": "1m"}, {"window": "6h", "model": "o3"}, {"window": "6h", "attr.step": "none"}):
            for name in (*METRICS, *(custom["name"] for custom in OWN)):
                body = desk.get(f"/metrics/{name}", {**given, "groupby": "model"})
                assert (body["value"], body["by_model"], body["span_count"]) == (None, {}, 0), (name, given)
            body = desk.get("/metrics/attr.x", given)
            assert (body["count"], body["sum"], body["avg"], body["p50"], body["p95"]) == (0, None, None, None, None)
            for name in BREAKDOWNS:
                assert desk.get(f"/metrics/{name}", given | ({"key": "step"} if "attr" in name else {}))["value"] == {}


@pytest.mark.parametrize("count", [99, 100, 101, 300])
def test_quantiles_are_exact_up_to_100_values_and_say_their_error_beyond(desk: Desk, count: int) -> None:
    """On three shards and from two cells, so that none of them knows how many there are."""
    dice = random.Random(count)
    halves = [make_template(times=count // 2, caller="b"), make_template(times=count - count // 2, late_s=30)]
    for half in halves:
        half |= {"latency_ns": 1_234_567, "ttft_ns": 345_678, "prompt_tokens": 7, "score": 333_333_333}
        half["attributes"] = {"x": 0.1}
    with opened(desk, make_world(halves, NOON_S, 3, dice), OWN, dice):
        for name in ("latency_p50", "latency_p99", "ttft_p95", "prompt_token_p95", "quality_p10"):
            Checker(desk, Ask()).scalar(name)
            body = desk.get(f"/metrics/{name}", {})
            assert body["span_count"] == count
            assert (body["quantile_error"] == 0) == (count <= EXACT_UP_TO)
            # From the spans themselves it always is.
            assert desk.get(f"/metrics/{name}", {"attr.x": "0.1"})["quantile_error"] == 0
        Checker(desk, Ask(groupby="caller")).own(OWN[2])


def test_every_group_every_filter_and_every_kind_equals_a_recount(desk: Desk) -> None:
    """One after the other on one world, so that none is left to chance."""
    dice = random.Random(9)
    customs = name_customs([], dice)
    world = make_world(make_templates(dice, 120, DAY), NOON_S + 4321, 3, dice)
    groups = [Ask(window="24h", groupby=key) for key in (*DIMENSIONS, *GROUP_ATTRIBUTES)]
    filters = [Ask(window="24h", filters=given) for given in FILTERS]
    attributes = [Ask(window="24h", attributes=given) for given in ATTRIBUTE_FILTERS]
    kinds = [Ask(window="24h", kind=kind, groupby="attr.step") for kind in (*KINDS, "all")]
    with opened(desk, world, customs, dice, restart=True):
        for ask in (*groups, *filters, *attributes, *kinds):
            checker = Checker(desk, ask)
            checker.everything()
            checker.scalar("latency_p95")
            checker.group("cost")
            checker.attribute("x")


def test_a_span_counts_when_it_ended_up_to_five_minutes_ahead_and_when_it_arrived_beyond(desk: Desk) -> None:
    """DESIGN 7a, to the nanosecond, from the cells, from the store and for a metric of one's own."""
    dice = random.Random(5)
    ahead = [make_template(arrived_ago_s=350, late_s=-300, ns=ns, attributes={"x": 0.1}) for ns in (0, 1)]
    with opened(desk, make_world(ahead, NOON_S, 1, dice), OWN, dice):
        for given in ({}, {"groupby": "x"}, {"attr.x": "0.1"}):
            for name in ("span_count", "own_sum"):
                points = [desk.get(f"/metrics/{name}", {"window": window, **given}) for window in ("60s", "10m")]
                assert [point["span_count"] for point in points] == [1, 2]
        assert [desk.get("/metrics/attr.x", {"window": window})["count"] for window in ("60s", "10m")] == [1, 2]


def test_a_metric_that_was_not_measured_before_a_restart_says_since_when_it_is(desk: Desk) -> None:
    dice = random.Random(5)
    early = make_world([make_template(arrived_ago_s=2 * HOUR, attributes={"x": 0.1})], NOON_S, 1, dice)
    with opened(desk, early, OWN, dice):
        # The aggregator comes back with one metric more.
        (aggregator,) = (one for one in desk.aggregators if one.machines)
        saved = aggregator.machines[0].snapshot({})
        more = [*OWN, {"name": "own_new", "type": "sum", "field": "attr.x"}]
        machine = Shard(0, 1, tuple(parse_custom_metrics(more).values()))
        machine.restore(saved.state(), {name: part.encode() for name, part in saved.parts.items() if part.encode})
        aggregator.machines[0] = machine
        desk.start_api(parse_custom_metrics(more))
        known, new = (desk.get(f"/metrics/{name}", {"window": "6h"}) for name in ("own_sum", "own_new"))
        assert (known["value"], known["since"]) == (0.1, None)
        assert new["value"] is None
        assert instant_s(new["since"]) == NOON_S - 2 * HOUR


# ---- promises that each began as a difference


def test_a_model_whose_spans_cost_nothing_is_named_like_any_other(desk: Desk) -> None:
    """Free or partly priced at 0, and not of the kind whose calls are counted: contributing spans are not nothing."""
    dice = random.Random(1)
    templates = [
        make_template(),
        make_template(kind="embedding", model="free", cost_nusd=0, attributes={"step": "embed"}),
    ]
    with opened(desk, make_world(templates, NOON_S, 1, dice), (), dice):
        assert desk.get("/metrics/total_cost", {"model": "free"})["value"] == 0
        assert desk.get("/metrics/cost_by_attribute", {"key": "step"})["value"] == {"embed": 0}
        assert desk.get("/metrics/cost_by_model", {})["value"] == {"gpt-4o": 0.001375, "free": 0}


def test_a_partly_priced_span_is_listed_under_its_model_whatever_its_price(desk: Desk) -> None:
    dice = random.Random(1)
    world = make_world([make_template(kind="tool", model="o3", cost_nusd=0)], NOON_S, 1, dice)
    partly = [msgspec.structs.replace(span, cost_source="partly_priced") for span in world.spans]
    message = world.streams[0][0]._replace(payload=encode_batches([Batch(id="request", spans=partly)]))
    with opened(desk, world._replace(spans=partly, streams=[[message]]), (), dice):
        body = desk.get("/metrics/cost", {})
        assert body["partly_priced_span_count"] == 1
        assert body["unpriced_by_model"] == {"o3": {"unpriced_span_count": 0, "partly_priced_span_count": 1}}


def test_a_literal_attribute_that_is_null_gives_way_to_the_path_in_every_answer(desk: Desk) -> None:
    dice = random.Random(1)
    templates = [make_template(attributes={"deep.n": None, "deep": {"n": 5}})]
    own = [{"name": "own", "type": "sum", "field": "attr.deep.n"}]
    with opened(desk, make_world(templates, NOON_S, 1, dice), own, dice):
        assert desk.get("/metrics/span_count", {"groupby": "deep.n"})["by_deep.n"] == {"5": 1}
        assert desk.get("/metrics/own", {})["value"] == 5
        assert desk.get("/metrics/own", {"attr.deep.n": "5"})["value"] == 5
        assert desk.get("/metrics/attr.deep.n", {})["sum"] == 5


def test_a_path_leads_into_maps_and_never_into_lists_in_every_answer(desk: Desk) -> None:
    dice = random.Random(1)
    own = [{"name": "own", "type": "count", "filter_key": "parts.0"}]
    with opened(desk, make_world([make_template(attributes={"parts": ["a"]})], NOON_S, 1, dice), own, dice):
        by_path = desk.get("/metrics/span_count", {"groupby": "parts.0"})["by_parts.0"]
        assert bool(by_path) == (desk.get("/metrics/own", {})["value"] is not None)


def test_a_number_is_filtered_by_the_text_it_is_grouped_by(desk: Desk) -> None:
    dice = random.Random(1)
    values = [0.1, 1e-7, 3e-5, 1e15, 1e16, 1.2345678901234568e17, 1e21, 1e22, -0.0, 2**64 - 1]
    templates = [make_template(attributes={"size": value}) for value in values]
    world = make_world(templates, NOON_S, 1, dice)
    with opened(desk, world, (), dice):
        texts = list(desk.get("/metrics/span_count", {"groupby": "size"})["by_size"])
    assert len(texts) == len(values)
    own = [
        {"name": f"own_{n}", "type": "count", "filter_key": "size", "filter_val": text} for n, text in enumerate(texts)
    ]
    with opened(desk, world, own, dice):
        for custom in own:
            text = custom["filter_val"]
            assert desk.get("/metrics/span_count", {"attr.size": text})["value"] == 1
            assert desk.get(f"/metrics/{custom['name']}", {})["value"] == 1, text


@pytest.mark.parametrize("large", [1_000_000_000, 9_000_000_000, 10_000_000_000, 1_700_000_000_000])
def test_a_large_numeric_attribute_is_counted_or_said_to_be_left_out(desk: Desk, large: int) -> None:
    """An integer of 1e-9 has to fit 64 bits: what is 9.2e9 and more is left out, and counted as such."""
    dice = random.Random(1)
    templates = [make_template(attributes={"size": value}) for value in (large, 1)]
    own = [{"name": "own", "type": "sum", "field": "attr.size"}]
    with opened(desk, make_world(templates, NOON_S, 1, dice), own, dice):
        body = desk.get("/metrics/attr.size", {})
        fits = large < 9_200_000_000
        assert (body["count"], body["left_out"]) == ((2, 0) if fits else (1, 1))
        assert body["sum"] == desk.get("/metrics/own", {})["value"] == (large + 1 if fits else 1)


@pytest.mark.parametrize("window", ["1500ms", "1s999ms", "59s1ns"])
def test_a_window_of_no_whole_seconds_is_never_smaller_than_asked(desk: Desk, window: str) -> None:
    """DESIGN 7a: the exact interval, never smaller than asked."""
    dice = random.Random(1)
    length_ns = {"1500ms": 15 * 10**8, "1s999ms": 1999 * 10**6, "59s1ns": 59 * SECOND + 1}[window]
    with opened(desk, make_world([make_template()], NOON_S, 1, dice), (), dice):
        desk.clock.now_ns = NOON_S * SECOND
        assert instant_s(desk.get("/metrics/span_count", {"window": window})["from"]) * SECOND <= (
            NOON_S * SECOND - length_ns
        )


def test_the_exemplars_of_a_metric_of_ones_own_are_spans_that_it_measures(desk: Desk) -> None:
    dice = random.Random(1)
    templates = [
        make_template(times=2, attributes={"step": "plan"}),
        make_template(times=2, cost_nusd=10**9, attributes={"step": "act"}),
    ]
    own = [{"name": "cost_of_plans", "type": "sum", "field": "cost", "filter_key": "step", "filter_val": "plan"}]
    world = make_world(templates, NOON_S, 1, dice)
    plans = {span.span_id for span in world.spans if span.attributes["step"] == "plan"}
    with opened(desk, world, own, dice):
        body = desk.get("/metrics/cost_of_plans", {})
        assert body["span_count"] == 2
        assert {one["span_id"] for one in body.get("exemplars", [])} <= plans


@pytest.mark.parametrize("name", ["transport_sent", "transport_queue_depth", "alert_firings", "by_model"])
def test_a_name_that_answers_already_is_refused_to_a_metric_of_ones_own(name: str) -> None:
    with pytest.raises(ConfigError, match=r"custom_metrics\[0\]\.name"):
        parse_custom_metrics([{"name": name, "type": "count"}])


@pytest.mark.parametrize("ahead", [50, 300])
def test_calls_from_a_clock_that_is_ahead_leave_the_quantiles_of_the_window_exact(desk: Desk, ahead: int) -> None:
    """SPEC C.2: exact up to 100 values in the window, whatever lies after it."""
    dice = random.Random(1)
    world = make_world([make_template(times=100, arrived_ago_s=200, latency_ns=1_234_567)], NOON_S, 1, dice)
    for number in range(ahead):
        arrived_ns = (NOON_S - 190) * SECOND + number * SECOND // 2
        span = msgspec.structs.replace(
            world.spans[0], span_id=f"ahead-{number}", ended_ns=arrived_ns + 250 * SECOND, arrived_ns=arrived_ns
        )
        world.spans.append(span)
        payload = encode_batches([Batch(id=f"ahead-{number}", spans=[span])])
        subject = subjects.spans("default", 0)
        world.streams[0].append(Message(subject, payload, len(world.streams[0]) + 1, arrived_ns, {}))
    with opened(desk, world, OWN, dice):
        body = desk.get("/metrics/latency_p95", {})
        assert body["span_count"] == 100
        assert body["quantile_error"] == 0
        Checker(desk, Ask()).scalar("latency_p95")
