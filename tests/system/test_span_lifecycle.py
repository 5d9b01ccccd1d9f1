"""A span that is started at one ingest and ended at another is stored once, whatever is repeated or killed."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.json_spans import fresh
from kit.pipeline import http
from kit.replicas import HEADERS, UUID4, Replicas
from kit.sessions import refused
from tokentrace.dialect.costkatana import decode_end, end_of
from tokentrace.records import Batch
from tokentrace_ingest.open_spans import OpenSpan


class TestStartAndEnd:
    def test_a_span_started_on_one_replica_is_ended_on_another(self, replicas: Replicas) -> None:
        before = time.time_ns()
        span_id, session_id = replicas.start_span(
            0, name="answer", type="llm", metadata={"userId": "u-1", "provider": "openai", "step": 1}
        )
        assert UUID4.fullmatch(span_id)
        assert UUID4.fullmatch(session_id)
        # A time to first token that is longer than the span would be left out.
        time.sleep(0.02)
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

    def test_children_inherit_trace_and_session_at_any_replica(self, replicas: Replicas) -> None:
        root, session = replicas.start_span(0)
        child, child_session = replicas.start_span(1, parentId=root)
        replicas.end_span(root, 1)
        replicas.end_span(child, 0)
        grandchild, grandchild_session = replicas.start_span(0, parentId=child)
        other, other_session = replicas.start_span(1, parentId=child, sessionId="another")
        assert (child_session, grandchild_session, other_session) == (session, session, "another")
        log = replicas.read()
        assert {log.start(span_id).trace_id for span_id in (root, child, grandchild, other)} == {root}
        assert log.span(child).parent_span_id == root
        orphan, _ = replicas.start_span(parentId="no-such-span")
        assert replicas.read().start(orphan).trace_id == "no-such-span"

    def test_headers_name_the_caller_and_the_session(self, replicas: Replicas) -> None:
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

    def test_the_api_forwards_requests_to_an_ingest(self, replicas: Replicas) -> None:
        answer = replicas.post(
            "/api/traces/start", {"name": "x", "traceId": "an/odd id"}, "api", headers={"X-Service-Name": "web"}
        )
        assert answer.status == 200
        assert answer.headers["x-trace-id"] == "an/odd id"
        replicas.end_span("an%2Fodd%20id", "api", metadata={"a": 1})
        span = replicas.read().span("an/odd id")
        assert (span.caller, span.attributes) == ("web", {"a": 1})
        assert refused(replicas.post("/api/traces/absent/end", {}, "api"), 404) == "Trace absent not found"

    @pytest.mark.parametrize("replica", [0, "api"])
    def test_headers_and_paths_may_hold_any_text(self, replicas: Replicas, replica: int | str) -> None:
        headers = {"X-Service-Name": "café "}
        span_id = replicas.post("/api/traces/start", {"name": "x"}, replica, headers).json()["traceId"]
        assert replicas.read().start(span_id).caller == "café"
        answer = replicas.post("/api/traces/start", {"name": "x"}, replica, {"X-Session-Id": "ü"})
        assert refused(answer, 400).startswith("X-Session-Id: ")
        assert "not found" in refused(replicas.post("/api/traces/%C3%BC%0A%22/end?a=b", {}, replica), 404)
        assert replicas.post("/api/traces//end", {}, replica).status == 404
        assert b"message" in replicas.post("/api/traces/nothing", {}, replica).body

    def test_the_end_of_an_unknown_span_is_a_404(self, replicas: Replicas) -> None:
        unknown = str(uuid.uuid4())
        answer = replicas.post(f"/api/traces/{unknown}/end", {"status": "ok"})
        assert refused(answer, 404) == f"Trace {unknown} not found"

    def test_an_invalid_request_names_the_field_and_writes_nothing(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        before = len(replicas.batches())
        assert refused(replicas.post("/api/traces/start", {"name": "x", "type": "oracle"}), 400).startswith("type: ")
        assert "name" in refused(replicas.post("/api/traces/start", {}), 400)
        assert refused(replicas.post("/api/traces/start", b"{"), 400)
        assert refused(replicas.post(f"/api/traces/{span_id}/end", {"status": "pending"}), 400).startswith("status: ")
        assert refused(replicas.post(f"/api/traces/{span_id}/end", {"endedAt": "soon"}), 400).startswith("endedAt: ")
        batch = [{"name": "x", "status": "ok"}, {"name": "y", "type": "oracle"}]
        assert refused(replicas.post("/api/traces/ingest", batch), 400).startswith("span 1: type: ")
        role = {"sessionId": "s", "traceId": "t", "role": "boss", "content": ""}
        assert refused(replicas.post("/api/traces/messages", role), 400).startswith("role: ")
        assert refused(http("GET", replicas.url_of() + "/api/traces/start", None, HEADERS), 405) == "method not allowed"
        assert len(replicas.batches()) == before
        replicas.end_span(span_id)


class TestRepeatedStart:
    def test_the_same_start_sent_twice_is_one_start(self, replicas: Replicas) -> None:
        span_id = str(uuid.uuid4())
        first = replicas.post("/api/traces/start", {"name": "x", "traceId": span_id}, 0)
        second = replicas.post("/api/traces/start", {"name": "x", "traceId": span_id}, 1)
        assert first.status == second.status == 200
        assert first.json() == second.json()
        assert replicas.read().start(span_id).session_id == first.json()["sessionId"]

    def test_the_id_of_another_span_is_a_409(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(name="first")
        answer = replicas.post("/api/traces/start", {"name": "second", "traceId": span_id})
        assert refused(answer, 409).startswith("traceId: ")
        assert replicas.read().start(span_id).name == "first"

    def test_the_same_idempotency_key_gives_the_same_ids(self, replicas: Replicas) -> None:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        first = replicas.post("/api/traces/start", {"name": "x"}, 0, key)
        assert replicas.post("/api/traces/start", {"name": "x"}, 1, key).json() == first.json()
        replicas.read().start(first.json()["traceId"])
        assert refused(replicas.post("/api/traces/start", {"name": "y"}, 1, key), 422).startswith("Idempotency-Key: ")


class TestRepeatedEnd:
    def test_the_first_end_counts_and_later_ones_merge_their_metadata(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(metadata={"a": 0})
        replicas.end_span(span_id, 0, tokens={"input": 5, "output": 7}, metadata={"a": 1, "b": [1]})
        replicas.end_span(span_id, 1, status="error", error="late", model="m", metadata={"b": [2], "c": 3})
        replicas.end_span(span_id, 0, metadata={"a": 9})
        log = replicas.read()
        span = log.span(span_id)
        assert (span.status, span.error, span.model, span.prompt_tokens) == ("ok", "", "", 5)
        assert span.attributes == {"a": 1, "b": [1]}
        later = [added.attributes for added in log.annotations if added.span_id == span_id]
        assert later == [{"b": [2], "c": 3}, {"a": 9}]
        assert log.attributes(span_id) == {"a": 9, "b": [2], "c": 3}

    def test_the_same_end_sent_again_changes_nothing(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        for replica in (0, 1, 0):
            replicas.end_span(span_id, replica, metadata={"statusCode": 200})
        ids = [batch.id for batch in replicas.batches_of(span_id)]
        assert ids == [f"costkatana.{span_id}.start", f"costkatana.{span_id}.end"]

    def test_a_number_and_a_boolean_are_different_values(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        for value in (1, True, 1.0):
            replicas.end_span(span_id, metadata={"a": value})
        assert isinstance(replicas.read().attributes(span_id)["a"], float)

    def test_metadata_over_the_limit_is_refused_at_a_later_end(self, replicas: Replicas) -> None:
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
    def test_the_metadata_of_several_ends_merges_as_a_dictionary(
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

    def test_concurrent_ends_make_one_span_and_lose_no_metadata(self, replicas: Replicas) -> None:
        ids = [replicas.start_span()[0] for _ in range(15)]
        racing = [(span_id, racer) for racer in range(6) for span_id in ids]

        def end(case: tuple[str, int]) -> None:
            span_id, racer = case
            metadata = {f"from-{racer}": racer, "winner": racer}
            replicas.end_span(span_id, racer % 2, tokens={"input": racer + 1, "output": 0}, metadata=metadata)

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(end, racing))
        log, open_spans = replicas.read(), replicas.open_spans()
        for span_id in ids:
            span = log.span(span_id)
            winner = span.attributes["winner"]
            assert span.attributes == {f"from-{winner}": winner, "winner": winner}
            assert span.prompt_tokens == winner + 1
            merged = log.attributes(span_id)
            assert {key: value for key, value in merged.items() if key != "winner"} == {
                f"from-{racer}": racer for racer in range(6)
            }
            assert open_spans[span_id].attributes == merged
            assert (open_spans[span_id].journal, open_spans[span_id].merges) == ([], 5)


END: dict[str, Any] = {"status": "ok", "tokens": {"input": 3, "output": 4}, "metadata": {"a": 1}}


def published(replicas: Replicas, batch_id: str) -> list[Batch]:
    """Return the batches with *batch_id* in the log, as they were before ingest placed them."""
    return [
        msgspec.structs.replace(batch, layout=0, identities=b"") for batch in replicas.batches() if batch.id == batch_id
    ]


class TestKills:
    def decided(self, opened: OpenSpan) -> OpenSpan:
        """Return the entry that an ingest leaves if it is killed between deciding an end and publishing it."""
        now = opened.started.arrived_ns + 1_000_000
        span = end_of(opened.started, decode_end(json.dumps(END).encode()), now)
        final = msgspec.structs.replace(span, arrived_ns=now, cost_source="unpriced", unpriced_reason="no model")
        batch = Batch(id=f"costkatana.{span.span_id}.end", arrived_ns=now, spans=[final])
        return msgspec.structs.replace(opened, attributes=final.attributes, journal=[batch])

    def test_an_end_that_was_decided_and_not_published_is_published_by_a_retry(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.rewrite(span_id, self.decided)
        decided = replicas.open_spans()[span_id].journal[0]
        assert not replicas.read().is_ended(span_id)
        replicas.end_span(span_id, 1, **END)
        assert published(replicas, decided.id) == [decided]
        replicas.end_span(span_id, 1, **END)
        assert published(replicas, decided.id) == [decided]

    def test_a_different_end_publishes_the_decided_one_and_then_its_own_metadata(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.rewrite(span_id, self.decided)
        replicas.end_span(span_id, 1, status="error", metadata={"b": 2})
        log = replicas.read()
        assert (log.span(span_id).status, log.attributes(span_id)) == ("ok", {"a": 1, "b": 2})
        ids = [batch.id for batch in replicas.batches_of(span_id)]
        assert ids == [f"costkatana.{span_id}.{part}" for part in ("start", "end", "merge.1")]

    def test_a_published_end_whose_note_is_missing_is_published_again_unchanged(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span(0)
        replicas.end_span(span_id, 0, **END)
        replicas.end_span(span_id, 0, metadata={"b": 2})
        published = replicas.batches_of(span_id)[1:]
        replicas.rewrite(span_id, lambda opened: msgspec.structs.replace(opened, journal=published))
        replicas.end_span(span_id, 1, metadata={"b": 2})
        batches = replicas.batches_of(span_id)
        assert len(batches) == 5
        assert batches[1:3] == batches[3:5]
        assert replicas.read().attributes(span_id) == {"a": 1, "b": 2}

    def test_repeated_kills_of_ingest_neither_lose_nor_repeat_a_span(self, replicas: Replicas) -> None:
        expected: dict[str, tuple[str, int]] = {}
        session, done = fresh("kills"), threading.Event()

        def insist(path: str, body: Any, dice: random.Random) -> None:
            """Post to either ingest until one answers, as a client behind a load balancer does."""
            while True:
                with contextlib.suppress(OSError, HTTPException):
                    answer = replicas.post(path, body, dice.randrange(2))
                    if answer.status < 500:
                        assert answer.status == 200, answer.body
                        return
                time.sleep(0.02)

        def work(worker: int) -> None:
            dice = random.Random(worker)
            for number in range(25):
                span_id, status = f"{session}-{worker}-{number}", dice.choice(["ok", "error"])
                insist("/api/traces/start", {"name": "x", "traceId": span_id, "sessionId": session}, dice)
                end = {"status": status, "tokens": {"input": number, "output": worker}, "metadata": {"n": number}}
                insist(f"/api/traces/{span_id}/end", end, dice)
                expected[span_id] = (status, number)

        def kill() -> None:
            dice = random.Random(7)
            while not done.wait(dice.uniform(0.3, 0.9)):
                replicas.restart(f"ingest-{dice.randrange(2)}")

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(work, range(6)))
        finally:
            done.set()
            killer.join()
        log = replicas.read()
        spans = [span for span in log.spans if span.span_id.startswith(session)]
        assert len(expected) == 150
        assert sorted(span.span_id for span in spans) == sorted(expected)
        starts = [started.span_id for started in log.started if started.span_id.startswith(session)]
        assert sorted(starts) == sorted(expected)
        assert not [annotation for annotation in log.annotations if annotation.span_id.startswith(session)]
        for span in spans:
            assert (span.status, span.prompt_tokens) == expected[span.span_id]
            assert span.attributes == {"n": span.prompt_tokens}

    def test_without_a_broker_a_request_is_a_503_and_a_retry_loses_nothing(self, replicas: Replicas) -> None:
        span_id, _ = replicas.start_span()
        replicas.broker.kill()
        answer = replicas.post(f"/api/traces/{span_id}/end", {"status": "ok"})
        assert refused(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert refused(replicas.post("/api/traces/start", {"name": "x"}, 1), 503)
        replicas.broker.start()
        for name in replicas.ports:
            replicas.await_ready(name)
        replicas.end_span(span_id, 1)
        assert replicas.read().span(span_id).status == "ok"
