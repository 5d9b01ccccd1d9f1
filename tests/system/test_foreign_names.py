"""
Rubbish under every name of the broker from which the product reads: no process ends, and ``/health`` shows each.

The names are those that the streams and buckets of the product hold after ordinary use, so a new stream, bucket or key
takes part by itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from kit.broker import Broker
from kit.nats_client import RAW, on_nats
from kit.nats_client import publish as publish_all
from kit.pipeline import Pipeline, http
from kit.rubbish import dice_of, noise
from tokentrace.bus import subjects

SPAN = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": "known"}
RULE = {"metric": "span_count", "op": "gte", "threshold": 1, "window": "1h", "eval_interval": "1s", "cooldown": "24h"}
#: Keys that nothing reads: a write of this one shows whether the broker can write.
UNREAD = {f"$KV.{subjects.META}.probe"}
#: Keys that a running reader writes anew at once, often before they are read; those of a reader that is gone stay.
REWRITTEN = tuple(f"$KV.{subjects.META}.{what}." for what in ("reader", "calls"))
OF_OTHER_READERS = ("reader.gone.0", "calls.gone.0", "set_aside.gone.0")
CHUNKS, METAS = f"$O.{subjects.SNAPSHOTS}.C.", f"$O.{subjects.SNAPSHOTS}.M."
LOGS = [stream.name for stream in subjects.streams() if stream.kind == "log"]


class Written(NamedTuple):
    """Rubbish that was written: where ``/health`` shows it, and the beginning of what it says."""

    place: str
    which: str


@pytest.fixture
def serving(tmp_path: Path, broker: Broker) -> Iterator[Pipeline]:
    """Start ``serve`` with a separate broker, which keeps running when ``serve`` is killed."""
    pipeline = Pipeline(tmp_path / "serve", "--nats", broker.url)
    pipeline.nats_port = broker.port
    pipeline.start()
    yield pipeline
    pipeline.stop()


def use(serving: Pipeline) -> None:
    """Use everything that keeps something in a stream or bucket."""
    for name, more in (("plain", {}), ("told", {"delivery": {"type": "stdout"}}), ("grouped", {"group_by": "model"})):
        assert serving.post("/alerts", {"name": name, **RULE, **more}).status == 201
    body = {**SPAN, "trace_id": "t1", "span_id": "s1"}
    assert serving.post("/spans", body, {"Idempotency-Key": "known"}).status == 202
    assert serving.post("/spans", {**SPAN, "caller": "other", "trace_id": "gone", "span_id": "gone"}).status == 202
    serving.until(lambda: serving.get("/traces/t1").status == serving.get("/traces/gone").status == 200, "stored")
    assert score(serving, 0.5) == 202
    assert start_span(serving) == 200
    assert http_delete(serving, "/traces/gone") == 200
    publish_all(serving, (RAW, b"becomes a dead letter"))
    for stream in LOGS:
        if stream != subjects.RAW:
            serving.until(partial(lambda stream: bool(held(serving, stream)), stream), f"{stream} holds something")
    for service in ("aggregator.0.", "alerter.0."):
        serving.until(partial(lambda name: len(snapshots(serving, name)) > 0, service), f"snapshot of {service}")
    serving.until(lambda: any("alert_counts" in subject for subject in held(serving, "KV_tt_meta")), "counts saved")
    serving.until(lambda: any(".reader.api" in subject for subject in held(serving, "KV_tt_meta")), "positions told")


def http_delete(serving: Pipeline, path: str) -> int:
    return http("DELETE", serving.url + path).status


def score(serving: Pipeline, value: float) -> int:
    return serving.post("/scores", {"trace_id": "t1", "span_id": "s1", "name": "eval.score", "value": value}).status


def start_span(serving: Pipeline) -> int:
    return serving.post("/api/traces/start", {"traceId": "open-1", "name": "n", "type": "custom"}).status


def read_everything(serving: Pipeline) -> None:
    """Send the requests that read what is read on demand only; none may fail for what stands there."""
    body = {**SPAN, "trace_id": "t1", "span_id": "s1"}
    assert serving.post("/spans", body, {"Idempotency-Key": "known"}).status == 202
    assert score(serving, 0.75) == 202
    assert start_span(serving) in (200, 409)
    child = {"traceId": "open-2", "parentId": "open-1", "name": "n", "type": "custom"}
    assert serving.post("/api/traces/start", child).status == 200
    assert serving.post("/api/traces/open-1/end", {"status": "ok"}).status in (200, 404)
    for path in ("/alerts", "/stats", "/metrics?window=30d&kind=all", "/traces", "/api/sessions", "/traces/t1"):
        answer = serving.get(path)
        assert answer.status == 200, (path, answer.body[:500])


def held(serving: Pipeline, stream: str) -> list[str]:
    """Return the subjects of which *stream* holds a message."""

    async def ask(client: Any) -> list[str]:
        info = await client.jetstream().stream_info(stream, subjects_filter=">")
        return sorted(info.state.subjects or {})

    return on_nats(serving, ask)


def snapshots(serving: Pipeline, prefix: str) -> list[str]:
    """Return the names of the objects that begin with *prefix* and a number, the oldest first."""
    names = [
        object_name(subject) for subject in held(serving, f"OBJ_{subjects.SNAPSHOTS}") if subject.startswith(METAS)
    ]
    return sorted(name for name in names if name.removeprefix(prefix).isdigit() and name.startswith(prefix))


def object_name(subject: str) -> str:
    return base64.urlsafe_b64decode(subject.removeprefix(METAS)).decode()


def meta_of(name: str) -> str:
    return METAS + base64.urlsafe_b64encode(name.encode()).decode()


def chunks_of_newest(serving: Pipeline, prefix: str) -> tuple[str, str]:
    """Return (the newest snapshot that begins with *prefix*, the subject of the chunks of its state)."""

    async def read(client: Any) -> tuple[str, str]:
        stream = client.jetstream()

        async def described(name: str) -> Any:
            message = await stream.get_last_msg(f"OBJ_{subjects.SNAPSHOTS}", meta_of(name))
            return json.loads(message.data)

        async def content(name: str) -> bytes:
            description = await described(name)
            message = await stream.get_last_msg(f"OBJ_{subjects.SNAPSHOTS}", CHUNKS + description["nuid"])
            return bytes(message.data)

        manifest = msgspec.msgpack.decode(await content(newest))
        return newest, CHUNKS + (await described(manifest["state"]))["nuid"]

    newest = snapshots(serving, prefix)[-1]
    return on_nats(serving, read)


def scribble(serving: Pipeline, *written: tuple[str, bytes]) -> list[int]:
    """Publish (subject, payload) pairs, and return the sequence of each in its stream."""

    async def send(client: Any) -> list[int]:
        stream = client.jetstream()
        return [(await stream.publish(subject, payload)).seq for subject, payload in written]

    return on_nats(serving, send)


def replace(serving: Pipeline, chunks: str, payload: bytes) -> None:
    """Replace all chunks of an object by *payload*."""

    async def work(client: Any) -> None:
        await client.jetstream().purge_stream(f"OBJ_{subjects.SNAPSHOTS}", subject=chunks)
        await client.jetstream().publish(chunks, payload)

    on_nats(serving, work)


def place_of(stream: str, subject: str, sequence: int) -> Written:
    """Return where ``/health`` shows a message that cannot be decoded."""
    if stream.startswith("KV_"):
        bucket = stream.removeprefix("KV_")
        return Written(bucket, f"key {subject.removeprefix(f'$KV.{bucket}.')}")
    if stream.startswith("OBJ_"):
        return Written(subjects.SNAPSHOTS, f"object {object_name(subject)}")
    return Written(stream, f"message {sequence}")


def shown(serving: Pipeline) -> set[Written]:
    answer = serving.get("/health")
    assert answer.status == 200, answer.body
    newest = answer.json().get("set_aside", {"newest": []})["newest"]
    return {Written(record["place"], record["which"].partition(" revision")[0]) for record in newest}


def totals(serving: Pipeline) -> tuple[int, int]:
    counted = serving.get("/metrics?window=30d&caller=known").json()["span_count"]
    return counted, serving.get("/traces?caller=known&limit=1").json()["total"]


def test_rubbish_under_every_name_of_the_broker_is_shown_and_ends_nothing(serving: Pipeline) -> None:
    dice = dice_of("names")
    use(serving)
    # Services make the bucket of budgets and read nothing from it: programs do. A key would close this server.
    without = {f"KV_{subjects.BUDGETS}", f"KV_{subjects.KEYS}"}
    everything = [stream.name for stream in subjects.streams() if stream.name not in without]
    names = {stream: held(serving, stream) for stream in everything}
    names[subjects.RAW] = []
    assert all(names[stream] for stream in everything if stream != subjects.RAW), names
    serving.kill()  # so that nothing is written anew; the broker keeps running

    # A damaged chunk is found only while the description is whole, so it has a start of its own.
    damaged = [chunks_of_newest(serving, prefix) for prefix in ("aggregator.0.", "alerter.0.")]
    for _, chunks in damaged:
        replace(serving, chunks, noise(dice))
    serving.start()
    expected = {Written(subjects.SNAPSHOTS, f"object {name}") for name, _ in damaged}
    serving.until(lambda: expected <= shown(serving), f"{expected} shown", 20)
    assert totals(serving) == (1, 1)
    serving.kill()

    names = {stream: held(serving, stream) for stream in everything}
    targets = [(f"KV_{subjects.META}", f"$KV.{subjects.META}.{key}") for key in OF_OTHER_READERS]
    targets += [
        (stream, subject)
        for stream in everything
        for subject in names[stream]
        if subject not in UNREAD and not subject.startswith((CHUNKS, *REWRITTEN))
    ]
    sequences = scribble(serving, *((subject, noise(dice)) for _, subject in targets))
    wanted = {place_of(*target, number) for target, number in zip(targets, sequences, strict=True)}
    # Pieces are read only as parts of a snapshot, and no snapshot can be read now. Dead letters are read on demand.
    wanted = {one for one in wanted if ".piece." not in one.which and one.place != subjects.REJECTED}
    serving.start()
    read_everything(serving)
    serving.until(lambda: wanted <= shown(serving), f"shown: {sorted(wanted - shown(serving))}", 30)
    assert totals(serving) == (1, 1)
    assert serving.process is not None
    assert serving.process.poll() is None

    # While it runs, its own entries are written anew, so each is read before that or is repaired.
    for _, subject in targets:
        if not subject.startswith((METAS, "tokentrace.raw")):
            scribble(serving, (subject, noise(dice)))
    publish_all(serving, (RAW, noise(dice)))
    read_everything(serving)
    assert serving.post("/spans", {**SPAN, "trace_id": "t2", "span_id": "s2"}).status == 202
    serving.until(lambda: totals(serving) == (2, 2), "counted and stored after the rubbish", 30)
    assert serving.process.poll() is None
    assert "Traceback" not in serving.log.read_text()


def test_an_idempotency_key_whose_entry_is_rubbish_is_free_again(serving: Pipeline) -> None:
    body = {**SPAN, "trace_id": "t1", "span_id": "s1"}
    assert serving.post("/spans", body, {"Idempotency-Key": "k"}).status == 202
    [key] = held(serving, f"KV_{subjects.REQUESTS}")
    scribble(serving, (key, b"\xc1\xff rubbish"))
    assert serving.post("/spans", body, {"Idempotency-Key": "k"}).status == 202
    assert Written(subjects.REQUESTS, f"key {key.rpartition('.')[2]}") in shown(serving)
    other = {**SPAN, "trace_id": "t2", "span_id": "s2"}
    assert serving.post("/spans", other, {"Idempotency-Key": "k"}).status == 422
    serving.until(lambda: totals(serving) == (1, 1), "counted once")
