"""
Secrets of some fifty kinds are sent through a reporter, NATS and HTTP, and the pipeline stores, logs and shows none.

All secrets differ, so a secret that is found tells through which input it came and in which field it was. The search
covers the files of NATS with all snapshots, the files and tables of the span store, the logs, and responses of the api.
With redaction off the same search finds every secret that is stored or shown, which proves that the search works.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from kit.builders import ENDED_NS, STARTED_NS
from kit.canaries import KINDS, Canary, canary
from kit.environment import GUARD
from kit.examples import WHOLE
from kit.leaks import UNCOMPRESSED, dump_tables, search
from kit.pipeline import SeparateServices, http
from tokentrace import Reporter
from tokentrace.bus import jetstream, subjects
from tokentrace.records import BATCH_TYPE, Annotation, Batch, ChatMessage, SessionEnd, Span, Started, encode_batches
from tokentrace.redact import Redactor
from tokentrace_ingest.service import ACK_WAIT_S

#: A whole run sends every kind over every input; another run sends a fifth of them over each, in turn.
SHARES = 1 if WHOLE else 5


class Sender:
    """
    A builder of input that contains secrets; it records each secret.

    Attributes:
        needles: Secret -> its kind, field and input.
        spans: How many valid spans were built.
    """

    def __init__(self) -> None:
        self.needles: dict[bytes, str] = {}
        self.spans = 0
        self._turns = itertools.cycle(range(SHARES))

    def kinds(self) -> Sequence[str]:
        """Return the kinds of secrets to send over the next input."""
        return list(KINDS)[next(self._turns) :: SHARES]

    def put(self, kind: str, source: str, place: str) -> str:
        """Return a text with a new secret for the field *place* of the input *source*."""
        secret: Canary = canary(kind, f"{source}/{place}")
        self.needles[secret.needle.encode()] = f"{kind} in {place} by {source}"
        return secret.text

    def attributes(self, kind: str, source: str, *, nested: bool = True) -> dict[str, Any]:
        attributes: dict[str, Any] = {"value": self.put(kind, source, "value"), self.put(kind, source, "key"): 1}
        if nested:
            attributes["deep"] = {"list": [{"x": self.put(kind, source, "nested")}]}
        return attributes

    def span(self, kind: str, source: str, number: int, **changes: Any) -> Span:
        self.spans += 1
        return Span(
            **{
                "trace_id": f"{source}-{number}",
                "span_id": "1",
                "name": self.put(kind, source, "name"),
                "caller": self.put(kind, source, "caller"),
                "model": "gpt-4o",
                "provider": "openai",
                "status": "error",
                "prompt_tokens": 5,
                "started_ns": STARTED_NS,
                "ended_ns": ENDED_NS,
                "error": self.put(kind, source, "error"),
                "error_stack": f"File x\n  {self.put(kind, source, 'stack')}",
                "attributes": self.attributes(kind, source),
                "session_id": f"session-{source}",
                **changes,
            }
        )

    def batch(self, source: str) -> Batch:
        """Return one batch with spans, other records and, for each kind of secret, an invalid span."""
        spans, started, messages, annotations, ends = [], [], [], [], []
        session = f"session-{source}"
        for number, kind in enumerate(self.kinds()):
            spans.append(self.span(kind, source, number))
            bad = self.span(kind, f"{source} bad", number, model="", status="ok")
            self.spans -= 1
            spans.append(bad)
            started.append(
                Started(
                    trace_id=f"{source}-open-{number}",
                    span_id="1",
                    session_id=session,
                    name=self.put(kind, source, "started name"),
                    metadata={"deep": [self.put(kind, source, "started metadata")]},
                )
            )
            messages.append(
                ChatMessage(
                    message_id=f"{source}-{number}",
                    session_id=session,
                    content=self.put(kind, source, "content"),
                    raw=self.put(kind, source, "raw"),
                    metadata={"deep": {"x": self.put(kind, source, "message metadata")}},
                )
            )
            annotations.append(
                Annotation(
                    trace_id=f"{source}-{number}",
                    span_id="1",
                    attributes={"said": self.put(kind, source, "annotation")},
                )
            )
            error = self.put(kind, source, "session end")
            ends.append(SessionEnd(session_id=f"{session}-{number}", ended_ns=ENDED_NS, error=error))
        return Batch(
            id=f"foreign.{source}",
            sequence=1,
            source="foreign",
            spans=spans,
            started=started,
            messages=messages,
            annotations=annotations,
            session_ends=ends,
        )

    def docs(self, source: str) -> list[dict[str, Any]]:
        """Return a body for ``POST /spans``, with one span for each kind of secret."""
        spans = []
        for number, kind in enumerate(self.kinds()):
            self.spans += 1
            spans.append(
                {
                    "trace_id": f"{source}-{number}",
                    "span_id": "1",
                    "kind": "tool",
                    "name": self.put(kind, source, "name"),
                    "caller": self.put(kind, source, "caller"),
                    "status": "error",
                    "error": self.put(kind, source, "error"),
                    "error_stack": self.put(kind, source, "stack"),
                    "attributes": self.attributes(kind, source, nested=False),
                    "session_id": f"session-{source}",
                }
            )
        return spans

    def mist(self, source: str) -> Iterator[bytes]:
        """Yield bodies for ``POST /mist``, one for each kind of secret."""
        for number, kind in enumerate(self.kinds()):
            self.spans += 1
            payload = {
                "trace_id": f"{source}-{number}",
                "span_id": "1",
                "operation": self.put(kind, source, "name"),
                "start_ns": STARTED_NS,
                "end_ns": ENDED_NS,
                "status": "error",
                "attrs": {"error": self.put(kind, source, "error"), **self.attributes(kind, source)},
            }
            yield json.dumps({"version": "1", "type": "trace.span", "source": "tool", "payload": payload}).encode()


def post(url: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http("POST", url, data, {"Content-Type": "application/json", **(headers or {})})
    assert answer.status in (200, 201, 202), answer.body[:500]
    return answer.json() if answer.body else None


def send_costkatana(sender: Sender, base: str, source: str) -> None:
    for number, kind in enumerate(sender.kinds()):
        sender.spans += 2
        session = f"session-{source}"
        start = {
            "name": sender.put(kind, source, "name"),
            "sessionId": session,
            "traceId": f"{source}-{number}",
            "metadata": sender.attributes(kind, f"{source} start"),
        }
        service = sender.put(kind, source, "service").replace("\n", " ").strip()
        post(f"{base}/api/traces/start", start, {"X-Service-Name": service})
        end = {
            "status": "error",
            "error": {"message": sender.put(kind, source, "error"), "stack": sender.put(kind, source, "stack")},
            "metadata": {"at the end": sender.attributes(kind, f"{source} end")},
        }
        post(f"{base}/api/traces/{source}-{number}/end", end)
        post(
            f"{base}/api/traces/{source}-{number}/end", {"metadata": {"later": sender.put(kind, source, "second end")}}
        )
        message = {
            "sessionId": session,
            "traceId": f"{source}-{number}",
            "role": "user",
            "content": sender.put(kind, source, "content"),
            "metadata": {"deep": [sender.put(kind, source, "message metadata")]},
        }
        post(f"{base}/api/traces/messages", message)
        open_ = {
            "name": sender.put(kind, source, "open name"),
            "sessionId": session,
            "traceId": f"{source}-open-{number}",
        }
        post(f"{base}/api/traces/start", {**open_, "error": sender.put(kind, source, "early error")})
        whole = {
            "name": sender.put(kind, source, "ingest name"),
            "sessionId": session,
            "traceId": f"{source}-whole-{number}",
            "status": "error",
            "error": sender.put(kind, source, "ingest error"),
            "metadata": sender.attributes(kind, f"{source} ingest"),
        }
        post(f"{base}/api/traces/ingest", {"spans": [whole]})


def send_http(sender: Sender, base: str, source: str) -> None:
    post(f"{base}/spans", sender.docs(f"{source} spans"))
    batches = encode_batches([sender.batch(f"{source} batch")])
    post(f"{base}/spans", batches, {"Content-Type": BATCH_TYPE})
    for body in sender.mist(f"{source} mist"):
        post(f"{base}/mist", body)
    send_costkatana(sender, base, f"{source} costkatana".replace(" ", "-"))


def send_reporter(sender: Sender, url: str, source: str, redactor: Redactor) -> None:
    with Reporter("canary", url, redactor=redactor) as reporter:
        for number, kind in enumerate(sender.kinds()):
            reporter.report(sender.span(kind, source, number))
        assert reporter.flush(30)
        assert reporter.stats().failed == 0


async def send_nats(sender: Sender, url: str) -> None:
    async with jetstream.connect(url, name="foreign") as bus:
        subject = subjects.raw(subjects.DEFAULT_PROJECT, 0)
        await bus.publish(subject, encode_batches([sender.batch("msgpack")]))
        await bus.publish(subject, json.dumps(sender.docs("json")).encode())
        for number, kind in enumerate(sender.kinds()):
            # A message that cannot be decoded, and one with an invalid span: dead letters must hold no secret either.
            await bus.publish(subject, b"\xc1" + sender.put(kind, "rubbish", "bytes").encode())
            bad = {"kind": "tool", "name": "bad", "error": sender.put(kind, "json bad", "error"), "latency_ms": -1}
            await bus.publish(subject, json.dumps([bad, {"kind": "tool", "name": f"n{number}"}]).encode())
            sender.spans += 1


def ask_everything(pipeline: SeparateServices, sender: Sender) -> bytes:
    """Return the bodies of many GET routes of the api, with those of each trace and each session."""
    paths = [
        "/traces/recent",
        "/stats",
        "/rejected?limit=200",
        "/metrics?window=30d",
        "/metrics/prometheus",
        "/api/sessions/summary",
        "/export?format=jsonl",
        "/export?format=csv",
        *(f"/metrics/{name}?window=30d&groupby={by}" for name in ("total_tokens", "error_rate") for by in GROUPS),
    ]
    bodies = []
    offset, ids = 0, []
    while True:
        answer = pipeline.get(f"/traces?limit=200&offset={offset}")
        bodies.append(answer.body)
        page_ids = [trace["trace_id"] for trace in answer.json()["traces"]]
        ids += page_ids
        offset += 200
        if not page_ids:
            break
    for trace_id in ids:
        name = quote(trace_id, safe="")
        paths += [f"/traces/{name}", f"/traces/{name}?format=mist", f"/traces/{name}/timeline"]
    sessions = pipeline.get("/api/sessions?limit=100")
    bodies.append(sessions.body)
    for session in sessions.json()["sessions"]:
        name = quote(session["sessionId"], safe="")
        paths += [f"/api/sessions/{name}/graph", f"/api/sessions/{name}/details"]
    for path in paths:
        answer = pipeline.get(path)
        assert answer.status == 200, (path, answer.body[:300])
        bodies.append(answer.body)
    return b"\n".join(bodies)


GROUPS = ("model", "caller", "name", "provider", "status")


class Outcome:
    """
    The secrets that are found after all input was sent through services with the redaction mode *mode*.

    Attributes:
        needles: Secret -> its kind, field and input.
        found: Place (nats, store, tables, answers, logs) -> the descriptions of the secrets that occur there.
        sent: How many valid spans were sent.
        stats: The body of ``GET /stats`` at the end.
        counters: The text of ``GET /internal/metrics`` of ingest at the end.
    """

    def __init__(self, directory: Path, mode: str) -> None:
        shim = directory / "shim"
        shim.mkdir(parents=True)
        (shim / "sitecustomize.py").write_text(UNCOMPRESSED)
        env = {
            "TOKENTRACE_REDACTION_MODE": mode,
            "PYTHONPATH": os.pathsep.join([str(shim), str(GUARD)]),
            "TOKENTRACE_DUPLICATE_WINDOW": "120s",
        }
        run = directory / "run"
        pipeline = SeparateServices(run, env=env)
        pipeline.env["TOKENTRACE_INGEST_URL"] = f"http://127.0.0.1:{pipeline.ports['ingest']}"
        sender = Sender()
        pipeline.start()
        try:
            ingest = f"http://127.0.0.1:{pipeline.ports['ingest']}"
            redactor = Redactor(mode=msgspec.convert(mode, type=Any))
            send_reporter(sender, pipeline.nats_url, "reporter", redactor)
            send_reporter(sender, ingest, "reporter http", redactor)
            send_reporter(sender, pipeline.nats_url, "old reporter", Redactor(mode="off"))
            asyncio.run(send_nats(sender, pipeline.nats_url))
            send_http(sender, ingest, "ingest")
            send_http(sender, pipeline.url, "api")
            self.end_sessions(pipeline, sender)
            pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] >= sender.spans, "all stored", 120)
            answers = ask_everything(pipeline, sender)
            self.stats = pipeline.get("/stats").json()
            self.counters = http("GET", f"{ingest}/internal/metrics").body.decode()
            self.sent = sender.spans
            # A reader saves a snapshot when it stops, so the search covers snapshots.
        finally:
            code = pipeline.stop()
        assert code == 0
        self.needles = sender.needles
        (directory / "answers").mkdir()
        (directory / "answers" / "all").write_bytes(answers)
        (directory / "dump").mkdir()
        dump_tables(sorted((run / "data").rglob("*.duckdb")), directory / "dump" / "all")
        nats = run / "nats"
        self.found = {
            "nats": search(self.needles, nats),
            "store": search(self.needles, run / "data"),
            "tables": search(self.needles, directory / "dump"),
            "answers": search(self.needles, directory / "answers"),
            "logs": search(self.needles, run / "serve.log"),
        }

    @staticmethod
    def end_sessions(pipeline: SeparateServices, sender: Sender) -> None:
        """End sessions with an error; only the api has this route."""
        for number, kind in enumerate(sender.kinds()):
            session = f"ended-{number}"
            span = {"name": "x", "sessionId": session, "status": "ok", "type": "tool"}
            post(f"{pipeline.url}/api/traces/ingest", span)
            sender.spans += 1
            error = {"message": sender.put(kind, "api", "session end")}
            post(f"{pipeline.url}/api/sessions/{session}/end", {"error": error})


@pytest.fixture(scope="module")
def redacted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("redact"), "redact")


@pytest.fixture(scope="module")
def unredacted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("off"), "off")


@pytest.mark.parametrize("place", ["nats", "store", "tables", "answers", "logs"])
def test_no_secret_of_any_input_is_found_in_any_place(redacted: Outcome, place: str) -> None:
    assert sorted(redacted.found[place]) == []


def test_redaction_loses_no_span(redacted: Outcome) -> None:
    assert redacted.stats["total_spans"] == redacted.sent


def test_redactions_are_counted_for_each_input_and_kind(redacted: Outcome) -> None:
    lines = [line for line in redacted.counters.splitlines() if line.startswith("tokentrace_ingest_redactions_total{")]
    sources = {line.partition('way="')[2].partition('"')[0] for line in lines}
    kinds = {line.partition('kind="')[2].partition('"')[0] for line in lines}
    assert sources == {"reporter", "nats", "spans", "mist", "costkatana"}
    tokens = {"api_key", "jwt", "bearer", "basic", "private_key", "url_credentials"}
    assert kinds == {*tokens, "email", "phone", "ssn", "card", "key_value"}


def test_with_redaction_off_the_same_search_finds_every_secret_that_is_kept(unredacted: Outcome) -> None:
    # Of undecodable bytes and of an invalid JSON span only a digest is kept, and a "raw" text is discarded.
    discarded = (" in bytes by ", " in raw by ", " by json bad")
    stored = {label for label in unredacted.needles.values() if not any(part in label for part in discarded)}
    assert sorted(stored - unredacted.found["nats"]) == []
    # NATS alone keeps dead letters and, in the bucket of open spans, an error that is given before the end of a span.
    shown = {label for label in stored if " bad" not in label and " early error " not in label}
    assert sorted(shown - unredacted.found["tables"]) == []
    assert sorted(shown - unredacted.found["store"]) == []
    # The api shows only sessions with spans; of the ended sessions, only those of the input "api" have one.
    asked = {label for label in shown if " session end by " not in label or label.endswith(" by api")}
    assert sorted(asked - unredacted.found["answers"]) == []


@pytest.mark.parametrize("mode", ["redact", "off"])
async def test_messages_removed_from_the_queue_are_overwritten_while_another_message_waits(
    mode: str, tmp_path: Path
) -> None:
    """NATS keeps a file of the queue while one of its messages waits, so the test holds back the first message."""
    pipeline = SeparateServices(tmp_path / "run", env={"TOKENTRACE_REDACTION_MODE": mode})
    pipeline.port = pipeline.ports["ingest"]
    needles: dict[bytes, str] = {}
    pipeline.broker.start()
    try:
        pipeline.start_one("ingest")
        pipeline.wait_ready()
        pipeline.kill_one("ingest")
        async with jetstream.connect(pipeline.nats_url, name="foreign") as bus:
            subject = subjects.raw(subjects.DEFAULT_PROJECT, 0)
            await bus.publish(subject, b'{"kind": "tool", "name": "held back"}')
            feed = bus.consume(subjects.RAW, subjects.INGEST, batch=1, ack_wait_s=ACK_WAIT_S)
            async with contextlib.aclosing(feed):
                (held,) = await anext(feed)
                pipeline.start_one("ingest")
                pipeline.wait_ready()
                for kind in KINDS:
                    secret = canary(kind, "queue")
                    needles[secret.needle.encode()] = kind
                    span = {"kind": "tool", "name": "x", "error": secret.text}
                    await bus.publish(subject, json.dumps(span).encode())
                    while (await bus.state(subjects.RAW)).messages > 1:
                        await held.in_progress()
                        await asyncio.sleep(0.01)
                (queue,) = (tmp_path / "run" / "nats" / "js").rglob(subjects.RAW)
                assert search({b"held back": "waiting message"}, queue) == {"waiting message"}
                found = search(needles, queue)
    finally:
        for process in pipeline.running.values():
            process.kill()
            process.wait()
        pipeline.broker.stop()
    assert found == (set() if mode == "redact" else set(KINDS))
