"""Undecodable data in streams, buckets and the object store is set aside and named, and the pipeline continues."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nats
import pytest

from kit.broker import Broker
from kit.pipeline import Pipeline
from kit.rubbish import bent, dice_of, rounds
from tokentrace.bus import subjects

T = TypeVar("T")

SPANS, RAW = "tokentrace.spans.default.0", "tokentrace.raw.default.0"
DELETIONS = "tokentrace.spans.default.deleted"
ALERTS, DELIVERIES = "tokentrace.alerts.default.odd", "tokentrace.deliveries.default.odd"
FIRES = {"metric": "span_count", "op": "gte", "threshold": 1, "window": "1h", "eval_interval": "1s", "cooldown": "24h"}
RULE = {"name": "odd", **FIRES}
#: Malformed headers; after some of them nats-py never reads another message.
BROKEN_HEADERS = (b"garbage", b"NATS/1.0", b"NATS/1.0 503 \xff\xfe\r\n\r\n", b"NATS/1.0\r\n\xff: \xff\r\n\r\n")


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    yield pipeline
    pipeline.stop()


def on_nats(serving: Pipeline, work: Callable[[Any], Awaitable[T]]) -> T:
    async def run() -> T:
        client = await nats.connect(serving.nats_url)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def publish(serving: Pipeline, *messages: tuple[str, bytes]) -> None:
    async def send(client: Any) -> None:
        for subject, payload in messages:
            await client.publish(subject, payload)
        await client.flush()

    on_nats(serving, send)


def publish_raw(serving: Pipeline, subject: str, headers: bytes) -> None:
    """Publish a message with arbitrary header bytes, which client libraries do not allow."""
    with socket.create_connection(("127.0.0.1", serving.nats_port), timeout=10) as client:
        client.recv(4096)
        message = b"HPUB %s %d %d\r\n%s\r\n" % (subject.encode(), len(headers), len(headers), headers)
        client.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + message + b"PING\r\n")
        while b"PONG" not in client.recv(4096):
            pass


def event(**fields: Any) -> bytes:
    """Return an alert event as the alerter writes it, with *fields* replaced."""
    known = {"alert": "odd", "fired_at": "2026-01-01T00:00:00Z", "metric": "span_count", "op": "gte", "value": 1}
    more = {"threshold": 1, "window": "1h", "span_count": 1, "filter": {}, "rule_id": "alert_00000000"}
    return json.dumps({**known, **more, **fields}).encode()


def post_spans(serving: Pipeline, count: int, caller: str = "known") -> None:
    """Post *count* spans and wait until both readers have them."""
    before = counted(serving)
    model = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": caller}
    spans = [{**model, "trace_id": uuid.uuid4().hex, "span_id": uuid.uuid4().hex} for _ in range(count)]
    assert serving.post("/spans", spans).status == 202
    serving.until(lambda: counted(serving) == before + count, f"{before + count} counted")
    serving.until(lambda: stored(serving) == before + count, f"{before + count} stored")


def counted(serving: Pipeline) -> int:
    return int(serving.get("/metrics?window=30d&caller=known").json()["span_count"])


def stored(serving: Pipeline) -> int:
    return int(serving.get("/traces?caller=known&limit=1").json()["total"])


def set_aside(serving: Pipeline) -> dict[tuple[str, str], str]:
    """Return the data that ``/health`` shows as set aside: (place, which message, key or object) -> reason."""
    answer = serving.get("/health")
    assert answer.status == 200, answer.body
    shown = answer.json().get("set_aside", {"newest": []})
    return {(record["place"], record["which"]): record["reason"] for record in shown["newest"]}


def names(serving: Pipeline, place: str, which: str, reason: str) -> bool:
    return any(held == place and which in what and reason in why for (held, what), why in set_aside(serving).items())


def last_sequence(serving: Pipeline, stream: str) -> int:
    async def ask(client: Any) -> int:
        return int((await client.jetstream().stream_info(stream)).state.last_seq)

    return on_nats(serving, ask)


def snapshot_names(serving: Pipeline) -> list[str]:
    """Return the names of the aggregator's snapshots, the newest last."""

    async def ask(client: Any) -> list[str]:
        info = await client.jetstream().stream_info("OBJ_tt_snapshots", subjects_filter="$O.tt_snapshots.M.>")
        encoded = [subject.rpartition(".")[2] for subject in info.state.subjects or {} if not subject.endswith(".zzz")]
        found = [base64.urlsafe_b64decode(name).decode() for name in encoded]
        return sorted(name for name in found if name.startswith("aggregator.0.") and "piece" not in name)

    return on_nats(serving, ask)


