"""Sessions for the tests of the page: many small ones, a conversation of three levels, a large and a hostile one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from kit.http_spans import assert_accepted
from kit.page_world import BEGIN, HOSTILE
from kit.pipeline import Pipeline
from kit.sessions import details, instant, until_spans

MANY, LARGE = 45, 5000
#: Longer than what the page shows of a message without being asked.
LONG = "A long answer. " * 200
_CALL = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 1000, "comp_tokens": 100}


def small_spans() -> list[dict[str, Any]]:
    """Return the spans of session small-<n>, n from 0 to 44: n % 4 + 1 calls each, the later ones newer."""
    spans = []
    for number in range(MANY):
        for call in range(number % 4 + 1):
            start = BEGIN + timedelta(seconds=number, milliseconds=call)
            is_failed = number % 10 == 3 and call == 0
            spans.append(
                {
                    **_CALL,
                    "trace_id": f"small-{number}",
                    "span_id": f"call-{call}",
                    "session_id": f"small-{number}",
                    "user_id": f"user-{number % 3}",
                    "name": "answer",
                    "started_at": instant(start),
                    "ended_at": instant(start + timedelta(seconds=1 + number)),
                    "attributes": {"label": f"chat {number}"},
                    **({"status": "error", "error": f"429 of {number}"} if is_failed else {}),
                }
            )
    return spans


def large_spans() -> list[dict[str, Any]]:
    """Return session large: 5 traces of a root with 9 steps of 110 calls each, and 5 roots without children."""
    spans: list[dict[str, Any]] = []
    for trace in range(5):
        for number in range(LARGE // 5):
            start = BEGIN + timedelta(seconds=100 * trace, milliseconds=10 * number)
            parent = None if number in (0, 999) else 0 if number % 111 == 1 else number - (number - 1) % 111
            spans.append(
                {
                    "kind": "tool",
                    "trace_id": f"large-{trace}",
                    "span_id": f"n{number}",
                    "parent_span_id": None if parent is None else f"n{parent}",
                    "session_id": "large",
                    "name": f"step {number} of {trace}",
                    "started_at": instant(start),
                    "ended_at": instant(start + timedelta(seconds=1)),
                }
            )
    return spans


def hostile_span() -> dict[str, Any]:
    """Return the span of session hostile, whose texts are hostile, and which lasts no time at all."""
    return {
        **_CALL,
        "trace_id": "hostile",
        "span_id": "h",
        "session_id": "hostile",
        "user_id": "=1+1",
        "name": HOSTILE,
        "status": "error",
        "error": HOSTILE,
        "started_at": instant(BEGIN),
        "ended_at": instant(BEGIN),
        "attributes": {"label": "=cmd|' /C calc'!A0" + HOSTILE},
    }


def _started(serving: Pipeline, name: str, parent: str | None, kind: str) -> str:
    body = {"sessionId": "talk", "name": name, "type": kind, "metadata": {"label": "Refund", "userId": "ada"}}
    answer = serving.post("/api/traces/start", body | ({"parentId": parent} if parent else {}))
    assert answer.status == 200, answer.body
    return str(answer.json()["traceId"])


def talk(serving: Pipeline) -> None:
    """Report session talk: a workflow that is open, an agent below it, and below that a call that failed; messages."""
    root = _started(serving, "handle refund", None, "workflow")
    agent = _started(serving, "look up order", root, "agent")
    call = _started(serving, "write answer", agent, "llm")
    end = {"status": "error", "error": {"message": "quota of the day", "stack": "Traceback:\n  refund.py, line 7"}}
    tokens = {"model": "gpt-4o", "tokens": {"input": 1200, "output": 300}}
    for span, body in ((call, end | tokens), (agent, {"status": "ok"})):
        assert serving.post(f"/api/traces/{span}/end", body).status == 200
    messages = [
        ("user", "my mail is ada@example.com, where is my money?", root),
        ("assistant", LONG, call),
        ("tool", HOSTILE, agent),
    ]
    messages += [("assistant", f"message {number}", "") for number in range(60)]
    for number, (role, content, span) in enumerate(messages):
        body = {
            "sessionId": "talk",
            "role": role,
            "content": content,
            "createdAt": instant(BEGIN + timedelta(seconds=number)),
        }
        assert serving.post("/api/traces/messages", body | ({"traceId": span} if span else {})).status == 200
    until_spans(serving, "talk", 3, open_spans=1)
    serving.until(lambda: details(serving, "talk")["messageCount"] == len(messages), "all messages are stored")


def report_sessions(serving: Pipeline) -> None:
    """Report all sessions of this module: small-0 to small-44, large, hostile and talk."""
    spans = [*small_spans(), *large_spans(), hostile_span()]
    for start in range(0, len(spans), 1000):
        part = spans[start : start + 1000]
        assert_accepted(serving.post("/spans", part), len(part))
    talk(serving)
    serving.until(lambda: serving.get("/api/sessions").json()["total"] == MANY + 3, "all sessions are stored", 120)
    until_spans(serving, "large", LARGE)
