"""
The program that wrote ``data.tar.xz``, ``tokentrace.yml`` and ``expected.json`` here, with the code of that day.

``python tests/data/landing_9/make.py FOLDER`` writes them into another folder. Never write into this one, because its
files show what the code of that day wrote. The steps:

1. ``tokentrace serve`` with four shards receives spans of every kind; rules fire, are silenced, created and deleted.
2. It stops, and so saves a snapshot of every shard and of the alerter. Snapshots are an hour apart, so spans that are
   sent later are in none.
3. The answers of all routes are written to ``expected.json``.
4. It stops by SIGTERM, which closes the files of the store. A nats-server alone then removes the snapshots that were
   saved at this stop, as after a kill, so that a reader has to replay the log. It removes the log up to the older
   snapshots, so that only they hold that part. It gives every stream an age of ten years, because nats-server removes
   expired messages when it starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder of the tests
from traffic import SHARDS, Traffic, mist, report

from kit.landing import ask, broker_on
from kit.pipeline import Pipeline, http
from tokentrace.bus import jetstream, subjects
from tokentrace.service.snapshots import Snapshots
from tokentrace.units import DAY, SECOND, parse_instant, render_instant
from tokentrace_aggregator.shard import Shard

T = TypeVar("T")
CONFIG = """\
# The configuration with which the data directory was written and is read. Ages are ten years, so that nothing expires
# before later versions have read it. Intervals of {interval} had an instant while it was written, and are so long that
# years later only few instants have to be evaluated. Windows are shorter, so that nothing fires at the second instant,
# whether or not the events of the first firing have expired.
nats:
  shards: 4
  spans_max_age: 3650d
  spans_max_bytes: 67108864
  raw_max_bytes: 67108864
retention:
  memory_window: 3650d
pricing:
  models:
    house-model: {{prompt_per_1m: 2.5, completion_per_1m: 10.01, cache_read_per_1m: 0.25}}
custom_metrics:
  - {{name: billing_cost, type: sum, field: cost, filter_key: workflow, filter_val: billing}}
  - {{name: documents_read, type: sum, field: attr.documents}}
  - {{name: steps, type: count, filter_key: step}}
  - {{name: support_latency, type: avg, field: latency_ms, filter_key: caller, filter_val: support}}
  - {{name: billing_prompts, type: p95, field: prompt_tokens, filter_key: workflow, filter_val: billing}}
alerts:
  - name: checkout spends
    metric: total_cost
    op: gt
    threshold: 0.01
    window: 40m
    eval_interval: {interval}
    cooldown: 30d
    filter: {{caller: checkout}}
    level: critical
    delivery: {{type: stdout}}
  - name: quiet for ten years
    metric: total_cost
    op: gt
    threshold: 0
    window: 40m
    eval_interval: {interval}
    filter: {{model: gpt-4o}}
  - name: slow for long
    metric: latency_avg
    op: gt
    threshold: 1
    window: 40m
    eval_interval: {interval}
    for: 30d
    recovery_threshold: 0.5
    filter: {{caller: support}}
  - name: everything
    metric: span_count
    op: gt
    threshold: 1000000
    window: 31d