def meta_of(name: str) -> str:
    return f"$O.tt_snapshots.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


@pytest.fixture
def on_a_broker_of_its_own(tmp_path: Path, broker: Broker) -> Iterator[Pipeline]:
    """Start ``serve`` with a separate broker, which keeps running when ``serve`` is killed."""
    pipeline = Pipeline(tmp_path / "serve", "--nats", broker.url)
    pipeline.nats_port = broker.port
    pipeline.start()
    yield pipeline
    pipeline.stop()


def test_undecodable_data_is_named_in_health_now_and_after_a_restart(
    on_a_broker_of_its_own: Pipeline,
) -> None:
    serving = on_a_broker_of_its_own
    assert serving.post("/alerts", RULE).status == 201
    for generation in range(1, 4):
        post_spans(serving, 3)
        serving.until(partial(lambda made: len(snapshot_names(serving)) >= made, generation), f"snapshot {generation}")
    serving.until(lambda: last_sequence(serving, "TT_ALERTS") > 0, "fired")
    first = last_sequence(serving, "TT_ALERTS") + 1
    bad = {
        (ALERTS, event(fired_at="x")): ("TT_ALERTS", f"message {first}", "fired_at"),
        (ALERTS, event(starts_at="x")): ("TT_ALERTS", f"message {first + 1}", "starts_at"),
        (ALERTS, b'{"alert":"\xff"}'): ("TT_ALERTS", f"message {first + 2}", "utf-8"),
        (ALERTS, event(fired_at="2099-01-01T00:00:00Z")): ("TT_ALERTS", f"message {first + 3}", "after it was stored"),
        (DELIVERIES, b'{"rule":"\xff"}'): ("TT_DELIVERIES", "message", "utf-8"),
        ("$O.tt_snapshots.M.zzz", b"x"): ("tt_snapshots", "M.zzz", "name"),
        ("$KV.tt_meta.reader.odd.0", b'["\xff"]'): ("tt_meta", "key reader.odd.0", "position"),
        ("$KV.tt_rules.odd", b'{"name":"\xff"}'): ("tt_rules", "key odd", "utf-8"),
    }
    publish(serving, *bad)
    post_spans(serving, 3)  # so that a snapshot is saved; this reads the names of all objects
    for place, which, reason in bad.values():
        serving.until(partial(names, serving, place, which, reason), f"{which} of {place} named", 15)
    assert serving.get("/alerts").json()[0]["name"] == "odd"

    serving.kill()  # so that no newer snapshot is written; the broker keeps running
    *_, older, newest = snapshot_names(serving)
    publish(serving, (meta_of(newest), b"{}"), (meta_of(older), b"[]"))
    serving.start()
    assert counted(serving) == stored(serving) == 12
    bad[meta_of(newest), b"{}"] = ("tt_snapshots", f"object {newest}", "damaged")
    bad[meta_of(older), b"[]"] = ("tt_snapshots", f"object {older}", "array")
    for place, which, reason in bad.values():
        serving.until(partial(names, serving, place, which, reason), f"{which} of {place} named again", 15)
    text = serving.get("/internal/metrics").body.decode()
    assert 'tokentrace_set_aside_total{place="TT_ALERTS"} 4.0' in text
    post_spans(serving, 3)
    assert "Traceback" not in serving.log.read_text()


