"""Streams that are still open when their tracer closes, or the program ends: one span each, and nothing is logged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from kit.llm_answers import CHAT_USAGE
from kit.llm_server import LlmServer, Script
from tokentrace import Budget, BufferTransport, Tracer, instrument

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
PROGRAM = """
import sys
import anthropic
from tokentrace import FileTransport, Tracer, instrument
url, path = sys.argv[1:]
client = instrument(anthropic.Anthropic(api_key="k", base_url=url), tracer=Tracer(FileTransport(path)))
stream = client.messages.create(model="claude-local-1", max_tokens=9, stream=True,
                                messages=[{"role": "user", "content": "hi"}])
next(stream)
sys.path_importer_cache["kept until the interpreter is gone"] = stream
"""


def test_a_stream_that_is_open_at_the_end_of_the_program_is_one_span_with_its_usage_so_far(tmp_path: Path) -> None:
    with LlmServer() as server:
        server.start(Script())
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "spans")],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    (span,) = map(json.loads, (tmp_path / "spans").read_text().splitlines())
    assert (span["status"], span["usage_state"], span["attributes"]["stream_end"]) == ("ok", "partial", "closed")
    assert span["prompt_tokens"] == 510


@pytest.mark.parametrize("reads_on", [False, True])
def test_a_stream_that_is_open_when_its_tracer_closes_is_one_span_and_is_paid(reads_on: bool) -> None:
    buffer, budget = BufferTransport(), Budget(10)
    tracer = Tracer(buffer)
    with LlmServer() as server, openai.OpenAI(api_key="k", base_url=f"{server.url}/v1") as client:
        server.start(Script())
        instrument(client, tracer=tracer, budget=budget)
        client.chat.completions.create(**ASK)
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        held = budget.reserved
        tracer.close()
        assert (budget.reserved, budget.spent > held > 0) == (0, True)
        if reads_on:
            assert len(list(stream)) == 3
        stream.close()
    whole, left = buffer.spans
    assert whole.prompt_tokens == CHAT_USAGE["prompt_tokens"]
    assert (left.usage_state, left.attributes["stream_end"]) == ("missing", "closed")