"""
WINDOWS = (
    {"window": "30d"},
    {"window": "30d", "groupby": "model"},
    {"window": "30d", "groupby": "provider", "kind": "all"},
    {"window": "24h", "groupby": "caller"},
    {"window": "24h", "groupby": "status", "kind": "all"},
    {"window": "1h", "groupby": "kind", "kind": "all"},
    {"window": "30d", "groupby": "name", "model": "gpt-4o"},
)


def accepted(answer: Any) -> Any:
    assert 200 <= answer.status < 300, (answer.status, answer.body)
    return answer


async def letters(url: str) -> None:
    """What ingest cannot take in: no batch, and a batch with a span that is not valid."""
    client = await nats.connect(url)
    await client.jetstream().publish(subjects.raw("default", 0), b"no batch at all")
    await client.jetstream().publish(subjects.raw("default", 1), b'{"name":"x","prompt_tokens":-5}')
    await client.jetstream().publish(
        subjects.raw("default", 2), b'{"name":"from any client","trace_id":"json","kind":"tool"}'
    )
    await client.close()


def converse(serving: Pipeline, session: str, *, leave_open: bool) -> None:
    """A session of a Cost Katana client: an agent, a call below it, messages, ends."""

    def start(**fields: Any) -> None:
        accepted(serving.post("/api/traces/start", {"sessionId": session, **fields}))

    start(name="chat", type="agent", traceId=f"{session}-root", metadata={"userId": "dave", "label": "a talk"})
    start(name="answer", type="llm", traceId=f"{session}-call", parentId=f"{session}-root")
    for role, content in (("user", "my mail is dave@example.com, why?"), ("assistant", "because " * 9)):
        said = {"sessionId": session, "traceId": f"{session}-call", "role": role, "content": content}
        accepted(serving.post("/api/traces/messages", said))
    ended = {"status": "ok", "model": "gpt-4o", "tokens": {"input": 512, "output": 128}}
    accepted(serving.post(f"/api/traces/{session}-call/end", ended))
    accepted(serving.post(f"/api/traces/{session}-call/end", {"status": "error", "metadata": {"said": "later"}}))
    if not leave_open:
        accepted(serving.post(f"/api/traces/{session}-root/end", {"status": "ok"}))


def counted(serving: Pipeline) -> int:
    return int(serving.get("/stats").json()["total_spans"])


def settle(serving: Pipeline) -> None:
    """Wait until nothing changes any more in aggregator, store and alerter."""
    before: list[Any] = []
    for _ in range(100):
        time.sleep(1)
        exported = len(serving.get("/export").body.splitlines())
        considered = [rule["spans_considered"] for rule in serving.get("/alerts").json()]
        now = [counted(serving), exported, considered]
        if now == before:
            return
        before = now
    raise AssertionError("it does not come to rest")


def interval() -> str:
    """A length of about an hour that divides an instant in half a minute to come."""
    now_s = int(time.time())
    return next(f"{s}s" for at in range(now_s + 35, now_s + 60) for s in range(3000, 7200) if at % s == 0)


def first_part(serving: Pipeline, traffic: Traffic, every: str) -> None:
    """What the snapshots hold."""
    for _ in range(70):
        accepted(serving.post("/spans", traffic.trace()))
    for _ in range(2):
        key = {"Idempotency-Key": "sent-twice"}
        twice = {"trace_id": "twice", "span_id": "twice", "name": "twice", "kind": "tool", "cost_usd": 0.000123456}
        accepted(serving.post("/spans", [twice], key))
    call = {"name": "odd", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 50, "comp_tokens": 5}
    accepted(serving.post("/spans", {**call, "trace_id": "odd", "span_id": "odd-0", "cost_usd": 0}))
    accepted(serving.post("/spans", {**call, "trace_id": "odd", "span_id": "odd-1", "usage": {"web_searches": 3}}))
    # From landing 13 on such a span is cut and says so; before, it was refused.
    long = {**call, "trace_id": "odd", "span_id": "odd-2", "attributes": {"prompt": "a long story " * 4000}}
    serving.post("/spans", {**long, "latency_ms": 20, "ttft_ms": 30})
    for number in range(6):
        accepted(serving.post("/mist", mist(number, traffic.now_ns)))
    report(serving.nats_url, 0, 45)
    asyncio.run(letters(serving.nats_url))
    converse(serving, "talk-1", leave_open=False)
    converse(serving, "talk-2", leave_open=True)
    serving.until(lambda: serving.get("/api/sessions/talk-1/details").status == 200, "a session")
    accepted(serving.post("/api/sessions/talk-1/end", {}))
    rule = {
        "name": "errors of a workflow",
        "metric": "error_count",
        "op": "gte",
        "threshold": 1,
        "window": "40m",
        "eval_interval": every,
        "cooldown": "30d",
        "group_by": "attr.workflow",
        "delivery": {"type": "http", "url": "http://127.0.0.1:9/hook", "timeout": "1s", "max_retries": 0},
    }
    accepted(serving.post("/alerts", rule))
    accepted(serving.post("/alerts", {**rule, "name": "made and deleted"}))
    accepted(serving.post("/alerts/quiet%20for%20ten%20years/silence", {"duration": "366d"}))
    settle(serving)
    accepted(serving.post("/scores", {"trace_id": "trace-001", "name": "helpful", "value": 0.8}))
    accepted(serving.post("/scores", {"trace_id": "trace-002", "span_id": "trace-002-0", "value": 0.25}))
    accepted(serving.post("/scores", {"trace_id": "trace-002", "span_id": "trace-002-0", "value": 0.75}))
    for path in ("/traces/trace-004", "/api/users/carol", "/alerts/made%20and%20deleted"):
        accepted(_delete(serving, path))


def _delete(serving: Pipeline, path: str) -> Any:
    return http("DELETE", serving.url + path)


def second_part(serving: Pipeline, traffic: Traffic) -> None:
    """What only the log holds."""
    for _ in range(30):
        accepted(serving.post("/spans", traffic.trace()))
    for number in range(6, 10):
        accepted(serving.post("/mist", mist(number, traffic.now_ns)))
    report(serving.nats_url, 45, 30)
    converse(serving, "talk-3", leave_open=False)
    accepted(serving.post("/api/traces/talk-2-root/end", {"status": "error", "error": {"message": "gave up"}}))
    converse(serving, "talk-4", leave_open=True)
    accepted(serving.post("/scores", {"trace_id": "trace-006", "value": 1}))
    accepted(serving.post("/scores", {"trace_id": "trace-001", "name": "helpful", "value": None}))
    settle(serving)
    accepted(_delete(serving, "/traces/trace-078"))


async def silence_for_ten_years(url: str) -> None:
    """Over HTTP a silence lasts a year at most: the entry is given its end directly, as the alerter writes it."""
    async with jetstream.connect(url, name="make") as bus:
        rules = bus.kv(subjects.RULES)
        for key, entry in (await rules.items()).items():
            kept = json.loads(entry.value)
            if kept["name"] == "quiet for ten years":
                kept["silenced_until_ns"] += 3650 * DAY
                await rules.update(key, json.dumps(kept).encode(), entry.revision)


async def snapshot_names(bus: Any) -> list[str]:
    return sorted(await bus.objects(subjects.SNAPSHOTS).names())


async def held(bus: Any) -> dict[str, dict[str, int]]:
    """What the newest snapshot of each holds: spans, and the last message of the log."""
    found = {}
    for shard in range(SHARDS):
        machine = Shard(shard, SHARDS)
        assert await Snapshots(bus, "aggregator", shard).load_into(machine) is None
        assert machine.position is not None
        found[f"aggregator.{shard}"] = {"spans": machine.spans, "position": machine.position.sequence}
    objects = bus.objects(subjects.SNAPSHOTS)
    newest = max(name for name in await objects.names() if name.startswith("alerter.0.") and "piece" not in name)
    state = msgspec.msgpack.decode(await objects.get(newest))["state"]
    saved = msgspec.msgpack.decode(zlib.decompress(await objects.get(state)))
    found["alerter.0"] = {"position": saved["position"][1]}
    return found


async def read_all(bus: Any, stream: str, subject: str) -> list[Any]:
    """Every message of *stream*, JSON."""
    found: list[Any] = []
    state = await bus.state(stream)
    if state.messages:
        async for chunk in bus.follow(stream, [subject], None):
            found += [json.loads(message.payload) for message in chunk.messages]
            if not chunk.pending:
                break
    return found


async def saved(url: str) -> tuple[list[str], dict[str, Any]]:
    """(Names of the objects of the first part, what its snapshots hold)."""
    async with jetstream.connect(url, name="make") as bus:
        return await snapshot_names(bus), await held(bus)


async def finish(url: str, names: Sequence[str], then: dict[str, Any]) -> dict[str, Any]:
    """Step 4; returns what lies in the streams."""
    async with jetstream.connect(url, name="make") as bus:
        objects = bus.objects(subjects.SNAPSHOTS)
        for name in await objects.names():
            if name not in names:
                await objects.delete(name)
        assert await held(bus) == then, "the snapshots of the first part are the newest again"
        found = {
            subjects.ALERTS: await read_all(bus, subjects.ALERTS, subjects.ALL_ALERTS),
            subjects.DELIVERIES: await read_all(bus, subjects.DELIVERIES, subjects.ALL_DELIVERIES),
            subjects.REJECTED: await read_all(bus, subjects.REJECTED, "tokentrace.rejected.>"),
        }
    client = await nats.connect(url)
    context = client.jetstream()
    behind = min(one["position"] for one in then.values())
    await context.purge_stream(subjects.SPANS, seq=behind + 1)
    for info in await context.streams_info():
        if info.config.max_age:
            changed = {**info.config.as_dict(), "max_age": 3650 * DAY}
            answer = await client.request(f"$JS.API.STREAM.UPDATE.{info.config.name}", json.dumps(changed).encode())
            assert "error" not in json.loads(answer.data), answer.data
    state = (await context.stream_info(subjects.SPANS)).state
    found["log"] = {"first_sequence": state.first_seq, "last_sequence": state.last_seq, "messages": state.messages}
    await client.close()
    return found


def alone(data: Path, directory: Path, work: Callable[[str], Coroutine[Any, Any, T]]) -> T:
    """What *work* makes of the streams while no pipeline runs on them."""
    broker = broker_on(data, directory / f"broker-{uuid.uuid4().hex}")
    broker.start()
    try:
        return asyncio.run(work(broker.url))
    finally:
        broker.stop()


def paths(traffic: Traffic) -> Iterator[str]:
    """What is asked, and answered alike for ever."""
    yield from ("/stats", "/traces", "/export", "/metrics", "/metrics/prometheus", "/metrics/transport_sent")
    yield from ("/metrics/alert_firings", "/metrics/alert_delivery_failed", "/alerts")
    yield from ("/api/sessions?limit=100", "/api/sessions/summary")
    for session in ("talk-1", "talk-2", "talk-3", "talk-4", "own-6"):
        yield f"/api/sessions/{session}/details"
        yield f"/api/sessions/{session}/graph"
    gone = {"trace-004", "trace-078"}
    for trace in (
        "trace-001",
        "trace-002",
        "trace-006",
        "trace-075",
        "talk-2-root",
        "mist-1",
        "reported-3",
        "twice",
        "odd",
    ):
        if trace not in gone:
            yield f"/traces/{trace}"
            yield f"/traces/{trace}/timeline"
    for trace, span in [*traffic.ids[::12], ("odd", "odd-0"), ("odd", "odd-1")]:
        yield f"/traces/{trace}/spans/{span}/receipt"


def answers(serving: Pipeline, traffic: Traffic) -> dict[str, Any]:
    """What is asked, and what is answered now; what is not there (a deleted user's, say) is not asked for."""
    asked = [path for path in paths(traffic) if path in ("/traces", "/export") or serving.get(path).status == 200]
    windows = []
    for given in WINDOWS:
        query = "&".join(f"{key}={value}" for key, value in given.items())
        shown = serving.get(f"/metrics?{query}").json()
        windows.append({"given": given, "now": parse_instant(shown["to"]) // SECOND - 1, "answer": shown})
    before_ns = time.time_ns()
    return {
        "recorded_at": render_instant(before_ns),
        "recorded_ns": before_ns,
        "shards": SHARDS,
        "answers": {path: ask(serving, path) for path in asked},
        "gone": ["/traces/trace-004", "/traces/trace-078", "/alerts/made%20and%20deleted/status"],
        "windows": windows,
    }


def pack(data: Path, into: Path) -> None:
    """The directory without what names this machine: the log of the server, its configuration, the lock."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if Path(member.name).name in ("nats.conf", "nats.log", "lock", "probe", "tmp"):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(into, "w:xz", preset=9) as packed:
        packed.add(data, "data", filter=anonymous)


def main(folder: Path) -> None:
    """All of it."""
    assert not (folder / "data.tar.xz").exists(), f"{folder} holds what earlier code wrote, which must stay"
    folder.mkdir(parents=True, exist_ok=True)
    every = interval()
    (folder / "tokentrace.yml").write_text(CONFIG.format(interval=every), encoding="utf-8")
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work)
        flags = ("--config", str(folder.resolve() / "tokentrace.yml"))
        traffic = Traffic(time.time_ns())
        serving = Pipeline(directory, *flags, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "5s"})
        serving.start()
        try:
            first_part(serving, traffic, every)
            asyncio.run(silence_for_ten_years(serving.nats_url))
            fired = {"checkout spends", "errors of a workflow"}
            serving.until(lambda: fired <= serving.get("/metrics/alert_firings").json()["by_rule"].keys(), "fired", 120)
            serving.until(lambda: serving.get("/metrics/alert_delivery_failed").json()["value"] > 0, "a dead letter")
            # An alerter saves its state when messages came: this one makes it save that it has looked at that instant.
            accepted(serving.post("/spans", traffic.trace()))
            settle(serving)
            time.sleep(7)  # one more snapshot of every shard while it runs
            assert serving.stop() == 0
            names, then = alone(serving.data, directory, saved)
            serving = Pipeline(directory, *flags, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "24h"})
            serving.start()
            second_part(serving, traffic)
            settle(serving)
            time.sleep(5)  # positions and counts are told every two seconds
            expected = answers(serving, traffic)
        finally:
            assert serving.stop() == 0
        streams = alone(serving.data, directory, lambda url: finish(url, names, then))
        pack(serving.data, folder / "data.tar.xz")
        whole = {**expected, "snapshots": then, "streams": streams}
        text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
