"""
``serve`` on a disk smaller than its streams: it starts every time, also on a full disk, and no accepted span is lost.

The disks are sparse tmpfs mounts, which only root can mount. How long starts and stops took is printed (``-rP``).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.environment import PATIENCE
from kit.examples import SEED, WHOLE, matrix
from kit.pipeline import Answer, Pipeline

pytestmark = pytest.mark.story

MIB = 1024 * 1024
GIB = 1024 * MIB
#: Time limit of a start, seconds; a start usually takes two or three.
UP_S = 20
#: The time in which a program promises to stop, seconds.
STOP_S = 5.0
#: How often ``serve`` is started in one story.
STARTS = 10 if WHOLE else 4
BATCH = 50


class SmallDisk:
    """A mounted tmpfs that can be resized and filled."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size, self.whole = directory, size, size
        self._filler = directory / "filler"

    @property
    def free(self) -> int:
        stats = os.statvfs(self.directory)
        return stats.f_bavail * stats.f_frsize

    def leave(self, size: int) -> None:
        """Remount the disk with *size* bytes free; filling it instead would take that much memory."""
        for attempt in range(100):
            try:
                self._resize(self.size - self.free + size)
                return
            except subprocess.CalledProcessError:
                # A running program has taken more in between.
                assert attempt < 99

    def restore(self) -> None:
        """Give the disk its first size again."""
        self._resize(self.whole)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.directory)], check=True)
        self.size = size

    def fill(self) -> None:
        """Fill every free page."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def make_room(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    size = request.param * GIB // 1000
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a tmpfs cannot be mounted here: only root can")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tokentrace-test", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield SmallDisk(directory, os.statvfs(directory).f_blocks * os.statvfs(directory).f_frsize)
    subprocess.run(["umount", "-l", str(directory)], check=True)


class Story:
    """A pipeline on a small disk, and the number of spans that it has accepted."""

    def __init__(self, tmp_path: Path, disk: SmallDisk) -> None:
        self.pipeline = Pipeline(tmp_path / "run", "--data-dir", str(disk.directory / "data"))
        self.disk, self.sent = disk, 0
        self.took: list[str] = []
        self._batch = b""

    def start(self) -> None:
        began = time.monotonic()
        self.pipeline.start(wait=False)
        self.pipeline.until(lambda: self.pipeline.get("/readyz").status == 200, "ready", UP_S)
        self.took.append(f"up {time.monotonic() - began:.1f} s")

    def start_on_a_full_disk(self) -> None:
        """Start, and wait until everything that was accepted before is shown and a batch is refused."""
        pipeline, began = self.pipeline, time.monotonic()
        pipeline.start(wait=False)
        pipeline.until(lambda: pipeline.get("/healthz").status == 200, "answering", UP_S)
        pipeline.until(lambda: pipeline.get("/metrics?window=1h").json()["span_count"] == self.sent, "counted")
        self.took.append(f"full: up {time.monotonic() - began:.1f} s")
        pipeline.until(lambda: self.offer() == 503, "refusing")

    def accept_again(self) -> None:
        """Wait until the pipeline works on a disk that has space again."""
        self.pipeline.until(lambda: self.pipeline.get("/health").status == 200, "healthy again", 90)
        self.pipeline.until(lambda: self.offer() == 202, "accepting")

    def stop(self) -> None:
        began = time.monotonic()
        assert self.pipeline.stop() == 0
        self.took.append(f"stopped {time.monotonic() - began:.1f} s")

    def stop_during_a_start(self, after_s: float) -> None:
        """Start, stop the process *after_s* seconds later, and wait until it has ended by itself."""
        self.pipeline.start(wait=False)
        process = self.pipeline.process
        assert process is not None
        time.sleep(after_s)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        # Before its first lines have run, a program ends as the system ends it.
        assert process.wait(STOP_S * PATIENCE) in (0, -signal.SIGTERM), self.pipeline.log.read_text()[-3000:]
        self.took.append(f"stopped after {after_s:.2f} s of a start: {time.monotonic() - began:.1f} s")

    def send(self) -> None:
        assert self.offer() == 202

    def offer(self) -> int:
        """Post a batch; repeat the same batch until it is accepted, because a refused batch may have been stored."""
        self._batch = self._batch or json.dumps(self._spans()).encode()
        status = self.pipeline.post("/spans", self._batch).status
        if status == 202:
            self.sent += BATCH
            self._batch = b""
        return status

    def _spans(self) -> list[dict[str, object]]:
        return [
            {
                "trace_id": f"t{self.sent}",
                "span_id": f"{n}",
                "model": "gpt-4o",
                "provider": "openai",
                "prompt_tokens": 1000,
                "comp_tokens": 100,
                "attributes": {"text": os.urandom(300).hex()},
            }
            for n in range(BATCH)
        ]

    def assert_exact(self) -> None:
        def exact() -> bool:
            metrics = self.pipeline.get("/metrics?window=1h").json()
            totals = (
                metrics["span_count"],
                metrics["tokens"]["prompt_total"],
                self.pipeline.get("/stats").json()["total_spans"],
                self.pipeline.get("/health").json()["stored_spans"],
                # None until the first call is counted.
                round(metrics["cost"]["total_usd"] or 0.0, 9),
            )
            return bool(totals == (self.sent, self.sent * 1000, self.sent, self.sent, round(self.sent * 0.0035, 9)))

        self.pipeline.until(exact, f"exact: {self.sent} spans")

    @property
    def space_warnings(self) -> list[str]:
        """The texts of all warnings and errors about the space for streams that were logged so far."""
        lines = [json.loads(line) for line in self.pipeline.log.read_text().splitlines() if line.startswith("{")]
        return [
            line["message"]
            for line in lines
            if line["level"] in ("warning", "error")
            and (line["logger"] == "tokentrace.service.bootstrap" or "trying: stream" in line["message"])
        ]

    def reserved(self) -> dict[str, int]:
        """Return the bytes that the broker reserves for each stream, from the broker's files."""
        files = self.disk.directory.glob("data/nats/jetstream/jetstream/*/streams/*/meta.inf")
        return {file.parent.name: json.loads(file.read_text())["max_bytes"] for file in files}


