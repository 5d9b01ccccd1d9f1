"""Damaged and foreign files in the data directory, before a start and while running: ``serve`` comes up and works."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.pipeline import Pipeline
from kit.rubbish import damage_file, dice_of, noise, rounds

SPANS_A_ROUND = 20


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    yield pipeline
    pipeline.stop()


def send(serving: Pipeline) -> int:
    """Post some spans, and return their number once they are accepted."""
    span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": "known"}
    spans = [{**span, "trace_id": uuid.uuid4().hex, "span_id": f"{n}"} for n in range(SPANS_A_ROUND)]
    assert serving.post("/spans", spans).status == 202
    return len(spans)


def is_counted(serving: Pipeline, sent: int) -> bool:
    return bool(serving.metrics()["span_count"] == sent)


def await_totals(serving: Pipeline, sent: int) -> None:
    """Wait until both readers have everything, which they read from the log again if a file is lost."""
    serving.until(partial(is_counted, serving, sent), f"{sent} counted")
    serving.until(lambda: serving.get("/traces?limit=1").json()["total"] == sent, f"{sent} stored")


def own_files(serving: Pipeline) -> list[Path]:
    """Return the files of the data directory that the product reads; those of the broker are below ``jetstream``."""
    files = [file for file in serving.data.rglob("*") if file.is_file()]
    return sorted(file for file in files if "jetstream" not in file.parts and file.name != "lock")


def add_foreign_files(dice: random.Random, serving: Pipeline) -> None:
    """Add files and directories whose names look like those of the product, and some that do not."""
    store = serving.data / "spans"
    odd_day = f"{dice.randrange(2000, 2025)}-{dice.randrange(1, 13):02}-{dice.randrange(1, 29):02}"
    for name in (
        f"spans-{odd_day}-000.duckdb",
        f"spans-{odd_day}-000.duckdb.wal",
        f"spans-{odd_day}-001.duckdb.wal",
        "spans-9999-99-99-000.duckdb",
        "spans-rubbish.duckdb",
        "spans-.damaged-x",
        "notes.txt",
    ):
        (store / name).write_bytes(noise(dice, dice.randrange(1, 9000)))
    (store / "spans-2001-01-01-000.duckdb").symlink_to(store / "nowhere")
    (store / "spans-2001-01-02-000.duckdb" / "inside").mkdir(parents=True)
    (serving.data / "nats" / "nats.conf.new").mkdir(exist_ok=True)
    (serving.data / "nats" / "jetstream" / "rubbish").write_bytes(noise(dice))


def test_serve_comes_up_with_damaged_and_foreign_files_and_shows_them(serving: Pipeline) -> None:
    dice, sent = dice_of("files"), send(serving)
    await_totals(serving, sent)
    done: list[str] = []
    for number in range(rounds(4)):
        if number % 2:
            serving.kill()
        else:
            assert serving.stop() == 0
        chosen = [file for file in own_files(serving) if dice.random() < 0.5]
        done += [f"{number}: {file.name}: {damage_file(dice, file)}" for file in chosen]
        if number == 0:
            add_foreign_files(dice, serving)
        print(*done, sep="\n")
        serving.start()
        await_totals(serving, sent)
        sent += send(serving)
        await_totals(serving, sent)
        if number == 0:
            damaged = " ".join(serving.get("/health").json()["damaged"])
            for name in ("spans-9999-99-99-000", "spans-rubbish", "spans-2001-01-01-000", "spans-2001-01-02-000"):
                assert name in damaged, damaged
    assert "Traceback" not in serving.log.read_text()


def test_files_that_are_damaged_while_serve_runs_end_nothing(serving: Pipeline) -> None:
    dice, sent = dice_of("open files"), send(serving)
    await_totals(serving, sent)
    for _ in range(rounds(2)):
        for file in own_files(serving):
            content = file.read_bytes()
            with file.open("r+b") as opened:
                opened.seek(dice.randrange(len(content) + 1))
                opened.write(noise(dice, dice.randrange(1, 9000)))
        assert serving.process is not None
        assert serving.process.poll() is None
        sent += send(serving)
        serving.until(partial(is_counted, serving, sent), f"{sent} counted")
        serving.kill()
        serving.start()
        await_totals(serving, sent)
    assert "Traceback" not in serving.log.read_text()