def test_malformed_headers_do_not_stop_a_reader(serving: Pipeline) -> None:
    kept = ("$KV.tt_rules.odd", "$KV.tt_meta.reader.odd.0", "$O.tt_snapshots.M.eno=")
    for headers in BROKEN_HEADERS:
        for subject in (SPANS, RAW, ALERTS, DELIVERIES, *kept):
            publish_raw(serving, subject, headers)
    post_spans(serving, 3)
    serving.kill()
    serving.start()
    assert counted(serving) == stored(serving) == 3
    post_spans(serving, 3)


def test_answers_of_another_client_are_not_accepted(serving: Pipeline) -> None:
    """Another client sends invalid answers to requests to services and to JetStream."""
    post_spans(serving, 3)
    assert serving.post("/alerts", RULE).status == 201
    answers = (b"5", b"null", b"[]", b'{"seq":"x"}', b"\xff", b'{"status":200,"body":5}', b"", b"\x91\x63", b"{}")

    async def impersonate(client: Any) -> None:
        async def answer(message: Any) -> None:
            for payload in answers if message.reply else ():
                await client.publish(message.reply, payload)

        for subject in ("tokentrace.>", "$KV.>", "$JS.API.STREAM.INFO.>", "$JS.API.STREAM.MSG.GET.>"):
            await client.subscribe(subject, cb=answer)
        await client.flush()
        for path in ("/alerts", "/alerts/odd/status", "/metrics", "/stats", "/health", "/readyz"):
            found = await asyncio.to_thread(serving.get, path)
            assert found.status == 200, (path, found.body[:300])
        await asyncio.to_thread(post_spans, serving, 3)
        # A foreign answer that arrives after the right one is not read, so ask until one comes first.
        for path, subject in (("/alerts", "tokentrace.query.alerts"), ("/metrics", "tokentrace.query.metrics")):
            for _ in range(50):
                if await asyncio.to_thread(names, serving, subject, "answer", ""):
                    break
                assert (await asyncio.to_thread(serving.get, path)).status == 200
            else:
                raise AssertionError(f"no foreign answer on {subject} was noted")

    on_nats(serving, impersonate)
    assert serving.get("/alerts").json()[0]["name"] == "odd"
    assert "Traceback" not in serving.log.read_text()


def test_undecodable_entries_do_not_break_scores_spans_and_counts(serving: Pipeline) -> None:
    span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "trace_id": "t1", "span_id": "s1"}
    assert serving.post("/spans", span).status == 202
    serving.until(lambda: serving.get("/traces/t1").status == 200, "stored")
    score = {"trace_id": "t1", "span_id": "s1", "name": "eval.score"}
    assert serving.post("/scores", {**score, "value": 0.25}).status == 202
    assert serving.post("/api/traces/start", {"traceId": "open-1", "name": "n", "type": "custom"}).status == 200

    async def scribble(client: Any) -> None:
        [key] = await (await client.jetstream().key_value("tt_scores")).keys()
        opened = hashlib.sha256(b"open-1").hexdigest()
        for subject in (f"$KV.tt_scores.{key}", f"$KV.tt_open_spans.{opened}"):
            await client.publish(subject, b'{"\xff":1}')
        await client.flush()

    on_nats(serving, scribble)
    assert serving.post("/scores", {**score, "value": 0.75}).status == 202
    assert serving.get("/traces/t1").json()["spans"][0]["attributes"]["eval.score"] == 0.75
    assert serving.metrics()["quality"]["score_avg"] == 0.75
    assert serving.post("/api/traces/open-1/end", {"status": "ok"}).status == 404
    assert names(serving, "tt_scores", "key ", "utf-8") or names(serving, "tt_scores", "key ", "score")
    assert names(serving, "tt_open_spans", "key ", "open span")

    serving.kill()
    serving.start(wait=False)
    serving.until(lambda: serving.get("/readyz").status == 200, "ready")
    assert serving.metrics()["quality"]["score_avg"] == 0.75


