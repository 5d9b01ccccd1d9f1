"""``GET /coverage`` and ``tokentrace coverage`` on a running pipeline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.commands import Command, Ended, run_commands
from kit.pipeline import Pipeline
from tokentrace.units import SECOND, render_instant


def spans_of(caller: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return *count* calls of *caller* that have just ended."""
    now_ns = time.time_ns()
    return [
        {
            "trace_id": f"{caller}-{fields.get('scope', '')}-{number}",
            "span_id": f"s{number}",
            "name": "chat",
            "kind": "llm",
            "model": "gpt-4o",
            "provider": "openai",
            "status": "ok",
            "caller": caller,
            "prompt_tokens": 512,
            "comp_tokens": 128,
            "started_at": render_instant(now_ns - (number + 2) * SECOND),
            "ended_at": render_instant(now_ns - (number + 1) * SECOND),
            **fields,
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("coverage"))
    pipeline.start()
    silent = {"prompt_tokens": 0, "comp_tokens": 0, "usage_state": "missing"}
    sent = [
        *spans_of("checkout", 3, scope="my.library", session_id="s1", user_id="u1"),
        *spans_of("checkout", 3, scope="other.library", **silent),
        *spans_of("[b]mail[/b]", 2, cost_usd=0.5),
    ]
    answer = pipeline.post("/spans", sent)
    assert answer.status == 202, answer.body
    pipeline.until(lambda: sum(row["calls"] for row in asked(pipeline)["rows"]) == len(sent), "everything is stored")
    yield pipeline
    assert pipeline.stop() == 0


def asked(pipeline: Pipeline, query: str = "") -> Any:
    answer = pipeline.get(f"/coverage{query}")
    assert answer.status == 200, answer.body
    return answer.json()


def command(directory: Path, *words: str) -> Ended:
    [ended] = run_commands([Command(directory, ["coverage", *words])])
    return ended


def test_each_service_and_instrumentation_has_a_row_with_its_gaps(serving: Pipeline) -> None:
    answer = asked(serving)
    rows = {(row["caller"], row["scope"]): row for row in answer["rows"]}
    assert set(rows) == {("checkout", "my.library"), ("checkout", "other.library"), ("[b]mail[/b]", "")}
    good, bad = rows["checkout", "my.library"], rows["checkout", "other.library"]
    assert good["source"] == "spans"
    assert good["usage"] == {"calls": 3, "of": 3, "share": 1.0}
    assert good["session"] == good["user"] == {"calls": 3, "of": 3, "share": 1.0}
    assert good["cache_1h"] == {"calls": 0, "of": 0, "share": None}
    assert bad["usage"] == {"calls": 0, "of": 3, "share": 0.0}
    assert [gap["what"] for gap in bad["gaps"]] == ["usage", "duplicates", "response_id", "session", "user"]
    assert (good["possible_duplicates"], bad["possible_duplicates"]) == (3, 3)
    reported = rows["[b]mail[/b]", ""]
    assert reported["cost"] == {"reported": 2, "compared": 2, "differing": 2}
    assert (answer["count"], answer["more"], answer["silent"]) == (3, False, [])


def test_the_interval_the_caller_and_the_limit_choose_rows(serving: Pipeline) -> None:
    assert [row["caller"] for row in asked(serving, "?caller=checkout&limit=1")["rows"]] == ["checkout"]
    assert asked(serving, "?caller=checkout&limit=1")["more"]
    assert asked(serving, "?from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z")["rows"] == []
    wide = asked(serving, "?from=2026-01-01T00:00:00Z")
    assert wide["from"] == "2026-01-01T00:00:00.000Z"
    assert len(wide["rows"]) == 3


@pytest.mark.parametrize(
    ("query", "error"),
    [("to=2026-01-02T00:00:00Z", "to: needs from"), ("limit=x", "limit: "), ("from=x", "from: ")],
)
def test_a_wrong_parameter_is_refused(serving: Pipeline, query: str, error: str) -> None:
    answer = serving.get(f"/coverage?{query}")
    assert answer.status == 400
    assert answer.json()["error"].startswith(error)


def test_the_command_prints_the_table_and_a_sentence_for_each_gap(serving: Pipeline, tmp_path: Path) -> None:
    ended = command(tmp_path, "--api", serving.url)
    assert (ended.code, ended.stderr) == (0, "")
    assert "my.library" in ended.stdout
    assert "[b]mail[/b]" in ended.stdout
    for row in asked(serving)["rows"]:
        for gap in row["gaps"]:
            assert f": {gap['advice']}\n" in ended.stdout


def test_the_command_prints_json_for_programs(serving: Pipeline, tmp_path: Path) -> None:
    ended = command(tmp_path, "--api", serving.url, "--json", "--caller", "checkout", "--window", "1h", "--limit", "1")
    assert [row["caller"] for row in json.loads(ended.stdout)["rows"]] == ["checkout"]


def test_the_command_says_what_is_wrong(serving: Pipeline, tmp_path: Path) -> None:
    ended = command(tmp_path, "--api", serving.url, "--window", "x")
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("tokentrace: window: ")
    ended = command(tmp_path, "--api", "http://127.0.0.1:9")
    assert (ended.code, ended.stderr) == (1, "tokentrace: GET /coverage at http://127.0.0.1:9: ConnectError\n")
    assert command(tmp_path, "--api", "nats://127.0.0.1").code == 2
    empty = command(tmp_path, "--api", serving.url, "--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z")
    assert empty.stdout.startswith("No calls from 2026-01-01T00:00:00.000Z to ")
