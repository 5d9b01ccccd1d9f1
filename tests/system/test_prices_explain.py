"""``tokentrace prices explain`` and ``GET /prices/explain`` say the same, and what ingest then does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from kit.commands import Command, Ended, run_commands
from kit.pipeline import Pipeline
from kit.receipts import SETTINGS, send_for_receipt

AT = "2026-11-20T12:00:00Z"
QUESTIONS: list[dict[str, Any]] = [
    {"model": "gpt-4o"},
    {"model": "openai/gpt-4o:nitro", "provider": "openrouter", "usage": {"prompt_tokens": 512, "comp_tokens": 128}},
    {
        "model": "gpt-5.4",
        "usage": {"input_tokens": 100_000, "output_tokens": 10_000},
        "context": {"service_tier": "flex"},
    },
    {"model": "gpt-5.4", "context": {"service_tier": "gold"}, "usage": {"input_tokens": 1}},
    {"model": "claude-sonnet-4-5", "usage": {"input_tokens": 200_001, "cache_write_1h_tokens": 7, "web_searches": 2}},
    {"model": "in-house-7b", "usage": {"prompt_tokens": 3, "cache_read_tokens": 2, "bananas": 1}},
    {"model": "deepseek-r1:8b", "usage": {"prompt_tokens": 3}},
    {"model": "llama3:latest", "provider": "ollama", "usage": {"prompt_tokens": 3}},
    {"model": "é ü/&=?", "provider": "a b"},
]


def words_of(question: dict[str, Any], *more: str) -> list[str]:
    """Return the words of a command that asks *question*."""
    words = ["prices", "explain", question["model"], "--at", AT, *more]
    if "provider" in question:
        words += ["--provider", question["provider"]]
    for flag in ("usage", "context"):
        for name, value in question.get(flag, {}).items():
            words += [f"--{flag}", f"{name}={value}"]
    return words


def run_each(directory: Path, lines: Sequence[list[str]]) -> list[Ended]:
    """Run each of *lines* in a directory of its own."""
    commands = [Command(directory / f"run-{number}", words) for number, words in enumerate(lines)]
    for command in commands:
        command.directory.mkdir()
    return run_commands(commands)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Path]]:
    directory = tmp_path_factory.mktemp("explain")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    pipeline = Pipeline(directory)
    pipeline.start()
    try:
        yield pipeline, directory
    finally:
        pipeline.stop()


def test_the_command_prints_what_the_route_answers(serving: tuple[Pipeline, Path]) -> None:
    pipeline, directory = serving
    config = ["--config", str(directory / "tokentrace.yml")]
    lines = [words_of(question, *config, *more) for question in QUESTIONS for more in (["--json"], [])]
    printed = run_each(directory, lines)
    for index, question in enumerate(QUESTIONS):
        query: list[tuple[str, object]] = [("model", question["model"]), ("at", AT)]
        if "provider" in question:
            query.append(("provider", question["provider"]))
        for flag in ("usage", "context"):
            query += [(f"{flag}.{name}", value) for name, value in question.get(flag, {}).items()]
        answer = pipeline.get(f"/prices/explain?{urlencode(query)}")
        assert answer.status == 200, answer.body
        as_json, text = printed[2 * index : 2 * index + 2]
        assert (as_json.code, as_json.stderr) == (0, ""), as_json
        assert json.loads(as_json.stdout) == answer.json()
        assert text.code == 0
        price = answer.json()["price"]
        for said in (price["source"], price["matched"], price["variant"], answer.json()["cost_reason"]):
            assert said is None or said in text.stdout, (said, text.stdout)


def test_a_span_costs_what_its_explanation_says_and_its_receipt_says_the_same(serving: tuple[Pipeline, Path]) -> None:
    pipeline, _ = serving
    answer = pipeline.get("/prices/explain?model=gpt-4o&usage.prompt_tokens=512&usage.comp_tokens=128").json()
    receipt = send_for_receipt(pipeline)
    assert Decimal(receipt["cost_usd"]) == Decimal(answer["cost_usd"])
    assert receipt["lines"] == answer["lines"]
    assert receipt["assumed"] == answer["assumed"]
    assert {**receipt["price"], "priced_at": "", "matched": ""} == {**answer["price"], "priced_at": "", "matched": ""}


#: (Arguments after ``prices explain``, what the error says).
WRONG: list[tuple[list[str], str]] = [
    ([], "MODEL"),
    (["m", "--usage", "input_tokens"], "--usage: 'input_tokens' is not NAME=VALUE"),
    (["m", "--usage", "a=1", "--usage", "a=2"], "--usage: a is given twice"),
    (["m", "--usage", "a=many"], "usage.a: 'many' is not a whole number"),
    (["m", "--at", "soon"], "soon"),
    (["m", "--config", "none.yml"], "none.yml"),
]


def test_a_wrong_question_ends_with_a_sentence(tmp_path: Path) -> None:
    ended = run_each(tmp_path, [["prices", "explain", *words] for words, _ in WRONG])
    for (words, error), end in zip(WRONG, ended, strict=True):
        assert end.code == 2, (words, end)
        assert error in end.stderr
        assert "Traceback" not in end.stderr