def test_an_undecodable_shard_count_does_not_prevent_a_start(serving: Pipeline) -> None:
    post_spans(serving, 3)
    publish(serving, ("$KV.tt_meta.shards", b"\xff"), ("$KV.tt_meta.alert_counts", b'{"firings":{"\xff":1}}'))
    serving.kill()
    serving.start()
    assert counted(serving) == 3
    assert names(serving, "tt_meta", "key shards", "shards")
    post_spans(serving, 3)


def test_fuzzed_data_in_streams_and_buckets_stops_no_service(serving: Pipeline) -> None:
    dice = dice_of("streams and buckets")
    post_spans(serving, 3)
    assert serving.post("/alerts", RULE).status == 201
    assert serving.post("/alerts", {**RULE, "name": "grouped", "group_by": "model"}).status == 201
    assert serving.post("/alerts", {**RULE, "name": "told", "delivery": {"type": "stdout"}}).status == 201
    assert serving.post("/api/traces/start", {"traceId": "open-1", "name": "n", "type": "custom"}).status == 200
    trace = serving.get("/traces?limit=1").json()["traces"][0]["trace_id"]
    assert serving.post("/scores", {"trace_id": trace, "value": 0.5}).status == 202
    span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1}
    assert serving.post("/spans", span, {"Idempotency-Key": "k"}).status == 202
    publish(serving, (RAW, b"becomes a dead letter"))
    serving.until(lambda: last_sequence(serving, "TT_REJECTED") > 0, "a dead letter")
    serving.until(lambda: last_sequence(serving, "TT_ALERTS") >= 3, "fired")
    serving.until(lambda: last_sequence(serving, "TT_DELIVERIES") > 0, "delivered")
    serving.until(lambda: bool(snapshot_names(serving)), "saved")

    async def read(client: Any) -> list[tuple[str, bytes]]:
        found = []
        for name in (stream.name for stream in subjects.streams()):
            info = (await client.jetstream().stream_info(name, subjects_filter=">")).state
            every = sorted(info.subjects or {})
            kinds = {kind_of(subject) for subject in every}
            for subject in (one for kind in kinds for one in [one for one in every if kind_of(one) == kind][-12:]):
                # A start ends with an error if the shard count differs, which is intended.
                if not subject.endswith(".shards"):
                    message = await client.jetstream().get_last_msg(name, subject)
                    found.append((subject, message.data or b""))
        return found

    known = on_nats(serving, read)
    by_name = sorted({kind_of(subject) for subject, _ in known})
    # All but the buckets of budgets, which services never read, and of keys, of which one would close this server.
    assert len(by_name) >= len(subjects.streams()) - 2, by_name
    for _ in range(rounds(1)):
        bad = [(subject, dice.randbytes(200)) for subject in (RAW, SPANS, ALERTS, DELIVERIES, DELETIONS)]
        for name in by_name:
            of_name = [one for one in known if kind_of(one[0]) == name]
            bad += [(subject, bent(dice, data)) for subject, data in dice.choices(of_name, k=25)]
        publish(serving, *bad)
        mark(serving)
        serving.kill()
        serving.start()
        mark(serving)
        for path in ("/alerts", "/stats", "/metrics?window=30d&kind=all", "/traces", "/health", "/api/sessions"):
            answer = serving.get(path)
            assert answer.status == 200, (path, answer.body[:500])
        assert set_aside(serving)
    assert "Traceback" not in serving.log.read_text()


def kind_of(subject: str) -> str:
    """Return the stream or bucket of *subject*; the descriptions and the chunks of objects are two kinds."""
    tokens = subject.split(".")
    return ".".join(tokens[:3] if tokens[0] == "$O" else tokens[:2])


def mark(serving: Pipeline) -> None:
    """Post a span of a new caller and wait until it is stored and counted."""
    caller = uuid.uuid4().hex
    span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": caller, "trace_id": caller}
    assert serving.post("/spans", span).status == 202
    serving.until(lambda: serving.get(f"/traces/{caller}").status == 200, "stored", 20)
    asked = f"/metrics?window=30d&caller={caller}"
    serving.until(lambda: serving.get(asked).json()["span_count"] == 1, "counted", 20)