@pytest.mark.parametrize("disk", matrix([8000, 2000, 15_000], 1), indirect=True, ids="{}MB".format)
def test_serve_starts_repeatedly_on_a_disk_smaller_than_its_streams(tmp_path: Path, disk: SmallDisk) -> None:
    story = Story(tmp_path, disk)
    try:
        for starts in (1, 2, 3):
            story.start()
            story.send()
            story.assert_exact()
            story.stop()
            assert len(story.space_warnings) == starts, "one warning for each start"
            assert sum(story.reserved().values()) < disk.size
    finally:
        story.pipeline.stop()


@pytest.mark.parametrize("disk", matrix([2000, 8000, 15_000], 1), indirect=True, ids="{}MB".format)
def test_serve_starts_ten_times_on_a_disk_that_is_filled_to_the_brim_in_between(
    tmp_path: Path, disk: SmallDisk
) -> None:
    """Every second start is one on a full disk; before each, another start is stopped while it is under way."""
    story, dice = Story(tmp_path, disk), random.Random(SEED)
    try:
        for starts in range(STARTS):
            is_full = starts % 2 == 1
            if is_full:
                disk.leave(0)
            story.stop_during_a_start(dice.uniform(0.0, 3.0))
            if is_full:
                story.start_on_a_full_disk()
                disk.restore()
                story.accept_again()
            else:
                story.start()
                story.send()
            story.assert_exact()
            if starts % 4 == 3:
                # Stopped on a full disk, so that nothing can be written at the end either.
                disk.leave(0)
            story.stop()
            disk.restore()
    finally:
        story.pipeline.stop()
        print(f"TOKENTRACE_SEED={SEED}", *story.took, sep="; ")
    assert "Traceback" not in story.pipeline.log.read_text()


@pytest.mark.parametrize("disk", [20_000], indirect=True, ids=["20GB"])
def test_serve_starts_when_the_space_shrinks_between_starts(tmp_path: Path, disk: SmallDisk) -> None:
    story = Story(tmp_path, disk)
    try:
        story.start()
        story.send()
        story.stop()
        assert story.space_warnings == []
        assert sum(story.reserved().values()) == 12_816 * MIB
        for left, free in enumerate((10 * GIB, 300 * MIB), 1):
            disk.leave(free)
            story.start()
            story.send()
            story.assert_exact()
            story.stop()
            assert len(story.space_warnings) == left, story.space_warnings
            assert sum(story.reserved().values()) < free
    finally:
        story.pipeline.stop()


@pytest.mark.parametrize("disk", [400], indirect=True, ids=["400MB"])
def test_serve_on_a_full_disk_reports_it_and_recovers_when_there_is_space(tmp_path: Path, disk: SmallDisk) -> None:
    story = Story(tmp_path, disk)
    pipeline = story.pipeline
    try:
        story.start()
        story.send()
        story.assert_exact()
        story.stop()
        warnings_before = len(story.space_warnings)
        disk.fill()
        story.start_on_a_full_disk()
        pipeline.until(lambda: names_the_reason(pipeline.get("/health")), "unhealthy with the reason")
        assert len(story.space_warnings) == warnings_before + 1, story.space_warnings
        disk.make_room()
        story.accept_again()
        story.assert_exact()
    finally:
        pipeline.stop()


def names_the_reason(health: Answer) -> bool:
    error = health.json().get("error", "")
    return health.status == 503 and ("cannot be opened" in error or "stores nothing" in error)
