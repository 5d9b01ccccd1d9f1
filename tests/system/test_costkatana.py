"""Cost Katana's ways in: real ingest processes on one real broker, any of which may end what another one started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.broker import Broker
from kit.examples import examples
from kit.pipeline import Answer, free_port, http
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.client.trace_client import TraceClient
from tokentrace.dialect.costkatana import decode_end, end_of
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import Annotation, Batch, ChatMessage, Span, Started, decode_batches
from tokentrace_ingest.open_spans import OpenSpan

T = TypeVar("T")

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
KEY = {"Authorization": "Bearer ck-any-key", "X-Project-ID": "shop", "Content-Type": "application/json"}


class Replicas:
    """Two ingest processes and an api in front of the first, on a broker of their own."""

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.directory, self.env = directory, {**os.environ, **(env or {})}
        self.broker = Broker(directory / "nats")
        self.ports = {name: free_port() for name in ("ingest-0", "ingest-1", "api")}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.log = directory / "replicas.log"
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self.broker.start()
        for name in self.ports:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        url = f"http://127.0.0.1:{self.ports['ingest-0']}"
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"tokentrace_{name.partition('-')[0]}",
                    "--nats",
                    self.broker.url,
                    "--addr",
                    f"127.0.0.1:{self.ports[name]}",
                    "--data-dir",
                    str(self.directory / "data"),
                ],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**self.env, "TOKENTRACE_INGEST_URL": url if name == "api" else ""},
                start_new_session=True,
            )
        self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                path = "/healthz" if name == "api" else "/readyz"
                if http("GET", f"http://127.0.0.1:{self.ports[name]}{path}").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def stop(self) -> dict[str, int]:
        """Exit codes."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(40) for name, process in self.running.items()}
        self.broker.stop()
        return codes

    def url(self, replica: int | str = 0) -> str:
        return f"http://127.0.0.1:{self.ports[replica if isinstance(replica, str) else f'ingest-{replica}']}"

    def post(self, path: str, body: Any, replica: int | str = 0, headers: Mapping[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http("POST", self.url(replica) + path, data, {**KEY, **(headers or {})})

    def start_span(self, replica: int | str = 0, **fields: Any) -> tuple[str, str]:
        """(traceId, sessionId) of a new span."""
        answer = self.post("/api/traces/start", {"name": "x", "type": "custom", **fields}, replica)
        assert answer.status == 200, answer.body
        shown = answer.json()
        assert shown.keys() == {"traceId", "sessionId"}
        return shown["traceId"], shown["sessionId"]

    def end_span(self, span_id: str, replica: int | str = 0, **fields: Any) -> None:
        answer = self.post(f"/api/traces/{span_id}/end", {"status": "ok", **fields}, replica)
        assert answer.status == 200, answer.body

    # -- what a reader of the log sees

    def with_bus(self, ask: Callable[[Bus], Awaitable[T]]) -> T:
        async def run() -> T:
            async with jetstream.connect(self.broker.url, name="test") as bus:
                return await ask(bus)

        return asyncio.run(run())

    def batches(self) -> list[Batch]:
        """Every batch of the log in its order, repetitions included."""

        async def read(bus: Bus) -> list[Batch]:
            found: list[Batch] = []
            if not (await bus.state(subjects.SPANS)).messages:
                return found
            async with contextlib.aclosing(bus.follow(subjects.SPANS, [subjects.ALL_SPANS], None)) as feed:
                async for chunk in feed:
                    for message in chunk.messages:
                        found += decode_batches(message.payload)
                    if not chunk.pending:
                        break
            return found

        return self.with_bus(read)

    def read(self) -> Log:
        return Log(self.batches())

    def entry(self, span_id: str) -> OpenSpan:
        """What the bucket holds of a span."""
        key = next(key for key, opened in self.entries().items() if opened.started.span_id == span_id)
        return self.entries()[key]

    def entries(self) -> dict[str, OpenSpan]:
        async def read(bus: Bus) -> dict[str, OpenSpan]:
            items = await bus.kv(subjects.OPEN_SPANS).items()
            return {key: msgspec.msgpack.decode(entry.value, type=OpenSpan) for key, entry in items.items()}

        return self.with_bus(read)

    def rewrite(self, span_id: str, change: Callable[[OpenSpan], OpenSpan]) -> None:
        """Put something else into the bucket, as a process that died half-way would have left it."""
        key = next(key for key, opened in self.entries().items() if opened.started.span_id == span_id)

        async def write(bus: Bus) -> None:
            bucket = bus.kv(subjects.OPEN_SPANS)
            entry = await bucket.get(key)
            assert entry is not None
            opened = change(msgspec.msgpack.decode(entry.value, type=OpenSpan))
            await bucket.update(key, msgspec.msgpack.encode(opened), entry.revision)

        self.with_bus(write)


class Log:
    """The log as a reader folds it: a batch it has seen already is passed over."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        found: dict[tuple[str, int], Batch] = {}
        for batch in batches:
            found.setdefault((batch.id, batch.part), batch)
        first = found.values()
        self.spans: list[Span] = [span for batch in first for span in batch.spans]
        self.started: list[Started] = [one for batch in first for one in batch.started]
        self.messages: list[ChatMessage] = [one for batch in first for one in batch.messages]
        self.annotations: list[Annotation] = [one for batch in first for one in batch.annotations]

    def span(self, span_id: str) -> Span:
        """The only finished record of a span."""
        (found,) = [span for span in self.spans if span.span_id == span_id]
        return found

    def start(self, span_id: str) -> Started:
        """The only record of its start."""
        (found,) = [one for one in self.started if one.span_id == span_id]
        return found

    def attributes(self, span_id: str) -> dict[str, Any]:
        """Of a span and what was said of it later."""
        merged = dict(self.span(span_id).attributes)
        for later in self.annotations:
            if later.span_id == span_id:
                merged.update(later.attributes)
        return merged


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    serving = Replicas(tmp_path_factory.mktemp("replicas"))
    serving.start()
    yield serving
    assert set(serving.stop().values()) == {0}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Replicas]]:
    """Start replicas for this test."""
    started: list[Replicas] = []

    def start(env: Mapping[str, str] | None = None) -> Replicas:
        serving = Replicas(tmp_path / f"own-{len(started)}", env)
        started.append(serving)
        serving.start()
        return serving

    yield start
    for serving in started:
        serving.stop()


def refused(answer: Answer, status: int) -> str:
    """The text of an error, which the SDK looks for under ``message``."""
    assert answer.status == status, (answer.status, answer.body)
    body = answer.json()
    assert body.keys() == {"error", "message"}
    assert body["error"] == body["message"]
    return str(body["message"])


class TestLife:
    def test_a_span_started_on_one_replica_is_ended_on_another(self, replicas: Replicas) -> None:
        before = time.time_ns()
        span_id, session_id = replicas.start_span(
            0, name="answer", type="llm", metadata={"userId": "u-1", "provider": "openai", "step": 1}
        )
        assert UUID4.fullmatch(span_id)
        assert UUID4.fullmatch(session_id)
        replicas.end_span(
            span_id,
            1,
            model="gpt-4o",
            tokens={"input": 512, "output": 128},
            costUSD=0.5,
            tool="search",
            resourceIds=["doc-1"],
            metadata={"step": 2, "eval.score": 0.5, "ttft_ms": 12},
        )
        after = time.time_ns()
        log = replicas.read()
        start, span = log.start(span_id), log.span(span_id)
        assert (start.name, start.kind, start.metadata["step"], start.user_id) == ("answer", "llm", 1, "u-1")
        assert (span.trace_id, span.parent_span_id, span.session_id, span.user_id) == (
            span_id,
            None,
            session_id,
            "u-1",
        )
        assert (span.model, span.provider, span.prompt_tokens, span.completion_tokens) == ("gpt-4o", "openai", 512, 128)
        assert (span.cost_nusd, span.cost_source, span.score, span.ttft_ns) == (
            500_000_000,
            "reported",
            500_000_000,
            12_000_000,
        )
        assert before <= start.started_ns == span.started_ns <= span.ended_ns <= after
        assert span.latency_ns == span.ended_ns - span.started_ns
        assert span.source == "costkatana"
        assert span.attributes == {
            "userId": "u-1",
            "provider": "openai",
            "step": 2,
            "eval.score": 0.5,
            "ttft_ms": 12,
            "tool": "search",
            "resource_ids": ["doc-1"],
        }

    def test_a_span_without_a_cost_is_priced_by_its_model(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(type="llm", metadata={"provider": "openai"})
        replicas.end_span(span_id, model="gpt-4o", tokens={"input": 1000, "output": 1000})
        span = replicas.read().span(span_id)
        assert span.cost_source == "priced"
        assert span.cost_nusd
        assert span.cost_nusd > 0

    def test_children_inherit_trace_and_session_whichever_replica_knows_their_parent(self, replicas: Replicas) -> None:
        root, session = replicas.start_span(0)
        child, child_session = replicas.start_span(1, parentId=root)
        replicas.end_span(root, 1)
        replicas.end_span(child, 0)
        grandchild, grandchild_session = replicas.start_span(0, parentId=child)
        elsewhere, other_session = replicas.start_span(1, parentId=child, sessionId="of-my-own")
        assert (child_session, grandchild_session, other_session) == (session, session, "of-my-own")
        log = replicas.read()
        assert {log.start(one).trace_id for one in (root, child, grandchild, elsewhere)} == {root}
        assert log.span(child).parent_span_id == root
        orphan, _ = replicas.start_span(parentId="no-such-span")
        assert replicas.read().start(orphan).trace_id == "no-such-span"

    def test_headers_say_who_calls_and_in_which_session(self, replicas: Replicas) -> None:
        answer = replicas.post(
            "/api/traces/start", {"name": "x"}, headers={"X-Service-Name": "web", "X-Session-Id": "chat-7"}
        )
        span_id = answer.json()["traceId"]
        assert answer.json()["sessionId"] == "chat-7"
        assert (answer.headers["x-trace-id"], answer.headers["x-session-id"]) == (span_id, "chat-7")
        replicas.end_span(span_id, 1)
        assert replicas.read().span(span_id).caller == "web"
        answer = replicas.post("/api/traces/start", {"name": "x"}, headers={"X-Session-Id": "ü"})
        assert refused(answer, 400).startswith("X-Session-Id: ")

    def test_the_api_passes_on_what_is_posted_to_it(self, replicas: Replicas) -> None:
        answer = replicas.post(
            "/api/traces/start", {"name": "x", "traceId": "my/own id"}, "api", headers={"X-Service-Name": "web"}
        )
        assert answer.status == 200
        assert answer.headers["x-trace-id"] == "my/own id"
        replicas.end_span("my%2Fown%20id", "api", metadata={"a": 1})
        span = replicas.read().span("my/own id")
        assert (span.caller, span.attributes) == ("web", {"a": 1})
        assert refused(replicas.post("/api/traces/absent/end", {}, "api"), 404) == "Trace absent not found"

    @pytest.mark.parametrize("replica", [0, "api"])
    def test_names_may_be_any_text_in_headers_and_paths(self, replicas: Replicas, replica: int | str) -> None:
        headers = {"X-Service-Name": "café "}
        span_id = replicas.post("/api/traces/start", {"name": "x"}, replica, headers).json()["traceId"]
        assert replicas.read().start(span_id).caller == "café"
        answer = replicas.post("/api/traces/start", {"name": "x"}, replica, {"X-Session-Id": "ü"})
        assert refused(answer, 400).startswith("X-Session-Id: ")
        assert "not found" in refused(replicas.post("/api/traces/%C3%BC%0A%22/end?a=b", {}, replica), 404)
        assert replicas.post("/api/traces//end", {}, replica).status == 404
        assert b"message" in replicas.post("/api/traces/nothing", {}, replica).body

    def test_an_id_that_was_not_started_is_not_found(self, replicas: Replicas) -> None:
        unknown = str(uuid.uuid4())
        answer = replicas.post(f"/api/traces/{unknown}/end", {"status": "ok"})
        assert refused(answer, 404) == f"Trace {unknown} not found"

    def test_bad_requests_name_the_field_and_write_nothing(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        before = len(replicas.batches())
        assert refused(replicas.post("/api/traces/start", {"name": "x", "type": "oracle"}), 400).startswith("type: ")
        assert "name" in refused(replicas.post("/api/traces/start", {}), 400)
        assert refused(replicas.post("/api/traces/start", b"{"), 400)
        assert refused(replicas.post(f"/api/traces/{span_id}/end", {"status": "pending"}), 400).startswith("status: ")
        assert refused(replicas.post(f"/api/traces/{span_id}/end", {"endedAt": "soon"}), 400).startswith("endedAt: ")
        bad = [{"name": "x", "status": "ok"}, {"name": "y", "type": "oracle"}]
        assert refused(replicas.post("/api/traces/ingest", bad), 400).startswith("span 1: type: ")
        role = {"sessionId": "s", "traceId": "t", "role": "boss", "content": ""}
        assert refused(replicas.post("/api/traces/messages", role), 400).startswith("role: ")
        assert refused(http("GET", replicas.url() + "/api/traces/start", None, KEY), 405) == "method not allowed"
        assert len(replicas.batches()) == before
        replicas.end_span(span_id)


class TestStartAgain:
    def test_the_same_start_again_is_no_second_one(self, replicas: Replicas) -> None:
        mine = str(uuid.uuid4())
        first = replicas.post("/api/traces/start", {"name": "x", "traceId": mine}, 0)
        second = replicas.post("/api/traces/start", {"name": "x", "traceId": mine}, 1)
        assert first.status == second.status == 200
        assert first.json() == second.json()
        assert replicas.read().start(mine).session_id == first.json()["sessionId"]

    def test_an_id_that_another_span_has_is_refused(self, replicas: Replicas) -> None:
        mine, _ = replicas.start_span(name="first")
        answer = replicas.post("/api/traces/start", {"name": "second", "traceId": mine})
        assert refused(answer, 409).startswith("traceId: ")
        assert replicas.read().start(mine).name == "first"

    def test_an_idempotency_key_makes_the_ids_the_same(self, replicas: Replicas) -> None:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        first = replicas.post("/api/traces/start", {"name": "x"}, 0, key)
        assert replicas.post("/api/traces/start", {"name": "x"}, 1, key).json() == first.json()
        replicas.read().start(first.json()["traceId"])
        assert refused(replicas.post("/api/traces/start", {"name": "y"}, 1, key), 422).startswith("Idempotency-Key: ")


class TestEndAgain:
    def test_the_first_end_wins_and_later_ones_merge_their_metadata(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(metadata={"a": 0})
        replicas.end_span(span_id, 0, tokens={"input": 5, "output": 7}, metadata={"a": 1, "b": [1]})
        replicas.end_span(span_id, 1, status="error", error="late", model="m", metadata={"b": [2], "c": 3})
        replicas.end_span(span_id, 0, metadata={"a": 9})
        log = replicas.read()
        span = log.span(span_id)
        assert (span.status, span.error, span.model, span.prompt_tokens) == ("ok", "", "", 5)
        assert span.attributes == {"a": 1, "b": [1]}
        assert [one.attributes for one in log.annotations if one.span_id == span_id] == [{"b": [2], "c": 3}, {"a": 9}]
        assert log.attributes(span_id) == {"a": 9, "b": [2], "c": 3}

    def test_the_same_end_again_changes_nothing(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        for replica in (0, 1, 0):
            replicas.end_span(span_id, replica, metadata={"statusCode": 200})
        own = [batch.id for batch in replicas.batches() if span_id in batch.id]
        assert own == [f"costkatana.{span_id}.start", f"costkatana.{span_id}.end"]

    def test_one_and_true_are_not_the_same_value(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        for value in (1, True, 1.0):
            replicas.end_span(span_id, metadata={"a": value})
        found = replicas.read().attributes(span_id)["a"]
        assert isinstance(found, float)

    def test_later_metadata_that_is_too_much_is_refused(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(metadata={f"a{n}": n for n in range(100)})
        replicas.end_span(span_id)
        answer = replicas.post(f"/api/traces/{span_id}/end", {"metadata": {f"b{n}": n for n in range(100)}})
        assert refused(answer, 400).startswith("metadata: 200 keys")
        assert len(replicas.read().attributes(span_id)) == 100

    @settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        start=st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
        ends=st.lists(
            st.tuples(
                st.integers(0, 1),
                st.sampled_from(["ok", "error"]),
                st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def test_any_row_of_ends_comes_to_what_a_dictionary_would(
        self, replicas: Replicas, start: dict[str, int], ends: list[tuple[int, str, dict[str, int]]]
    ) -> None:
        span_id, _ = replicas.start_span(metadata=start)
        expected = dict(start)
        for replica, status, metadata in ends:
            replicas.end_span(span_id, replica, status=status, metadata=metadata)
            expected.update(metadata)
        log = replicas.read()
        assert log.span(span_id).status == ends[0][1]
        assert log.attributes(span_id) == expected

    def test_ends_that_race_make_one_span_and_lose_no_metadata(self, replicas: Replicas) -> None:
        ids = [replicas.start_span()[0] for _ in range(15)]
        racing = [(span_id, racer) for racer in range(6) for span_id in ids]

        def end(one: tuple[str, int]) -> None:
            span_id, racer = one
            metadata = {f"from-{racer}": racer, "winner": racer}
            replicas.end_span(span_id, racer % 2, tokens={"input": racer + 1, "output": 0}, metadata=metadata)

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(end, racing))
        log, entries = replicas.read(), replicas.entries()
        for span_id in ids:
            span = log.span(span_id)
            winner = span.attributes["winner"]
            assert span.attributes == {f"from-{winner}": winner, "winner": winner}
            assert span.prompt_tokens == winner + 1
            merged = log.attributes(span_id)
            assert {key: value for key, value in merged.items() if key != "winner"} == {
                f"from-{racer}": racer for racer in range(6)
            }
            (kept,) = [one for one in entries.values() if one.started.span_id == span_id]
            assert kept.attributes == merged
            assert (kept.journal, kept.merges) == ([], 5)


END: dict[str, Any] = {"status": "ok", "tokens": {"input": 3, "output": 4}, "metadata": {"a": 1}}


class TestCrash:
    def decided(self, opened: OpenSpan) -> OpenSpan:
        """The entry of a replica that died between deciding the end and publishing it."""
        now = opened.started.arrived_ns + 1_000_000
        span = end_of(opened.started, decode_end(json.dumps(END).encode()), now)
        final = msgspec.structs.replace(span, arrived_ns=now, cost_source="unpriced", unpriced_reason="no model")
        batch = Batch(id=f"costkatana.{span.span_id}.end", arrived_ns=now, spans=[final])
        return msgspec.structs.replace(opened, attributes=final.attributes, journal=[batch])

    def test_an_end_that_was_decided_and_not_published_is_published_by_the_retry(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.rewrite(span_id, self.decided)
        decided = replicas.entry(span_id).journal[0]
        assert not [span for span in replicas.read().spans if span.span_id == span_id]
        replicas.end_span(span_id, 1, **END)
        assert [batch for batch in replicas.batches() if batch.id == decided.id] == [decided]
        replicas.end_span(span_id, 1, **END)
        assert [batch for batch in replicas.batches() if batch.id == decided.id] == [decided]

    def test_another_end_publishes_it_too_and_then_its_own_metadata(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.rewrite(span_id, self.decided)
        replicas.end_span(span_id, 1, status="error", metadata={"b": 2})
        log = replicas.read()
        assert (log.span(span_id).status, log.attributes(span_id)) == ("ok", {"a": 1, "b": 2})
        own = [batch.id for batch in log.batches if span_id in batch.id]
        assert own == [f"costkatana.{span_id}.{what}" for what in ("start", "end", "merge.1")]

    def test_an_end_that_was_published_and_not_noted_is_published_again_byte_for_byte(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.end_span(span_id, 0, **END)
        replicas.end_span(span_id, 0, metadata={"b": 2})
        told = [batch for batch in replicas.batches() if span_id in batch.id][1:]
        replicas.rewrite(span_id, lambda opened: msgspec.structs.replace(opened, journal=told))
        replicas.end_span(span_id, 1, metadata={"b": 2})
        own = [batch for batch in replicas.batches() if span_id in batch.id]
        assert len(own) == 5
        assert own[1:3] == own[3:5]
        assert replicas.read().attributes(span_id) == {"a": 1, "b": 2}

    def test_replicas_that_are_killed_all_the_time_lose_and_double_nothing(
        self, start: Callable[..., Replicas]
    ) -> None:
        serving = start()
        expected: dict[str, tuple[str, int]] = {}
        done = threading.Event()

        def insist(path: str, body: Any, rng: random.Random) -> None:
            """As a client behind a load balancer: again, on any replica, until one has answered."""
            while True:
                with contextlib.suppress(OSError):
                    answer = serving.post(path, body, rng.randrange(2))
                    if answer.status < 500:
                        assert answer.status == 200, answer.body
                        return
                time.sleep(0.02)

        def work(worker: int) -> None:
            rng = random.Random(worker)
            for number in range(25):
                span_id, status = f"w{worker}-{number}", rng.choice(["ok", "error"])
                insist("/api/traces/start", {"name": "x", "traceId": span_id, "sessionId": "s"}, rng)
                end = {"status": status, "tokens": {"input": number, "output": worker}, "metadata": {"n": number}}
                insist(f"/api/traces/{span_id}/end", end, rng)
                expected[span_id] = (status, number)

        def kill() -> None:
            rng = random.Random(7)
            while not done.wait(rng.uniform(0.3, 0.9)):
                name = f"ingest-{rng.randrange(2)}"
                serving.kill(name)
                serving.start_one(name)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(work, range(6)))
        finally:
            done.set()
            killer.join()
        log = serving.read()
        assert len(expected) == 150
        assert sorted(span.span_id for span in log.spans) == sorted(expected)
        assert sorted(start.span_id for start in log.started) == sorted(expected)
        assert not log.annotations
        for span in log.spans:
            assert (span.status, span.prompt_tokens) == expected[span.span_id]
            assert span.attributes == {"n": span.prompt_tokens}


class TestIngest:
    @pytest.mark.parametrize("form", ["object", "array", "one"])
    def test_every_form_of_body_is_taken(self, replicas: Replicas, form: str) -> None:
        span = {
            "name": "x",
            "traceId": str(uuid.uuid4()),
            "sessionId": "batch",
            "status": "error",
            "error": {"message": "boom", "stack": "at x"},
            "startedAt": "2026-03-15T14:23:01.441Z",
            "endedAt": "2026-03-15T14:23:02.681Z",
        }
        body = {"object": {"spans": [span]}, "array": [span], "one": span}[form]
        for replica in (0, 1):
            answer = replicas.post("/api/traces/ingest", body, replica)
            assert answer.status == 200
            assert answer.json() == {"accepted": 1, "traceId": span["traceId"], "sessionId": "batch"}
        stored = replicas.read().span(str(span["traceId"]))
        assert (stored.status, stored.error, stored.error_stack) == ("error", "boom", "at x")
        assert (stored.latency_ns, stored.started_ns) == (1_240_000_000, 1_773_584_581_441_000_000)

    def test_an_empty_batch_is_taken(self, replicas: Replicas) -> None:
        assert replicas.post("/api/traces/ingest", {"spans": []}).json() == {"accepted": 0}

    def test_parents_may_come_after_their_children(self, replicas: Replicas) -> None:
        ids = [str(uuid.uuid4()) for _ in range(12)]
        known, session = replicas.start_span()
        spans = [
            {"name": "x", "traceId": ids[n], "parentId": ids[n - 1] if n else known, "status": "ok"} for n in range(12)
        ]
        random.Random(3).shuffle(spans)
        assert replicas.post("/api/traces/ingest", {"spans": spans}, 1).json()["accepted"] == 12
        log = replicas.read()
        found = [log.span(span_id) for span_id in ids]
        assert {span.trace_id for span in found} == {known}
        assert {span.session_id for span in found} == {session}

    def test_a_span_that_has_not_ended_stays_open(self, replicas: Replicas) -> None:
        body = {"name": "x", "aiModel": "gpt-4o", "tokens": {"input": 5, "output": 6}, "costUSD": 0.25}
        span_id = replicas.post("/api/traces/ingest", body).json()["traceId"]
        log = replicas.read()
        assert log.start(span_id).name == "x"
        assert not [span for span in log.spans if span.span_id == span_id]
        replicas.end_span(span_id, 1)
        span = replicas.read().span(span_id)
        assert (span.model, span.prompt_tokens, span.completion_tokens) == ("gpt-4o", 5, 6)
        assert (span.cost_nusd, span.cost_source) == (250_000_000, "reported")

    def test_a_finished_span_that_was_open_is_ended_once(self, replicas: Replicas) -> None:
        span_id, session = replicas.start_span(name="slow", metadata={"a": 1})
        span = {"name": "slow", "traceId": span_id, "status": "error", "metadata": {"b": 2}}
        for replica in (1, 0):
            assert replicas.post("/api/traces/ingest", [span], replica).status == 200
        replicas.end_span(span_id, 0)
        stored = replicas.read().span(span_id)
        assert (stored.status, stored.session_id, stored.attributes) == ("error", session, {"a": 1, "b": 2})

    def test_more_spans_than_a_request_may_bring_are_refused(self, replicas: Replicas) -> None:
        answer = replicas.post("/api/traces/ingest", [{"name": "x", "status": "ok"}] * 1001)
        assert refused(answer, 413).startswith("batch: 1001 spans, at most 1000")
        assert replicas.post("/api/traces/ingest", [{"name": "x", "status": "ok"}] * 1000).json()["accepted"] == 1000

    def test_an_idempotency_key_makes_a_batch_without_ids_count_once(self, replicas: Replicas) -> None:
        name, key = f"once-{uuid.uuid4()}", {"Idempotency-Key": str(uuid.uuid4())}
        body = [{"name": name, "status": "ok"}, {"name": name}]
        first = replicas.post("/api/traces/ingest", body, 0, key)
        assert replicas.post("/api/traces/ingest", body, 1, key).json() == first.json()
        log = replicas.read()
        assert len([span for span in log.spans if span.name == name]) == 1
        assert len([start for start in log.started if start.name == name]) == 1


class TestMessages:
    def test_a_message_is_stored_with_its_session_and_trace(self, replicas: Replicas) -> None:
        root, session = replicas.start_span()
        child, _ = replicas.start_span(parentId=root)
        body = {"sessionId": session, "traceId": child, "role": "assistant", "content": "häi", "metadata": {"n": 1}}
        answer = replicas.post("/api/traces/messages", body, 1)
        assert answer.status == 200
        shown = answer.json()
        assert {name: shown[name] for name in ("sessionId", "traceId", "role", "isRedacted")} == {
            "sessionId": session,
            "traceId": child,
            "role": "assistant",
            "isRedacted": False,
        }
        (message,) = [one for one in replicas.read().messages if one.message_id == shown["messageId"]]
        assert (message.session_id, message.span_id, message.trace_id) == (session, child, root)
        assert (message.content, message.length, message.metadata) == ("häi", 3, {"n": 1})

    def test_the_same_message_again_is_one(self, replicas: Replicas) -> None:
        mine = str(uuid.uuid4())
        body = {"sessionId": "s", "traceId": "t", "role": "user", "content": "hi", "messageId": mine}
        for replica in (0, 1):
            assert replicas.post("/api/traces/messages", body, replica).json()["messageId"] == mine
        assert len([one for one in replicas.read().messages if one.message_id == mine]) == 1
        del body["messageId"]
        ids = {replicas.post("/api/traces/messages", body).json()["messageId"] for _ in range(2)}
        assert len(ids) == 2

    def test_a_message_over_a_quarter_of_a_megabyte_is_refused(self, replicas: Replicas) -> None:
        body = {"sessionId": "s", "traceId": "t", "role": "user", "content": "ä" * 140_000}
        assert refused(replicas.post("/api/traces/messages", body), 413).startswith("content: 280000 bytes")
        assert replicas.post("/api/traces/messages", {**body, "content": "x" * 260_000}).status == 200


class TestSecrets:
    def canary(self) -> str:
        return f"c4n4ry{uuid.uuid4().hex}@example.com"

    def found(self, replicas: Replicas, text: str) -> list[str]:
        """Files of the broker and of the services that hold *text*."""
        needle = text.partition("@")[0].encode()
        return [str(path) for path in replicas.directory.rglob("*") if path.is_file() and needle in path.read_bytes()]

    def test_no_secret_of_any_route_reaches_the_disk(self, replicas: Replicas) -> None:
        texts = [self.canary() for _ in range(8)]
        span_id, session = replicas.start_span(metadata={"note": texts[0], "deep": {"password": texts[1]}})
        body = {"sessionId": session, "traceId": span_id, "role": "user", "content": f"mail {texts[2]}"}
        answer = replicas.post("/api/traces/messages", {**body, "metadata": {"from": texts[3]}})
        assert answer.json()["isRedacted"] is True
        error = {"message": f"no mail to {texts[4]}", "stack": f"at {texts[5]}"}
        replicas.end_span(span_id, 1, status="error", error=error)
        replicas.end_span(span_id, 0, metadata={"late": texts[6]})
        opened = replicas.post("/api/traces/ingest", {"name": "x", "error": f"early {texts[7]}"}).json()["traceId"]
        assert [self.found(replicas, text) for text in texts] == [[]] * len(texts)
        replicas.end_span(opened)
        log = replicas.read()
        assert log.span(opened).error == "early [EMAIL_REDACTED]"
        assert log.span(span_id).attributes == {"note": "[EMAIL_REDACTED]", "deep": {"password": "[REDACTED]"}}
        assert log.attributes(span_id)["late"] == "[EMAIL_REDACTED]"

    def test_with_redaction_off_the_same_search_finds_them(self, start: Callable[..., Replicas]) -> None:
        serving = start({"TOKENTRACE_REDACTION_MODE": "off"})
        text = self.canary()
        span_id, _ = serving.start_span(metadata={"note": text})
        serving.end_span(span_id)
        assert self.found(serving, text)


class TestAway:
    def test_without_a_broker_the_sdk_is_told_to_come_again_and_nothing_is_lost(
        self, start: Callable[..., Replicas]
    ) -> None:
        serving = start()
        span_id, _ = serving.start_span()
        serving.broker.kill()
        answer = serving.post(f"/api/traces/{span_id}/end", {"status": "ok"})
        assert refused(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert refused(serving.post("/api/traces/start", {"name": "x"}, 1), 503)
        serving.broker.start()
        for name in ("ingest-0", "ingest-1"):
            serving.wait_ready(name)
        serving.end_span(span_id, 1)
        assert serving.read().span(span_id).status == "ok"

    def test_a_configured_token_is_asked_for(self, start: Callable[..., Replicas]) -> None:
        serving = start({"TOKENTRACE_AUTH_TOKEN": "the-key"})
        assert refused(serving.post("/api/traces/start", {"name": "x"}), 401) == "missing or wrong bearer token"
        good = {"Authorization": "Bearer the-key"}
        assert serving.post("/api/traces/start", {"name": "x"}, headers=good).status == 200
        assert serving.post("/api/traces/start", {"name": "x"}, "api", good).status == 200


NUMBER, TEXT = (int, float), str
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

#: The SDK's TypeScript interfaces: what ends with ``?`` may be left out; a Date is a text in JSON.
MESSAGE: dict[str, Any] = {
    "sessionId": TEXT,
    "traceId": TEXT,
    "role": TEXT,
    "content": TEXT,
    "redactedContent?": TEXT,
    "isRedacted": bool,
    "metadata?": dict,
    "createdAt": INSTANT,
}
NODE: dict[str, Any] = {
    "id": TEXT,
    "parentId?": TEXT,
    "sessionId": TEXT,
    "name": TEXT,
    "type": TEXT,
    "status": TEXT,
    "error?": {"message": TEXT, "stack?": TEXT},
    "model?": TEXT,
    "tokens?": {"input": int, "output": int},
    "costUSD?": (int, float, type(None)),
    "tool?": TEXT,
    "resourceIds?": [TEXT],
    "metadata?": dict,
    "startedAt": INSTANT,
    "endedAt?": INSTANT,
    "duration?": NUMBER,
    "depth": int,
}
SESSION: dict[str, Any] = {
    "sessionId": TEXT,
    "userId?": TEXT,
    "label?": TEXT,
    "status": TEXT,
    "totalSpans": int,
    "totalCostUSD": NUMBER,
    "totalInputTokens": int,
    "totalOutputTokens": int,
    "startedAt": INSTANT,
    "endedAt?": INSTANT,
    "messages": [MESSAGE],
}
GRAPH = {"nodes": [NODE], "edges": [{"from": TEXT, "to": TEXT}]}
LIST = {"sessions": [SESSION], "total": int, "page": int, "pages": int}
SUMMARY = {
    "totalSessions": int,
    "activeSessions": int,
    "totalCost": NUMBER,
    "avgDuration": NUMBER,
    "errorRate": NUMBER,
}


def assert_shape(value: Any, shape: Any, where: str = "answer") -> None:
    """*value* is what TypeScript would take for *shape*; more fields than that do no harm."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if key in value and not (name.endswith("?") and value[key] is None):
                assert_shape(value[key], inner, f"{where}.{key}")
            else:
                assert name.endswith("?"), f"{where}.{key} is missing"
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            assert_shape(item, shape[0], f"{where}[{index}]")
    elif isinstance(shape, re.Pattern):
        assert isinstance(value, str), where
        assert shape.fullmatch(value), (where, value)
    else:
        assert isinstance(value, shape), (where, value)
        assert shape is bool or not isinstance(value, bool), where


@pytest.fixture(scope="module")
def client(replicas: Replicas) -> Iterator[TraceClient]:
    with TraceClient("any", "shop", replicas.url("api")) as client:
        yield client


@pytest.fixture(scope="module")
def told(replicas: Replicas, client: TraceClient) -> tuple[str, dict[str, str]]:
    """(session id, span ids by name) of a conversation of four spans that the api has read."""
    label = f"support {uuid.uuid4()}"
    root, session = replicas.start_span(0, name="root", type="agent", metadata={"label": label, "userId": "u-42"})
    ids = {"root": root}
    for replica, name, kind, parent in (
        (1, "call", "llm", "root"),
        (0, "look", "tool", "call"),
        (1, "wait", "custom", "absent"),
    ):
        parent_id = ids.get(parent, "no-such-span")
        ids[name] = replicas.start_span(replica, name=name, type=kind, parentId=parent_id, sessionId=session)[0]
    error = {"message": "gone", "stack": "at look"}
    replicas.end_span(ids["look"], 1, status="error", error=error, tool="search", resourceIds=["a", "b"])
    tokens = {"input": 512, "output": 128}
    replicas.end_span(ids["call"], 0, model="gpt-4o", tokens=tokens, costUSD=0.5, metadata={"step": 1})
    replicas.end_span(root, 1)
    replicas.end_span(root, 0, metadata={"statusCode": 200})
    for role, content in (("user", "mail me: a@example.com"), ("assistant", "done")):
        body = {"sessionId": session, "traceId": ids["call"], "role": role, "content": content}
        assert replicas.post("/api/traces/messages", body, 1).status == 200
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(Rejected):
            nodes = client.session_graph(session)["nodes"]
            merged = any(node["metadata"].get("statusCode") for node in nodes)
            if len(nodes) == 4 and merged and len(client.session_details(session)["messages"]) == 2:
                return session, ids
        time.sleep(0.1)
    raise AssertionError(client.session_graph(session))


class TestShapes:
    """What the SDK reads of a conversation that was told to two replicas."""

    def test_the_graph(self, client: TraceClient, told: tuple[str, dict[str, str]]) -> None:
        session, ids = told
        graph = client.session_graph(session)
        assert_shape(graph, GRAPH)
        nodes = {node["name"]: node for node in graph["nodes"]}
        assert {name: node["id"] for name, node in nodes.items()} == ids
        assert {name: node["depth"] for name, node in nodes.items()} == {"root": 0, "call": 1, "look": 2, "wait": 0}
        assert sorted((edge["from"], edge["to"]) for edge in graph["edges"]) == sorted(
            [(ids["root"], ids["call"]), (ids["call"], ids["look"]), ("no-such-span", ids["wait"])]
        )
        assert {name: node["status"] for name, node in nodes.items()} == {
            "root": "ok",
            "call": "ok",
            "look": "error",
            "wait": "pending",
        }
        assert nodes["look"]["error"] == {"message": "gone", "stack": "at look"}
        assert (nodes["look"]["tool"], nodes["look"]["resourceIds"]) == ("search", ["a", "b"])
        call = nodes["call"]
        assert (call["model"], call["tokens"], call["costUSD"]) == ("gpt-4o", {"input": 512, "output": 128}, 0.5)
        assert call["metadata"] == {"step": 1}
        assert nodes["root"]["metadata"]["statusCode"] == 200
        assert nodes["root"]["metadata"]["userId"] == "u-42"

    def test_the_details(self, client: TraceClient, told: tuple[str, dict[str, str]]) -> None:
        session, ids = told
        details = client.session_details(session)
        assert_shape(details, SESSION)
        assert (details["sessionId"], details["userId"], details["status"]) == (session, "u-42", "error")
        assert details["label"].startswith("support ")
        assert details["totalSpans"] == 4
        assert (details["totalInputTokens"], details["totalOutputTokens"]) == (512, 128)
        assert details["totalCostUSD"] == 0.5
        assert [(one["role"], one["content"], one["isRedacted"]) for one in details["messages"]] == [
            ("user", "mail me: [EMAIL_REDACTED]", True),
            ("assistant", "done", False),
        ]
        assert {one["traceId"] for one in details["messages"]} == {ids["call"]}

    def test_the_list_and_its_filters(self, client: TraceClient, told: tuple[str, dict[str, str]]) -> None:
        session, _ = told
        details = client.session_details(session)
        listed = client.list_sessions(label=details["label"], user_id="u-42")
        assert_shape(listed, LIST)
        assert (listed["total"], listed["page"], listed["pages"]) == (1, 1, 1)
        assert [one["sessionId"] for one in listed["sessions"]] == [session]
        assert listed["sessions"][0]["messages"] == details["messages"]
        assert client.list_sessions(label=details["label"], user_id="u-43")["total"] == 0
        started = details["startedAt"]
        for since, until, total in ((started, None, 1), (None, "2020-01-01T00:00:00Z", 0)):
            found = client.list_sessions(label=details["label"], since=since, until=until)
            assert found["total"] == total
        assert client.list_sessions(limit=1, page=2)["page"] == 2

    def test_the_summary(self, client: TraceClient, told: tuple[str, dict[str, str]]) -> None:
        summary = client.sessions_summary()
        assert_shape(summary, SUMMARY)
        assert summary["totalSessions"] >= 1
        assert 0 < summary["errorRate"] <= 1
        assert client.sessions_summary(until="2020-01-01T00:00:00Z")["totalSessions"] == 0

    def test_an_unknown_session_is_not_found(self, replicas: Replicas, client: TraceClient) -> None:
        for what in ("graph", "details"):
            answer = http("GET", f"{replicas.url('api')}/api/sessions/of-none/{what}", None, KEY)
            assert refused(answer, 404) == "Session of-none not found"
        with pytest.raises(Rejected, match=r"^Trace API error: Session of-none not found$") as caught:
            client.session_details("of-none")
        assert caught.value.status == 404


def test_a_session_of_five_thousand_spans_in_twelve_levels_is_shown_as_it_was_told(
    replicas: Replicas, client: TraceClient
) -> None:
    rng = random.Random(12)
    session = f"long-{uuid.uuid4()}"
    level: dict[str, int] = {}
    parent: dict[str, str | None] = {}
    by_level: list[list[str]] = [[] for _ in range(12)]
    for number in range(5000):
        depth = number if number < 12 else rng.randrange(1, 12)
        span_id = f"{session}-{number}"
        level[span_id], parent[span_id] = depth, rng.choice(by_level[depth - 1]) if depth else None
        by_level[depth].append(span_id)
    told: dict[str, dict[str, Any]] = {
        span_id: {
            "traceId": span_id,
            "parentId": parent[span_id],
            "sessionId": session,
            "name": f"step {number % 7}",
            "type": rng.choice(["llm", "tool", "retrieval", "custom"]),
            "status": "error" if number % 500 == 499 else "ok",
            "tokens": {"input": rng.randrange(1000), "output": rng.randrange(1000)},
            "costUSD": rng.randrange(1, 10**6) / 10**6,
            "metadata": {"number": number},
        }
        for number, span_id in enumerate(level)
    }
    starting = [told[span_id] for ids in by_level for span_id in rng.sample(ids, len(ids))]
    starts = [{key: span[key] for key in ("traceId", "parentId", "sessionId", "name", "type")} for span in starting]
    ending = rng.sample(starting, len(starting))
    for at in range(0, 5000, 1000):
        assert replicas.post("/api/traces/ingest", starts[at : at + 1000], 0).status == 200
    for at in range(0, 4900, 700):
        assert replicas.post("/api/traces/ingest", {"spans": ending[at : at + 700]}, 1).status == 200
    for span in ending[4900:]:
        end = {key: span[key] for key in ("status", "tokens", "costUSD", "metadata")}
        replicas.end_span(span["traceId"], rng.randrange(2), **end)

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        graph = client.session_graph(session)
        if len(graph["nodes"]) == 5000 and all(node["status"] != "pending" for node in graph["nodes"]):
            break
        time.sleep(0.3)
    assert_shape(graph, GRAPH)
    assert {node["id"]: node["depth"] for node in graph["nodes"]} == level
    assert {(edge["from"], edge["to"]) for edge in graph["edges"]} == {(up, one) for one, up in parent.items() if up}
    for node in graph["nodes"]:
        expected = told[node["id"]]
        assert {key: node[key] for key in ("name", "type", "status", "tokens", "costUSD", "metadata")} == {
            key: expected[key] for key in ("name", "type", "status", "tokens", "costUSD", "metadata")
        }
    details = client.session_details(session)
    assert details["totalSpans"] == 5000
    assert details["totalInputTokens"] == sum(span["tokens"]["input"] for span in told.values())
    assert details["totalOutputTokens"] == sum(span["tokens"]["output"] for span in told.values())
    assert round(details["totalCostUSD"] * 10**6) == sum(round(span["costUSD"] * 10**6) for span in told.values())
    assert details["status"] == "error"
    trace = http("GET", f"{replicas.url('api')}/traces/{session}-0").json()
    assert trace["span_count"] == 5000
    rows = http("GET", f"{replicas.url('api')}/traces/{session}-0/timeline").json()["rows"]
    assert {row["span_id"]: (row["depth"], row["name"]) for row in rows} == {
        span_id: (depth, told[span_id]["name"]) for span_id, depth in level.items()
    }
    begin = min(node["startedAt"] for node in graph["nodes"])
    first = {row["span_id"] for row in rows if row["start_ms"] == 0}
    assert first
    assert {node["startedAt"] for node in graph["nodes"] if node["id"] in first} == {begin}


class TestTraceClient:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"api_key": "", "project_id": "p"}, "api_key"),
            ({"api_key": "k", "project_id": ""}, "project_id"),
            ({"api_key": "k", "project_id": "p", "api_url": "ftp://x"}, "api_url"),
        ],
    )
    def test_what_is_missing_is_an_error_at_once(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TraceClient(**fields)

    def test_the_life_of_a_conversation(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url("api"), headers={"X-Service-Name": "py"}) as client:
            root = client.start_span("answer", "agent", metadata={"label": "support"})
            child = client.start_span("call", "llm", parent_id=root.trace_id)
            client.record_message(root.session_id, child.trace_id, "user", "hi", {"n": 1})
            client.end_span(child.trace_id, model="gpt-4o", input_tokens=5, output_tokens=6, cost_usd=0.25)
            try:
                raise KeyError("gone")
            except KeyError as exc:
                client.end_span(root.trace_id, "error", error=exc, tool="t", resource_ids=["r"], metadata={"x": client})
            client.ingest_batch([{"name": "old", "status": "ok", "sessionId": root.session_id}])
            assert client.failures == 0
        assert child.session_id == root.session_id
        log = replicas.read()
        call, answer = log.span(child.trace_id), log.span(root.trace_id)
        assert (call.trace_id, call.model, call.cost_nusd, call.caller) == (root.trace_id, "gpt-4o", 250_000_000, "py")
        assert (call.prompt_tokens, call.completion_tokens) == (5, 6)
        assert (answer.kind, answer.status, answer.error) == ("agent", "error", "'gone'")
        assert "KeyError: 'gone'" in answer.error_stack
        assert (answer.attributes["tool"], answer.attributes["resource_ids"]) == ("t", ["r"])
        assert [one.content for one in log.messages if one.span_id == child.trace_id] == ["hi"]
        assert {span.name for span in log.spans if span.session_id == root.session_id} == {"answer", "call", "old"}

    def test_threads_may_share_it(self, replicas: Replicas) -> None:
        def live(client: TraceClient, number: int) -> str:
            started = client.start_span(f"t{number}")
            client.end_span(started.trace_id, metadata={"n": number})
            return started.trace_id

        with TraceClient("any", "shop", replicas.url()) as client, ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda number: live(client, number), range(80)))
        assert client.failures == 0
        log = replicas.read()
        assert [log.span(span_id).attributes["n"] for span_id in ids] == list(range(80))

    def test_a_connection_that_the_service_closed_meanwhile_is_no_failure(self, start: Callable[..., Replicas]) -> None:
        serving = start()
        client = TraceClient("any", "shop", serving.url())
        first = client.start_span("x")
        serving.kill("ingest-0")
        serving.start_one("ingest-0")
        client.end_span(first.trace_id)
        assert client.failures == 0
        assert serving.read().span(first.trace_id).status == "ok"
        client.close()

    def test_a_service_that_is_away_ends_no_program(self) -> None:
        client = TraceClient("any", "shop", f"http://127.0.0.1:{free_port()}")
        first, second = client.start_span("x"), client.start_span("y", session_id="mine")
        assert UUID4.fullmatch(first.trace_id)
        assert UUID4.fullmatch(first.session_id)
        assert first.trace_id != second.trace_id
        assert second.session_id == "mine"
        child = client.start_span("z", parent_id=first.trace_id)
        assert UUID4.fullmatch(child.session_id)
        client.end_span(first.trace_id, error=ValueError())
        client.record_message("mine", second.trace_id, "user", "hi")
        client.ingest_batch([{"name": "x"}])
        assert client.failures == 6
        reads: list[Callable[[], object]] = [client.sessions_summary, client.list_sessions]
        reads += [lambda: client.session_graph("s")]
        for read in reads:
            with pytest.raises(Unavailable, match=r"^Trace API error: "):
                read()

    def test_what_json_cannot_carry_ends_no_program(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url()) as client:
            started = client.start_span("x", metadata={"bad": "\ud800"})
            assert UUID4.fullmatch(started.trace_id)
            round_and_round: dict[str, Any] = {}
            round_and_round["self"] = round_and_round
            client.end_span(started.trace_id, metadata=round_and_round)
            assert client.failures == 2

    def test_a_refusal_says_what_the_service_says(self, replicas: Replicas, caplog: pytest.LogCaptureFixture) -> None:
        with TraceClient("any", "shop", replicas.url()) as client:
            client.start_span("x", "oracle")
            assert client.failures == 1
            assert "Trace API error: type: " in caplog.text
            client.end_span("absent/has?this")
            assert "Trace API error: Trace absent/has?this not found" in caplog.text
            with pytest.raises(Rejected, match=r"^Trace API error: ") as caught:
                client.session_details("of none")
            assert caught.value.status == 404

    def test_silence_is_a_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            client = TraceClient("any", "shop", url, timeout_ms=100)
            with pytest.raises(Unavailable, match=r"^Trace API request timeout$"):
                client.list_sessions(user_id="u", page=2)
            assert UUID4.fullmatch(client.start_span("x").trace_id)
            assert client.failures == 1
            client.close()
