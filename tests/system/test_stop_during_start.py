"""
Programs can be stopped while they start: they end with exit code 0 and without a traceback.

In most tests several programs run at the same time, and are stopped once each of them is known to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.pipeline import Pipeline, free_port
from tokentrace.bus import Bus, jetstream
from tokentrace.config import Settings, Storage
from tokentrace.service.bootstrap import bootstrap
from tokentrace_aggregator.service import Aggregator
from tokentrace_aggregator.service import Config as AggregatorConfig
from tokentrace_alerter.service import Alerter
from tokentrace_alerter.service import Config as AlerterConfig
from tokentrace_api.service import Api
from tokentrace_api.service import Config as ApiConfig
from tokentrace_ingest.service import Config as IngestConfig
from tokentrace_ingest.service import Ingest

pytestmark = pytest.mark.story

#: The time in which a program promises to stop, seconds.
STOP_S = 5.0
SERVICES = ("ingest", "aggregator", "alerter", "api")


class Program:
    """A program as a process, and its log."""

    def __init__(self, directory: Path, name: str, *flags: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, directory / f"{name}.log"
        words = ["tokentrace_standalone", name] if name in ("serve", "tail") else [f"tokentrace_{name}"]
        if name != "tail":
            flags = ("--addr", f"127.0.0.1:{free_port()}", "--data-dir", str(directory / name), *flags)
        if name == "serve":
            flags = (*flags, "--also", "none")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words, *flags], stdout=log, stderr=log, cwd=directory, start_new_session=True
            )

    def until(self, condition: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition(self.text):
            assert self.process.poll() is None, f"{self.name} ended by itself: {self.text}"
            assert time.monotonic() < deadline, f"{self.name}: {self.text}"
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in running:
        if program.process.poll() is None:
            os.killpg(program.process.pid, signal.SIGKILL)
            program.process.wait()


def assert_they_stop(programs: list[Program], number: int) -> None:
    """
    Send the signal *number* to all programs, and check that each ends with exit code 0 and without a traceback.

    Twice the promised time is allowed, because the programs share two cores.
    """
    for program in programs:
        program.process.send_signal(number)
    for program in programs:
        try:
            code = program.process.wait(STOP_S * 2)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{program.name} did not stop: {program.text[-2000:]}") from None
        assert code == 0, (program.name, program.text[-2000:])
        assert "Traceback" not in program.text, program.name
        assert "never retrieved" not in program.text, program.name


def start_all(directory: Path, url: str) -> list[Program]:
    return [Program(directory, name, "--nats", url) for name in (*SERVICES, "serve")]


def test_programs_stop_while_the_broker_is_unreachable(tmp_path: Path, programs: list[Program]) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    programs += [*start_all(tmp_path, url), Program(tmp_path, "tail", "--nats", url)]
    for program in programs:
        program.until(lambda text: "Connect call failed" in text or "ConnectionRefused" in text)
    assert_they_stop(programs, signal.SIGTERM)


def test_programs_stop_while_the_broker_is_silent(tmp_path: Path, programs: list[Program]) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("ingest", "serve"):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(60)
            programs.append(Program(tmp_path, name, "--nats", f"nats://127.0.0.1:{listener.getsockname()[1]}"))
            stack.enter_context(listener.accept()[0])
        assert_they_stop(programs, signal.SIGTERM)


def test_programs_stop_while_jetstream_has_no_space(tmp_path: Path, programs: list[Program]) -> None:
    broker = Broker(tmp_path / "nats", room="100KB")
    broker.start()
    try:
        programs += start_all(tmp_path, broker.url)
        for program in programs:
            program.until(lambda text: "still trying: stream" in text)
        assert_they_stop(programs, signal.SIGINT)
        for program in programs:
            assert program.text.count("still trying") == 1
    finally:
        broker.stop()


async def test_services_stop_if_the_broker_dies_before_they_have_started(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats")
    broker.start()
    settings = Settings(storage=Storage(dir=str(tmp_path / "data")))
    try:
        async with asyncio.timeout(60), jetstream.connect(broker.url, name="services") as bus:
            await bootstrap(bus, settings)
            broker.kill()
            while bus.connected:
                await asyncio.sleep(0.01)
            for service in _services(bus, settings):
                stopping = asyncio.Event()
                running = asyncio.create_task(service.run(stopping))
                await asyncio.sleep(0.3)
                assert not running.done()
                stopping.set()
                # This is less than the time for which ingest may still work on messages after it was stopped.
                done, _ = await asyncio.wait([running], timeout=STOP_S - 1)
                assert done, type(service).__name__
                running.result()
    finally:
        broker.stop()


def _services(bus: Bus, settings: Settings) -> list[Ingest | Aggregator | Alerter | Api]:
    return [
        Ingest(bus, IngestConfig.of(settings)),
        Aggregator(bus, AggregatorConfig.of(settings)),
        Alerter(bus, AlerterConfig.of(settings)),
        Api(bus, ApiConfig.of(settings)),
    ]


def test_programs_stop_while_a_port_or_a_directory_is_in_use(tmp_path: Path, programs: list[Program]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serve = Program(tmp_path, "serve", "--nats-port", str(taken.getsockname()[1]))
        programs.append(serve)
        serve.until(lambda _: (tmp_path / "serve" / "nats" / "lock").exists())
        assert_they_stop([serve], signal.SIGTERM)
    pipeline = Pipeline(tmp_path / "run")
    pipeline.start()
    try:
        assert pipeline.post("/spans", {"model": "gpt-4o", "prompt_tokens": 1, "comp_tokens": 1}).status == 202
        pipeline.until(lambda: pipeline.get("/health").json()["stored_spans"] == 1, "stored")
        second = Program(tmp_path / "second", "api", "--nats", pipeline.nats_url, "--data-dir", str(pipeline.data))
        programs.append(second)
        second.until(lambda text: "span store: " in text)
        assert_they_stop([second], signal.SIGTERM)
        assert pipeline.get("/readyz").status == 200
    finally:
        assert pipeline.stop() == 0


def test_serve_stops_while_the_log_is_replayed(tmp_path: Path) -> None:
    pipeline, sent = Pipeline(tmp_path / "run"), 0
    pipeline.start()
    try:
        for n in range(20):
            spans = [
                {"trace_id": f"t{n}", "span_id": f"{i}", "model": "gpt-4o", "prompt_tokens": 10, "comp_tokens": 1}
                for i in range(1000)
            ]
            assert pipeline.post("/spans", spans).status == 202
            sent += len(spans)
        assert pipeline.stop() == 0
        # Without its files the api reads the whole log again.
        shutil.rmtree(pipeline.data / "spans")
        pipeline.start(wait=False)
        pipeline.until(lambda: pipeline.get("/readyz").status == 503, "replaying")
        assert pipeline.process is not None
        pipeline.process.send_signal(signal.SIGINT)
        assert pipeline.process.wait(STOP_S * 2) == 0
        assert "Traceback" not in pipeline.log.read_text()
        pipeline.start()
        pipeline.until(lambda: pipeline.get("/health").json()["stored_spans"] == sent, "all stored")
        assert pipeline.metrics("1h")["span_count"] == sent
    finally:
        pipeline.stop()
