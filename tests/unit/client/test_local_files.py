"""``LocalTraceService`` in files: the layout, what is written when, and what a program finds when it starts again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.programs import assert_ended, run_program
from kit.reporting import until
from tokentrace import LocalTraceService, StartedSpan, Tracer
from tokentrace.client.sessions.files import file_name


def names(directory: Path) -> dict[str, set[str]]:
    """Return the names of the files in each subdirectory."""
    return {part.name: {file.name for file in part.iterdir()} for part in directory.iterdir()}


def answers(service: LocalTraceService) -> list[Any]:
    """Return everything that *service* says about its sessions."""
    listed = service.list_sessions(limit=1000)
    graphs = [service.session_graph(one["sessionId"]) for one in listed["sessions"]]
    return [listed, graphs, service.sessions_summary()]


def finished(service: LocalTraceService) -> StartedSpan:
    """Return a span that ended, with a message."""
    root = service.start_span("root", "agent", metadata={"label": "chat", "userId": "u-7"})
    service.record_message(root.session_id, root.trace_id, "user", "mail a@b.io")
    service.end_span(root.trace_id, model="gpt-4o", input_tokens=5, output_tokens=6)
    return root


def test_a_span_is_written_at_its_end_and_a_session_at_its_end_in_the_documented_layout(tmp_path: Path) -> None:
    with LocalTraceService("file", tmp_path) as service:
        root = finished(service)
        open_span = service.start_span("open", session_id=root.session_id)
        assert names(tmp_path) == {"traces": {f"{root.trace_id}.json"}, "sessions": set(), "messages": set()}
        service.end_session(root.session_id)
        session = f"{root.session_id}.json"
        spans = {f"{root.trace_id}.json", f"{open_span.trace_id}.json"}
        assert names(tmp_path) == {"traces": spans, "sessions": {session}, "messages": {session}}
        text = (tmp_path / "traces" / f"{root.trace_id}.json").read_text()
        assert text.startswith('{\n  "id": "')
        span = json.loads(text)
        (node, _) = service.session_graph(root.session_id)["nodes"]
        assert {key: span[key] for key in node if key != "trace_id"} | {"trace_id": span["kept"]["traceId"]} == node
        details = service.session_details(root.session_id)
        shown = [
            {key: value for key, value in message.items() if key != "kept"} | {"trace_id": message["kept"]["traceId"]}
            for message in span["messages"]
        ]
        assert shown == details["messages"]
        assert json.loads((tmp_path / "messages" / session).read_text()) == span["messages"]
        kept = json.loads((tmp_path / "sessions" / session).read_text())
        assert {key: kept[key] for key in kept if key != "kept"} == {
            key: details[key] for key in details if key != "messages"
        }
    assert "a@b.io" not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))


def test_destroy_writes_the_sessions_that_are_active(tmp_path: Path) -> None:
    service = LocalTraceService("file", tmp_path)
    root = finished(service)
    service.destroy()
    service.destroy()
    assert {part: len(files) for part, files in names(tmp_path).items()} == {"traces": 1, "sessions": 1, "messages": 1}
    again = LocalTraceService("file", tmp_path)
    assert answers(again) == answers(service)
    again.end_session(root.session_id)
    assert LocalTraceService("file", tmp_path).session_details(root.session_id)["status"] == "completed"


CHARACTERS = st.characters(min_codepoint=33, max_codepoint=0x3000, exclude_categories=["Cs", "Cc", "Zs"])
TEXTS = st.text(CHARACTERS, max_size=9)
VALUES = st.one_of(TEXTS, st.integers(-(2**60), 2**60), st.booleans(), st.none())
SPAN = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b", "c"]),
        "type": st.sampled_from(["llm", "tool", "agent", "http"]),
        "parent": st.integers(0, 9),
        "ends": st.booleans(),
        "status": st.sampled_from(["ok", "error", "timeout"]),
        "model": st.sampled_from(["", "gpt-4o", "no-such-model"]),
        "tokens": st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
        "cost": st.one_of(st.none(), st.integers(0, 10**9)),
        "metadata": st.dictionaries(TEXTS.filter(bool), VALUES, max_size=3),
        "tool": st.sampled_from([None, "search"]),
        "message": st.one_of(st.none(), TEXTS),
    }
)


@given(spans=st.lists(SPAN, max_size=10), ends=st.booleans())
def test_a_program_that_starts_again_gives_the_same_answers(
    spans: list[dict[str, Any]], ends: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("again")
    service = LocalTraceService("file", directory)
    started: list[StartedSpan] = []
    for span in spans:
        parent = started[span["parent"]].trace_id if span["parent"] < len(started) else None
        one = service.start_span(span["name"], span["type"], parent_id=parent, metadata=span["metadata"])
        started.append(one)
        if span["message"] is not None:
            service.record_message(one.session_id, one.trace_id, "user", span["message"])
        if span["ends"]:
            service.end_span(
                one.trace_id,
                span["status"],
                error="gone" if span["status"] == "error" else None,
                model=span["model"] or None,
                input_tokens=span["tokens"][0],
                output_tokens=span["tokens"][1],
                cost_usd=None if span["cost"] is None else span["cost"] / 10**9,
                tool=span["tool"],
            )
    if ends and started:
        service.end_session(started[0].session_id, "gave up")
    service.destroy()
    assert answers(LocalTraceService("file", directory)) == answers(service)


def test_only_the_newest_sessions_are_read_again_and_the_files_of_the_others_stay(tmp_path: Path) -> None:
    with LocalTraceService("file", tmp_path, max_sessions=2) as service:
        for number in range(4):
            at = f"2026-03-15T14:0{number}:00Z"
            service.ingest_batch([{"name": "x", "sessionId": f"s{number}", "startedAt": at, "endedAt": at}])
            service.end_session(f"s{number}")
    assert names(tmp_path)["sessions"] == {f"s{number}.json" for number in range(4)}
    again = LocalTraceService("file", tmp_path, max_sessions=2)
    assert [one["sessionId"] for one in again.list_sessions()["sessions"]] == ["s3", "s2"]
    again.start_span("new")
    assert [one["sessionId"] for one in again.list_sessions()["sessions"]][1:] == ["s3"]


@pytest.mark.parametrize(
    "bad",
    [b"", b"{", b"[]", b'{"id": 5}', b'{"id": "x", "name": ""}', b"\xff\xfe", b'{"sessionId": "s", "endedAt": 7}'],
)
def test_a_file_that_cannot_be_read_is_logged_and_left_out(
    tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalTraceService("file", tmp_path) as service:
        root = finished(service)
        service.end_session(root.session_id)
    for part in ("traces", "sessions", "messages"):
        (tmp_path / part / "bad.json").write_bytes(bad)
    again = LocalTraceService("file", tmp_path)
    assert [one["sessionId"] for one in again.list_sessions()["sessions"]] == [root.session_id]
    assert "bad.json is left out: bad.json: " in caplog.text


def test_files_of_cost_katanas_sdk_are_read_and_their_secrets_removed(tmp_path: Path) -> None:
    for part in ("traces", "sessions", "messages"):
        (tmp_path / part).mkdir()
    span = {
        "id": "span-1",
        "sessionId": "s-1",
        "name": "answer",
        "type": "llm",
        "status": "ok",
        "model": "gpt-4o",
        "tokens": {"input": 3, "output": 4},
        "costUSD": 0.5,
        "metadata": {"label": "chat", "password": "hunter2"},
        "startedAt": "2026-03-15T14:00:00.000Z",
        "endedAt": "2026-03-15T14:00:01.000Z",
        "duration": 1000,
        "depth": 0,
        "messages": [],
    }
    session = {"sessionId": "s-1", "status": "completed", "endedAt": "2026-03-15T14:00:02.000Z"}
    message = {
        "sessionId": "s-1",
        "traceId": "span-1",
        "role": "user",
        "content": "mail a@b.io",
        "redactedContent": "mail [EMAIL_REDACTED]",
        "isRedacted": True,
        "createdAt": "2026-03-15T14:00:00.500Z",
    }
    (tmp_path / "traces" / "span-1.json").write_text(json.dumps(span))
    (tmp_path / "sessions" / "s-1.json").write_text(json.dumps(session))
    (tmp_path / "messages" / "s-1.json").write_text(json.dumps([message]))
    details = LocalTraceService("file", tmp_path).session_details("s-1")
    assert (details["status"], details["totalCostUSD"], details["label"]) == ("completed", 0.5, "chat")
    assert [(one["content"], one["isRedacted"]) for one in details["messages"]] == [("mail [EMAIL_REDACTED]", True)]
    assert "hunter2" not in json.dumps(LocalTraceService("file", tmp_path).session_graph("s-1"))


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=256), unique=True))
def test_every_id_has_a_file_of_its_own_in_its_directory(ids: list[str]) -> None:
    files = [file_name(id) for id in [*ids, ".", "..", "a/../../b", "/etc/x", ".hidden"]]
    assert len(set(files)) >= len(ids)
    for name in files:
        assert Path(name).name == name
        assert not name.startswith(".")
        assert len(name.encode()) <= 255


def test_memory_writes_nothing_and_auto_save_writes_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    with LocalTraceService("memory", tmp_path / "none") as service:
        finished(service)
    assert not (tmp_path / "none").exists()
    saved = tmp_path / "saved"
    with LocalTraceService("memory", saved, auto_save=True, auto_save_interval_ms=20) as service:
        root = finished(service)
        until(lambda: (saved / "sessions" / f"{root.session_id}.json").exists(), "saved")
    traced = tmp_path / "traced"
    with LocalTraceService("memory", traced, auto_save=True, auto_save_interval_ms=20) as service:
        with Tracer(service).trace("answer", session_id="s-1") as trace:
            trace.record(model="gpt-4o", prompt_tokens=5, completion_tokens=6)
        until(lambda: (traced / "sessions" / "s-1.json").exists(), "saved")
    lazy = tmp_path / "lazy"
    with LocalTraceService("memory", lazy, auto_save=True) as service:
        root = finished(service)
        assert names(lazy) == {"traces": set(), "sessions": set(), "messages": set()}
    assert names(lazy)["sessions"] == {f"{root.session_id}.json"}
    # The mode memory begins without the sessions of the files.
    assert LocalTraceService("memory", lazy, auto_save=True).list_sessions()["total"] == 0


def test_what_cannot_be_written_is_logged_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = LocalTraceService("file", tmp_path)
    (tmp_path / "traces").rename(tmp_path / "away")
    first, second = finished(service), finished(service)
    service.end_session(first.session_id)
    assert caplog.text.count("sessions are not written to files") == 1
    (tmp_path / "away").rename(tmp_path / "traces")
    service.destroy()
    assert names(tmp_path)["traces"] == {f"{first.trace_id}.json", f"{second.trace_id}.json"}
    assert names(tmp_path)["sessions"] == {f"{first.session_id}.json", f"{second.session_id}.json"}


PROGRAM = """
from tokentrace import LocalTraceService
directory = sys.argv[1]
service = LocalTraceService("file", directory)
root = service.start_span("parent")
child = os.fork()
if not child:
    assert service.list_sessions()["total"] == 0
    service.end_session(service.start_span("child").session_id)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert service.list_sessions()["total"] == 1
"""


def test_a_program_that_ends_without_destroy_writes_its_sessions_and_a_forked_child_only_its_own(
    tmp_path: Path,
) -> None:
    assert_ended(run_program(PROGRAM, str(tmp_path), forks=True))
    listed = LocalTraceService("file", tmp_path).list_sessions()
    assert [(one["totalSpans"], one["status"]) for one in listed["sessions"]] == [(1, "completed"), (1, "active")]
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith(".tmp")]
    assert os.listdir(tmp_path / "sessions")
