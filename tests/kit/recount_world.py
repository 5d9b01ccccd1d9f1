"""Random worlds for recounts: spans in batches on several shards, and custom metrics."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tokentrace.bus import Message, subjects
from tokentrace.records import Batch, ReporterStats, Span, encode_batches

SECOND = 10**9
MINUTE, HOUR, DAY = 60, 3600, 86400
NOON_S = 1_800_057_600
ROLLUPS = {"http", "agent", "workflow", "chain"}
DIMENSIONS = ("model", "caller", "provider", "name", "status", "kind")
#: The largest relative error of a quantile of more than ``EXACT_UP_TO`` values; other quantiles are exact.
LARGEST_ERROR = 0.0055
EXACT_UP_TO = 100


EDGES_S = (0, 1, 9, 10, 59, 60, 599, 600, 1200, 3599, 3600, 3 * HOUR, 36 * HOUR, 8 * DAY, 30 * DAY, 31 * DAY)
AGES_S = st.one_of(
    st.integers(0, 90),
    st.integers(0, 90),
    st.sampled_from(EDGES_S),
    st.integers(0, 4 * HOUR),
    st.integers(0, 40 * DAY),
)
#: Field of a template -> its possible values; a value that is listed twice is twice as likely.
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
#: A template describes similar spans: how many (``times``), when they arrived, how long after their end (negative =
#: before it, their clock was ahead), and their fields.
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
    """Return *count* random templates; none arrived more than *most_ago_s* seconds ago, most of them recently."""

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
    Everything that was reported up to *now_s*.

    Attributes:
        spans: Each span once, in order of arrival.
        streams: The messages of each shard; some batches occur twice.
        now_s: Unix seconds.
        sent, dropped, failed, waiting: What the reporters have counted, in spans.
    """

    spans: list[Span]
    streams: list[list[Message]]
    now_s: int
    sent: int
    dropped: int
    failed: int
    waiting: int


def make_spans(templates: Sequence[Mapping[str, Any]], now_s: int) -> list[Span]:
    """Return the spans of *templates* in order of arrival; spans of one template differ in their numbers."""
    spans: list[Span] = []
    for template in templates:
        fields = dict(template)
        times, late_s, ns = fields.pop("times"), fields.pop("late_s"), fields.pop("ns")
        only_total = fields.pop("only_total")
        arrived = (now_s - fields.pop("arrived_ago_s")) * SECOND
        ended = arrived - late_s * SECOND + ns
        # Many spans from a fast clock would displace unrounded values of the window, so make only one.
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
    """Return a world with batches of reporters and of requests on *shards* shards; a batch has at most *most* spans."""
    spans = make_spans(templates, now_s)
    streams: list[list[Message]] = [[] for _ in range(shards)]
    numbers = dict.fromkeys(("default.r0.0", "default.r1.0"), 0)
    queues: dict[str, tuple[int, int]] = {}
    sent = dropped = failed = 0
    rest, clock_ns = list(spans), 0
    while rest:
        size = min(dice.choice([1, 2, 5, 40, 200]), most)
        taken, rest = rest[:size], rest[size:]
        clock_ns = max(clock_ns, min(taken[-1].arrived_ns + dice.choice([0, 0, 10**8, SECOND]), now_s * SECOND))
        if (now_s - 30) * SECOND <= clock_ns <= (now_s - 29) * SECOND:
            # The shards tick within the second after now, so whether this reporter is quiet would depend on when.
            clock_ns = (now_s - 29) * SECOND + 1
        if dice.random() < 0.7:
            name = dice.choice(sorted(numbers))
            numbers[name] += 1
            stats = ReporterStats(
                queue_depth=dice.randrange(50), newly_dropped=dice.randrange(3), newly_failed=dice.randrange(3)
            )
            batch = Batch(id=name, sequence=numbers[name], spans=taken, reporter=stats)
            shard = batch.sequence % shards
            sent, dropped, failed = sent + len(taken), dropped + stats.newly_dropped, failed + stats.newly_failed
            queues[name] = (clock_ns, stats.queue_depth)
        else:
            batch = Batch(id=f"request-{len(rest)}", spans=taken)
            shard = dice.randrange(shards)
        stream = streams[shard]
        for _ in range(dice.choice([1, 1, 1, 2])):
            payload = encode_batches([batch])
            stream.append(Message(subjects.spans("default", shard), payload, len(stream) + 1, clock_ns, {}))
    # A reporter that sent no batch for 30 s has no waiting spans.
    waiting = sum(depth for at_ns, depth in queues.values() if at_ns >= (now_s - 30) * SECOND)
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
    """Return custom metrics with names: those of *drawn*, a count, and one for each field."""
    fields = [{"type": dice.choice(CUSTOM_TYPES), "field": field} for field in (*CUSTOM_FIELDS, *CUSTOM_ATTRIBUTES)]
    return [{"name": f"own_{number}", **metric} for number, metric in enumerate([*drawn, {"type": "count"}, *fields])]


def make_template(**fields: Any) -> dict[str, Any]:
    """Return the template of one recent call, with *fields* replaced."""
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


CUSTOM_METRICS = [
    {"name": "own_sum", "type": "sum", "field": "attr.x"},
    {"name": "own_avg", "type": "avg", "field": "attr.x", "filter_key": "step"},
    {"name": "own_p95", "type": "p95", "field": "attr.x"},
    {"name": "own_count", "type": "count", "field": "attr.x", "filter_key": "caller", "filter_val": "a"},
    {"name": "own_cost", "type": "sum", "field": "cost", "filter_key": "attr.step", "filter_val": "plan"},
    {"name": "own_latency", "type": "sum", "field": "latency_ms"},
]
