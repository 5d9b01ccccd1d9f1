"""A fork in the middle of a trace: each span is handed over once, by the process that opened it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.llm_answers import CHAT_USAGE
from kit.llm_server import LlmServer, Script

OPEN_SPANS = """
import os, sys
from tokentrace import FileTransport, Tracer
path, leave = sys.argv[1:]
tracer = Tracer(FileTransport(path))
try:
    with tracer.trace("answer", session_id="s"):
        kept = tracer.span("open")
        with tracer.span("outer"):
            pid = os.fork()
            if pid == 0:
                with tracer.span("of the child"):
                    pass
                kept.end()
                if leave == "exit":
                    sys.exit(0)
                if leave == "fail":
                    raise ValueError("of the child")
        if pid:
            os.waitpid(pid, 0)
            kept.end()
except ValueError:
    pass
"""

STREAM = """
import os, sys
import openai
from tokentrace import Budget, FileTransport, Tracer, instrument
url, path = sys.argv[1:]
tracer = Tracer(FileTransport(path))
budget = Budget(10)
client = instrument(openai.OpenAI(api_key="k", base_url=url + "/v1"), tracer=tracer, budget=budget,
                    stream_usage_hosts=[url.removeprefix("http://")])
stream = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=True)
next(stream)
pid = os.fork()
if pid == 0:
    del stream
    sys.exit(0)
os.waitpid(pid, 0)
for _ in stream:
    pass
client.close()
"""


def _run(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def _spans(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("leave", ["return", "exit", "fail"])
def test_spans_that_were_open_at_a_fork_are_sent_by_the_parent_alone(leave: str, tmp_path: Path) -> None:
    _run(OPEN_SPANS, str(tmp_path / "spans"), leave)
    spans = {span["span_id"]: span for span in _spans(tmp_path / "spans")}
    assert len(spans) == len(_spans(tmp_path / "spans"))
    found = {span["name"]: span for span in spans.values()}
    failed = {"answer"} if leave == "fail" else set()
    assert found.keys() == {"open", "outer", "of the child"} | failed
    assert found["of the child"]["parent_span_id"] == found["outer"]["span_id"]
    assert [found[name]["status"] for name in ("open", "outer")] == ["ok", "ok"]
    assert len({span["trace_id"] for span in spans.values()}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_stream_that_was_open_at_a_fork_is_one_span_with_the_whole_usage(tmp_path: Path) -> None:
    with LlmServer() as server:
        server.start(Script())
        _run(STREAM, server.url, str(tmp_path / "spans"))
    (span,) = _spans(tmp_path / "spans")
    assert (span["prompt_tokens"], span["status"]) == (CHAT_USAGE["prompt_tokens"], "ok")
    assert "stream_end" not in span.get("attributes", {})
