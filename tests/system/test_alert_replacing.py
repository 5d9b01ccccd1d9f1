"""Over HTTP: a rule is replaced, a silence is lifted, and a rule leaves the file while it fires."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kit.pipeline import Answer, Pipeline, http
from kit.receiver import CALL, Receiver, make_rule, path_of

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as opened:
        yield opened


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("served"))
    write(serving, make_rule("of the file", hook(receiver, "file"), eval_interval="1s"))
    serving.start()
    assert serving.post("/spans", [CALL]).status == 202
    yield serving
    serving.stop()


def write(pipeline: Pipeline, *rules: dict[str, Any]) -> None:
    """Write *rules* into the configuration file."""
    (pipeline.directory / "tokentrace.yml").write_text(json.dumps({"alerts": rules}))


def hook(receiver: Receiver, path: str) -> dict[str, Any]:
    return {"type": "http", "url": f"{receiver.url}/{path}", "send_resolved": True}


def put(pipeline: Pipeline, name: str, **rule: Any) -> Answer:
    body = json.dumps({**make_rule(name, eval_interval="1s"), **rule}).encode()
    return http("PUT", f"{pipeline.url}{path_of(name)}", body, JSON)


def told(receiver: Receiver, path: str) -> list[tuple[str, str | None]]:
    """Return (status, what ended the episode) of each request to *path*."""
    events = [sent.json() for sent in receiver.sent if sent.path == f"/{path}"]
    return [(event["status"], event.get("ended_by")) for event in events]


def test_put_creates_a_rule_replaces_it_and_ends_its_episode(pipeline: Pipeline, receiver: Receiver) -> None:
    created = put(pipeline, "mine", delivery=hook(receiver, "first"))
    assert created.status == 201
    pipeline.until(lambda: told(receiver, "first") == [("firing", None)], "fired")
    replaced = put(pipeline, "mine", delivery=hook(receiver, "second"), threshold=0.5)
    assert (replaced.status, replaced.json()) == (200, created.json())
    pipeline.until(lambda: told(receiver, "first") == [("firing", None), ("resolved", "replaced")], "ended")
    pipeline.until(lambda: told(receiver, "second") == [("firing", None)], "fired anew")
    status = pipeline.get("/alerts/mine/status").json()
    assert (status["rule_id"], status["threshold"], status["source"]) == (created.json()["rule_id"], 0.5, "created")
    assert http("DELETE", f"{pipeline.url}/alerts/mine").status == 204
    pipeline.until(lambda: told(receiver, "second") == [("firing", None), ("resolved", "deleted")], "deleted")


def test_a_rule_of_the_file_is_not_replaced(pipeline: Pipeline) -> None:
    answer = put(pipeline, "of the file")
    assert (answer.status, "change it there" in answer.json()["error"]) == (409, True)


def test_a_lifted_silence_lets_the_rule_fire(pipeline: Pipeline, receiver: Receiver) -> None:
    assert put(pipeline, "hushed", delivery=hook(receiver, "hushed"), threshold=1e6).status == 201
    assert pipeline.post("/alerts/hushed/silence", {"duration": "366d"}).status == 200
    assert put(pipeline, "hushed", delivery=hook(receiver, "hushed")).status == 200
    pipeline.until(lambda: pipeline.get("/alerts/hushed/status").json()["breached"], "in breach")
    shown = pipeline.get("/alerts/hushed/status").json()
    assert (shown["silenced"], shown["why_not_fired"], shown["firing"]) == (True, "silenced", True)
    assert told(receiver, "hushed") == []
    assert http("DELETE", f"{pipeline.url}/alerts/hushed/silence").status == 204
    pipeline.until(lambda: told(receiver, "hushed") == [("firing", None)], "fired")
    shown = pipeline.get("/alerts/hushed/status").json()
    assert (shown["silenced"], shown["silenced_until"], shown["state"]) == (False, None, "firing")


def test_a_rule_that_leaves_the_file_while_it_fires_is_resolved_after_the_restart(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.until(lambda: told(receiver, "file") == [("firing", None)], "fired")
    pipeline.kill()
    write(pipeline)
    pipeline.start()
    pipeline.until(lambda: told(receiver, "file") == [("firing", None), ("resolved", "removed")], "ended")
    [last] = [sent for sent in receiver.sent if sent.path == "/file"][-1:]
    assert last.json()["message"] == "span_count is not watched any more: the rule was removed from the configuration"
    pipeline.stop()
    pipeline.start()
    assert len(told(receiver, "file")) == 2
