"""
``/health`` shows a full or read-only disk, and the pipeline recovers by itself when the disk can be written again.

The disk is a small tmpfs, which only root can mount.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.disks import Disk, mounted_disk
from kit.pipeline import Pipeline, SeparateServices, http

pytestmark = pytest.mark.story

SIZE_MIB = 192


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_disk(tmp_path, SIZE_MIB) as mounted:
        yield mounted


class Sender:
    """A thread that posts batches, each again and again until it is accepted; a repeated batch counts once."""

    def __init__(self, pipeline: Pipeline, port: int | None = None) -> None:
        self.url = f"http://127.0.0.1:{port or pipeline.port}/spans"
        self.accepted = 0
        self.refused = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        batch = 0
        while not self._stopping.is_set():
            spans = [
                {
                    "trace_id": f"t{batch}",
                    "span_id": f"{n}",
                    "model": "gpt-4o",
                    "provider": "openai",
                    "prompt_tokens": 1000,
                    "comp_tokens": 100,
                    "attributes": {"text": os.urandom(300).hex()},
                }
                for n in range(20)
            ]
            body = json.dumps(spans).encode()
            while True:
                try:
                    status = http("POST", self.url, body).status
                except OSError:
                    status = 0
                if status == 202:
                    break
                assert status in (0, 503), status
                self.refused += 1
                if self._stopping.wait(0.2):
                    return
            self.accepted += len(spans)
            batch += 1
            time.sleep(0.02)


def totals(pipeline: Pipeline) -> dict[str, Any]:
    metrics = pipeline.get("/metrics?window=1h").json()
    return {
        "metrics": metrics["span_count"],
        "stats": pipeline.get("/stats").json()["total_spans"],
        "stored": pipeline.get("/health").json()["stored_spans"],
        "cost": round(metrics["cost"]["total_usd"], 9),
    }


def expected(sender: Sender) -> dict[str, Any]:
    n = sender.accepted
    return {"metrics": n, "stats": n, "stored": n, "cost": round(n * 0.0035, 9)}


def story(pipeline: Pipeline, begin: Any, end: Any) -> None:
    """Check, while spans are sent, that the pipeline is unhealthy after *begin* and recovers after *end*."""
    with Sender(pipeline) as sender:
        pipeline.until(lambda: sender.accepted >= 200, "accepting")
        begin()
        pipeline.until(lambda: sender.refused > 0, "refusing")
        pipeline.until(lambda: pipeline.get("/health").status == 503, "unhealthy")
        shown = pipeline.get("/health").json()
        assert shown["status"] == "unhealthy"
        assert shown["error"]
        end()
        before = sender.accepted
        pipeline.until(lambda: sender.accepted > before + 100, "accepting again", 90)
        pipeline.until(lambda: pipeline.get("/health").status == 200, "healthy again", 90)
    pipeline.until(lambda: totals(pipeline) == expected(sender), f"exact: {expected(sender)}")


def test_a_full_disk_loses_nothing_and_the_pipeline_recovers_when_there_is_space(tmp_path: Path, disk: Disk) -> None:
    pipeline = Pipeline(tmp_path / "run", "--data-dir", str(disk.directory / "data"))
    pipeline.start()
    try:
        story(pipeline, disk.fill, disk.make_room)
    finally:
        pipeline.stop()


class WithAlerter(SeparateServices):
    """All services as separate processes; ``/health`` is 503 without an alerter."""

    SERVICES = ("ingest", "aggregator", "alerter", "api")


def test_an_api_with_a_read_only_disk_reports_it_and_starts_when_it_is_writable(tmp_path: Path, disk: Disk) -> None:
    view = tmp_path / "view"
    apart = WithAlerter(tmp_path / "run")
    apart.data = view / "data"
    (disk.directory / "data").mkdir()
    disk.bind(view, "rw")
    try:
        apart.start()
        with Sender(apart, apart.ports["ingest"]) as sender:
            apart.until(lambda: sender.accepted >= 100, "accepting")
            apart.kill_one("api")
            disk.bind(view, "ro")
            apart.start_one("api")
            apart.until(lambda: apart.get("/health").status == 503, "unhealthy")
            assert "cannot be opened" in apart.get("/health").json()["error"]
            assert apart.get("/traces").status == 503
            before = sender.accepted
            apart.until(lambda: sender.accepted > before + 100, "accepting although nothing is stored")
            assert list(disk.directory.glob("data/spans/*damaged*")) == []
            disk.bind(view, "rw")
            apart.until(lambda: apart.get("/health").status == 200, "healthy again")
        apart.until(lambda: totals(apart) == expected(sender), f"exact: {expected(sender)}")
    finally:
        apart.stop()
