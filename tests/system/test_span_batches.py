"""Batches of spans and messages are stored once and without secrets, whichever ingest receives them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

import pytest

from kit.replicas import Replicas
from kit.sessions import refused

TOKEN = {"Authorization": "Bearer the-key"}


@pytest.fixture(scope="module")
def open_replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """An ingest and an api that redact nothing and need a token."""
    env = {"TOKENTRACE_REDACTION_MODE": "off", "TOKENTRACE_AUTH_TOKEN": "the-key"}
    serving = Replicas(tmp_path_factory.mktemp("open"), env, names=("ingest-0", "api"))
    serving.start()
    yield serving
    serving.stop()


class TestBatches:
    @pytest.mark.parametrize("form", ["object", "array", "span"])
    def test_each_form_of_body_is_accepted(self, replicas: Replicas, form: str) -> None:
        span = {
            "name": "x",
            "traceId": str(uuid.uuid4()),
            "sessionId": "batch",
            "status": "error",
            "error": {"message": "boom", "stack": "at x"},
            "startedAt": "2026-03-15T14:23:01.441Z",
            "endedAt": "2026-03-15T14:23:02.681Z",
        }
        body = {"object": {"spans": [span]}, "array": [span], "span": span}[form]
        for replica in (0, 1):
            answer = replicas.post("/api/traces/ingest", body, replica)
            assert answer.status == 200
            assert answer.json() == {"accepted": 1, "traceId": span["traceId"], "sessionId": "batch"}
        stored = replicas.read().span(str(span["traceId"]))
        assert (stored.status, stored.error, stored.error_stack) == ("error", "boom", "at x")
        assert (stored.latency_ns, stored.started_ns) == (1_240_000_000, 1_773_584_581_441_000_000)

    def test_an_empty_batch_is_accepted(self, replicas: Replicas) -> None:
        assert replicas.post("/api/traces/ingest", {"spans": []}).json() == {"accepted": 0}

    def test_parents_may_follow_their_children(self, replicas: Replicas) -> None:
        ids = [str(uuid.uuid4()) for _ in range(12)]
        known, session = replicas.start_span()
        spans = [
            {"name": "x", "traceId": ids[n], "parentId": ids[n - 1] if n else known, "status": "ok"} for n in range(12)
        ]
        random.Random(3).shuffle(spans)
        assert replicas.post("/api/traces/ingest", {"spans": spans}, 1).json()["accepted"] == 12
        log = replicas.read()
        stored = [log.span(span_id) for span_id in ids]
        assert {span.trace_id for span in stored} == {known}
        assert {span.session_id for span in stored} == {session}

    def test_a_span_that_has_not_ended_stays_open(self, replicas: Replicas) -> None:
        body = {"name": "x", "aiModel": "gpt-4o", "tokens": {"input": 5, "output": 6}, "costUSD": 0.25}
        span_id = replicas.post("/api/traces/ingest", body).json()["traceId"]
        log = replicas.read()
        assert log.start(span_id).name == "x"
        assert not log.is_ended(span_id)
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

    def test_1000_spans_are_accepted_and_1001_are_a_413(self, replicas: Replicas) -> None:
        answer = replicas.post("/api/traces/ingest", [{"name": "x", "status": "ok"}] * 1001)
        assert refused(answer, 413).startswith("batch: 1001 spans, at most 1000")
        assert replicas.post("/api/traces/ingest", [{"name": "x", "status": "ok"}] * 1000).json()["accepted"] == 1000

    def test_a_batch_without_ids_counts_once_with_an_idempotency_key(self, replicas: Replicas) -> None:
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
        (message,) = [message for message in replicas.read().messages if message.message_id == shown["messageId"]]
        assert (message.session_id, message.span_id, message.trace_id) == (session, child, root)
        assert (message.content, message.length, message.metadata) == ("häi", 3, {"n": 1})

    def test_the_same_message_sent_twice_is_stored_once(self, replicas: Replicas) -> None:
        message_id = str(uuid.uuid4())
        body = {"sessionId": "s", "traceId": "t", "role": "user", "content": "hi", "messageId": message_id}
        for replica in (0, 1):
            assert replicas.post("/api/traces/messages", body, replica).json()["messageId"] == message_id
        assert len([message for message in replicas.read().messages if message.message_id == message_id]) == 1
        del body["messageId"]
        ids = {replicas.post("/api/traces/messages", body).json()["messageId"] for _ in range(2)}
        assert len(ids) == 2

    def test_a_message_over_a_quarter_of_a_megabyte_is_a_413(self, replicas: Replicas) -> None:
        body = {"sessionId": "s", "traceId": "t", "role": "user", "content": "ä" * 140_000}
        assert refused(replicas.post("/api/traces/messages", body), 413).startswith("content: 280000 bytes")
        assert replicas.post("/api/traces/messages", {**body, "content": "x" * 260_000}).status == 200


class TestSecrets:
    def address(self) -> str:
        """Return a new e-mail address."""
        return f"c4n4ry{uuid.uuid4().hex}@example.com"

    def files_with(self, replicas: Replicas, text: str) -> list[str]:
        """Return the files of the broker and of the services that hold the name in an address."""
        needle = text.partition("@")[0].encode()
        return [str(path) for path in replicas.directory.rglob("*") if path.is_file() and needle in path.read_bytes()]

    def test_no_secret_sent_to_any_route_is_written_to_disk(self, replicas: Replicas) -> None:
        texts = [self.address() for _ in range(8)]
        span_id, session = replicas.start_span(metadata={"note": texts[0], "deep": {"password": texts[1]}})
        body = {"sessionId": session, "traceId": span_id, "role": "user", "content": f"mail {texts[2]}"}
        answer = replicas.post("/api/traces/messages", {**body, "metadata": {"from": texts[3]}})
        assert answer.json()["isRedacted"] is True
        error = {"message": f"no mail to {texts[4]}", "stack": f"at {texts[5]}"}
        replicas.end_span(span_id, 1, status="error", error=error)
        replicas.end_span(span_id, 0, metadata={"late": texts[6]})
        opened = replicas.post("/api/traces/ingest", {"name": "x", "error": f"early {texts[7]}"}).json()["traceId"]
        assert [self.files_with(replicas, text) for text in texts] == [[]] * len(texts)
        replicas.end_span(opened)
        log = replicas.read()
        assert log.span(opened).error == "early [EMAIL_REDACTED]"
        assert log.span(span_id).attributes == {"note": "[EMAIL_REDACTED]", "deep": {"password": "[REDACTED]"}}
        assert log.attributes(span_id)["late"] == "[EMAIL_REDACTED]"

    def test_the_search_for_secrets_finds_them_if_redaction_is_off(self, open_replicas: Replicas) -> None:
        text = self.address()
        body = {"name": "x", "metadata": {"note": text}}
        started = open_replicas.post("/api/traces/start", body, headers=TOKEN).json()
        path = f"/api/traces/{started['traceId']}/end"
        assert open_replicas.post(path, {"status": "ok"}, headers=TOKEN).status == 200
        assert self.files_with(open_replicas, text)


def test_a_configured_token_is_needed(open_replicas: Replicas) -> None:
    answer = open_replicas.post("/api/traces/start", {"name": "x"})
    assert refused(answer, 401) == "missing or wrong bearer token"
    assert open_replicas.post("/api/traces/start", {"name": "x"}, headers=TOKEN).status == 200
    assert open_replicas.post("/api/traces/start", {"name": "x"}, "api", TOKEN).status == 200
