"""An hour of real traffic, and everything that may go wrong while it passes: the totals stay exact."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import TRACE, Pipeline, assert_exact, finish, replay


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path)
    serving.start()
    yield serving
    serving.stop()


def test_an_hour_of_real_traffic_comes_out_exactly(pipeline: Pipeline) -> None:
    sending = replay(pipeline, "--speed", "max")
    finish(sending)
    assert_exact(pipeline)
    with TRACE.open() as file:
        rows = list(csv.reader(file))[1:]
    latencies = np.array([int(row[1]) * 0.25 + int(row[2]) * 20 for row in rows])
    shown = pipeline.metrics()["latency"]
    for name, q in (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert shown[name] == pytest.approx(np.quantile(latencies, q), rel=0.01)


def test_twenty_kills_of_everything_leave_exact_totals(pipeline: Pipeline) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    sending = replay(pipeline, "--speed", "600")
    for _ in range(20):
        time.sleep(dice.uniform(0.05, 0.6))
        pipeline.kill()
        pipeline.start(wait=dice.random() < 0.5)
    finish(sending)
    assert_exact(pipeline)


def test_kills_of_the_broker_alone_leave_exact_totals(pipeline: Pipeline) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    sending = replay(pipeline, "--speed", "600")
    for _ in range(6):
        time.sleep(dice.uniform(0.3, 1.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pipeline.nats_pid(), signal.SIGKILL)
        pipeline.until(lambda: pipeline.nats_pid() > 0, "nats-server restarted")
    finish(sending)
    assert_exact(pipeline)
