"""Requests to the routes of sessions, and the shapes that their answers must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from kit.pipeline import Answer, Pipeline

NUMBER = (int, float)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
KINDS = {"llm", "embedding", "tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain"}

# The interfaces of Cost Katana's TypeScript SDK. "?" after a key: the field may be missing or null.
TOKENS = {"input": int, "output": int}
ERROR = {"message": str, "stack?": str}
NODE = {
    "trace_id": str,
    "id": str,
    "parentId?": str,
    "sessionId": str,
    "name": str,
    "type": KINDS,
    "status": {"pending", "ok", "error", "timeout", "abandoned"},
    "error?": ERROR,
    "model?": str,
    "tokens?": TOKENS,
    "costUSD?": NUMBER,
    "tool?": str,
    "resourceIds?": [str],
    "metadata?": dict,
    "startedAt": datetime,
    "endedAt?": datetime,
    "duration?": NUMBER,
    "depth": int,
    "label": str,
    "start": datetime,
    "end?": datetime,
    "aiModel?": str,
    "laterVersions?": int,
    "counted?": bool,
    "conflicting?": bool,
}
GRAPH = {"nodes": [NODE], "edges": [{"from": str, "to": str}], "nextCursor?": str}
MESSAGE = {
    "sessionId": str,
    "traceId": str,
    "trace_id?": str,
    "role": {"user", "assistant", "system", "tool"},
    "content": str,
    "redactedContent?": str,
    "isRedacted": bool,
    "metadata?": dict,
    "createdAt": datetime,
    "messageId": str,
    "contentPreview": str,
    "fullContentStored": bool,
    "timestamp": datetime,
}
UNKNOWN = {"unpricedSpanCount": int, "partlyPricedSpanCount": int}
DETAILS = {
    "sessionId": str,
    "userId?": str,
    "label?": str,
    "status": {"active", "completed", "error"},
    "totalSpans": int,
    "totalCostUSD?": NUMBER,
    "totalInputTokens": int,
    "totalOutputTokens": int,
    "startedAt": datetime,
    "endedAt?": datetime,
    "messages": [MESSAGE],
    "messageCount": int,
    "duration?": NUMBER,
    "source": str,
    "error?": {**ERROR, "trace_id?": str, "span_id?": str},
    "hasErrors": bool,
    "errorCount": int,
    "summary": {"totalSpans": int, "totalDuration": NUMBER, "totalCost?": NUMBER, "totalTokens": TOKENS, **UNKNOWN},
    "openSpans": int,
    **UNKNOWN,
}
LISTED = {
    "sessions": [DETAILS],
    "total": int,
    "page": int,
    "limit": int,
    "pages": int,
    "totalPages": int,
}
SUMMARY = {
    "totalSessions": int,
    "activeSessions": int,
    "completedSessions": int,
    "errorSessions": int,
    "totalCost?": NUMBER,
    "totalTokens": TOKENS,
    "avgDuration": NUMBER,
    "averageDuration": NUMBER,
    "endedSessions": int,
    "errorRate": NUMBER,
    **UNKNOWN,
}


def check(shape: Any, value: Any, where: str = "answer") -> None:
    """Check that *value* has the fields and types of *shape*, and no other field."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        known = {key.removesuffix("?") for key in shape}
        assert value.keys() <= known, f"{where}: {value.keys() - known}"
        for key, part in shape.items():
            name = key.removesuffix("?")
            if key.endswith("?") and value.get(name) is None:
                continue
            assert name in value, f"{where}.{name} is missing"
            check(part, value[name], f"{where}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check(shape[0], item, f"{where}[{index}]")
    elif isinstance(shape, set):
        assert value in shape, f"{where}: {value!r}"
    elif shape is datetime:
        assert isinstance(value, str), where
        assert _INSTANT.fullmatch(value), f"{where}: {value!r}"
        datetime.fromisoformat(value)
    else:
        assert isinstance(value, shape), f"{where}: {value!r}"
        assert shape is bool or not isinstance(value, bool), where


def instant(at: datetime) -> str:
    """Return *at* in the documented form of times: UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ingest(pipeline: Pipeline, *spans: Mapping[str, Any]) -> None:
    """Send *spans* in Cost Katana's form and check that they are accepted."""
    answer = pipeline.post("/api/traces/ingest", {"spans": list(spans)})
    assert answer.status < 300, answer.body


def details(pipeline: Pipeline, session: str) -> Any:
    """Return the details of *session* after checking their shape."""
    answer = pipeline.get(f"/api/sessions/{quote(session, safe='')}/details")
    assert answer.status == 200, answer.body
    check(DETAILS, answer.json())
    return answer.json()


def graph(pipeline: Pipeline, session: str) -> Any:
    """Return the graph of *session* after checking its shape."""
    answer = pipeline.get(f"/api/sessions/{quote(session, safe='')}/graph")
    assert answer.status == 200, answer.body
    check(GRAPH, answer.json())
    return answer.json()


def listed(pipeline: Pipeline, **parameters: Any) -> Any:
    """Return a page of sessions after checking its shape."""
    answer = pipeline.get(f"/api/sessions?{urlencode(parameters)}")
    assert answer.status == 200, answer.body
    check(LISTED, answer.json())
    return answer.json()


def summary(pipeline: Pipeline, **parameters: Any) -> Any:
    """Return the summary of sessions after checking its shape."""
    answer = pipeline.get(f"/api/sessions/summary?{urlencode(parameters)}")
    assert answer.status == 200, answer.body
    check(SUMMARY, answer.json())
    return answer.json()


def refused(answer: Answer, status: int) -> str:
    """Check that *answer* is an error with *status*, and return the error text."""
    assert answer.status == status, (answer.status, answer.body)
    body = answer.json()
    assert body.keys() == {"error", "message"}
    assert body["error"] == body["message"]
    return str(body["message"])


def until_spans(pipeline: Pipeline, session: str, spans: int, *, open_spans: int = 0) -> None:
    """Wait until *session* shows *spans* spans, *open_spans* of which have not ended; fail after 20 s."""

    def is_stored() -> bool:
        shown = pipeline.get(f"/api/sessions/{quote(session, safe='')}/details").json()
        return (shown["totalSpans"], shown["openSpans"]) == (spans, open_spans)

    pipeline.until(is_stored, f"{spans} spans of {session}", 20)
