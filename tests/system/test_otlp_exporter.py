"""
OpenTelemetry's own exporter against a ``serve`` that is killed, paused and out of disk.

No acknowledged call is lost, and none counts twice, although the exporter sends what it is not sure of again.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from kit.disks import Disk, mounted_disk
from kit.otlp_sender import CALL_NUSD, OtlpSender, Try
from kit.pipeline import Pipeline

SIZE_MIB = 192


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_disk(tmp_path, SIZE_MIB) as mounted:
        yield mounted


def totals(pipeline: Pipeline) -> tuple[int, int, int, int, int]:
    """Return calls, prompt tokens and cost of the sums; stored spans, and how many different calls they are."""
    metrics = pipeline.get("/metrics?window=1h").json()
    stored = [json.loads(line) for line in pipeline.get("/export?format=jsonl").body.splitlines()]
    return (
        metrics["span_count"],
        metrics["tokens"]["prompt_total"],
        round(metrics["cost"]["total_usd"] * 1e9),
        len(stored),
        len({span["response_id"] for span in stored}),
    )


def assert_exact(pipeline: Pipeline, sender: OtlpSender) -> None:
    calls = sender.acknowledged
    wanted = (calls, calls * 1000, calls * CALL_NUSD, calls, calls)
    pipeline.until(lambda: totals(pipeline) == wanted, f"exact: {wanted}")


def accept(pipeline: Pipeline, sender: OtlpSender, calls: int) -> None:
    """Wait until *calls* more calls are acknowledged."""
    reached = sender.acknowledged + calls
    pipeline.until(lambda: sender.acknowledged >= reached, "accepting", 90)


def give_up(pipeline: Pipeline, sender: OtlpSender, times: int) -> None:
    """Wait until the exporter has given up *times* more."""
    reached = sender.given_up + times
    pipeline.until(lambda: sender.given_up >= reached, "given up")


def refused(sender: OtlpSender) -> list[Try]:
    """Return the tries that were answered with 503."""
    return [one for one in list(sender.tries) if one.status == 503]


@pytest.mark.story
def test_a_killed_serve_loses_no_acknowledged_call_and_counts_none_twice(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "run")
    pipeline.start()
    try:
        with OtlpSender(pipeline.url, "shop") as sender:
            for _ in range(3):
                accept(pipeline, sender, 200)
                pipeline.kill()
                pipeline.start(wait=False)
            accept(pipeline, sender, 200)
        assert any(one.status == 0 for one in sender.tries), "no request met a dead process"
        assert_exact(pipeline, sender)
    finally:
        pipeline.stop()


@pytest.mark.story
def test_what_a_paused_serve_gets_again_and_again_counts_once(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "run")
    pipeline.start()
    try:
        with OtlpSender(pipeline.url, "shop", timeout_s=1) as sender:
            for _ in range(3):
                accept(pipeline, sender, 100)
                assert pipeline.process is not None
                os.killpg(pipeline.process.pid, signal.SIGSTOP)
                # The requests that the exporter gives up are in the sockets of the process, which answers them later.
                give_up(pipeline, sender, 2)
                os.killpg(pipeline.process.pid, signal.SIGCONT)
            accept(pipeline, sender, 100)
        assert_exact(pipeline, sender)
    finally:
        pipeline.stop()


@pytest.mark.story
def test_a_full_disk_is_answered_with_a_pause_that_the_exporter_keeps(tmp_path: Path, disk: Disk) -> None:
    pipeline = Pipeline(tmp_path / "run", "--data-dir", str(disk.directory / "data"))
    pipeline.start()
    try:
        with OtlpSender(pipeline.url, "shop") as sender:
            accept(pipeline, sender, 200)
            disk.fill()
            pipeline.until(lambda: len(refused(sender)) >= 2, "refusing")
            disk.make_room()
            accept(pipeline, sender, 200)
        assert {one.retry_after for one in refused(sender)} <= {"1", "2"}
        repeated = [(one, later) for one, later in pairwise(sender.tries) if one.export == later.export and one.status]
        pauses = [later.began - one.ended for one, later in repeated]
        print("pauses:", [round(pause, 2) for pause in pauses], "given up:", sender.given_up)
        assert pauses
        assert all(pause >= int(one.retry_after) for (one, _), pause in zip(repeated, pauses, strict=True))
        assert_exact(pipeline, sender)
    finally:
        pipeline.stop()
