"""``instrument_celery`` with a real worker, whose processes are replaced after each task, and a broker in files."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery

from kit.environment import plain_environment
from kit.pipeline import Pipeline
from kit.web_apps import wait_for
from tokentrace import BufferTransport, Tracer, current, instrument_celery

TASKS = 20
MODULE = """
import os, signal, time
from celery import Celery, chain
from tokentrace import Tracer, current, instrument_celery

app = Celery("shop", broker="filesystem://")
app.conf.update(
    broker_transport_options={"data_folder_in": "QUEUE", "data_folder_out": "QUEUE", "control_folder": "CONTROL"},
    worker_max_tasks_per_child=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
instrument_celery(app, Tracer("NATS", source="shop"))


@app.task
def add(number):
    span = current()
    with span.span(f"look {number}", kind="tool"):
        pass
    return number


@app.task
def broken(number):
    raise KeyError(number)


@app.task(bind=True, max_retries=2)
def again(self, number):
    if self.request.retries < 2:
        raise self.retry(exc=ValueError("not yet"), countdown=0)


@app.task(soft_time_limit=0.2)
def slow():
    time.sleep(60)


@app.task
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Shop(NamedTuple):
    """The application in files, a worker of it, and the pipeline that the spans go to."""

    module: Any
    pipeline: Pipeline
    log: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("celery")
    pipeline = Pipeline(directory / "pipeline")
    pipeline.start()
    for name in ("queue", "control"):
        (directory / name).mkdir()
    text = MODULE.replace("QUEUE", str(directory / "queue")).replace("CONTROL", str(directory / "control"))
    (directory / "shop_tasks.py").write_text(text.replace("NATS", pipeline.nats_url))
    spec = importlib.util.spec_from_file_location("shop_tasks", directory / "shop_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = "--concurrency 2 --without-gossip --without-mingle --without-heartbeat --loglevel INFO"
    with (directory / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop_tasks", "worker", *flags.split()],
            cwd=directory,
            env=plain_environment(),
            stdout=log,
            stderr=log,
        )
    try:
        yield Shop(module, pipeline, directory / "worker.log")
    finally:
        worker.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(60)
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        pipeline.stop()


def spans_of(shop: Shop, trace_id: str, count: int) -> list[dict[str, Any]]:
    """Wait until a trace has *count* spans, and return them in the order of their starts."""

    def spans() -> list[dict[str, Any]]:
        answer = shop.pipeline.get(f"/traces/{trace_id}")
        return sorted(answer.json().get("spans", ()), key=lambda span: str(span["started_at"]))

    shop.pipeline.until(lambda: len(spans()) >= count, f"{count} spans; {shop.log.read_text()[-2000:]}", 20)
    found = spans()
    assert len(found) == count, [span["name"] for span in found]
    return found


def test_tasks_of_processes_that_are_replaced_lose_no_span_and_join_the_trace_of_their_sender(shop: Shop) -> None:
    tracer = Tracer(shop.pipeline.nats_url, source="web")
    with tracer.trace("order", session_id="s-1") as trace, trace.span("send") as send:
        for number in range(TASKS):
            shop.module.add.delay(number)
    assert tracer.flush(30)
    spans = spans_of(shop, trace.id, 1 + 2 * TASKS)
    tasks = [span for span in spans if span["name"] == "shop_tasks.add"]
    assert len(tasks) == TASKS
    assert {span["parent_span_id"] for span in tasks} == {send.span_id}
    assert {span["kind"] for span in tasks} == {"workflow"}
    assert {span["caller"] for span in tasks} == {"shop"}
    assert {(span["attributes"]["celery.state"], span["attributes"]["celery.queue"]) for span in tasks} == {
        ("SUCCESS", "celery")
    }
    looks = {span["name"]: span["parent_span_id"] for span in spans if span["kind"] == "tool"}
    assert looks.keys() == {f"look {number}" for number in range(TASKS)}
    assert set(looks.values()) == {span["span_id"] for span in tasks}
    tracer.close()


def test_failures_retries_and_limits_are_told_apart(shop: Shop) -> None:
    tracer = Tracer(shop.pipeline.nats_url, source="web")
    with tracer.trace("order") as trace:
        shop.module.broken.delay(7)
        shop.module.again.delay(8)
        shop.module.slow.delay()
    spans = spans_of(shop, trace.id, 5)
    shown = sorted(
        (
            span["name"],
            span["status"],
            span.get("error", ""),
            span["attributes"]["celery.state"],
            span["attributes"]["celery.retries"],
        )
        for span in spans
    )
    assert shown == [
        ("shop_tasks.again", "error", "ValueError: not yet", "RETRY", 0),
        ("shop_tasks.again", "error", "ValueError: not yet", "RETRY", 1),
        ("shop_tasks.again", "ok", "", "SUCCESS", 2),
        ("shop_tasks.broken", "error", "KeyError: 7", "FAILURE", 0),
        ("shop_tasks.slow", "timeout", "SoftTimeLimitExceeded: SoftTimeLimitExceeded()", "FAILURE", 0),
    ]
    tracer.close()


def test_a_task_whose_process_was_killed_is_recorded_by_the_worker(shop: Shop) -> None:
    task = shop.module.killed.delay()

    def found() -> list[dict[str, Any]]:
        traces = shop.pipeline.get("/traces?limit=100&name=shop_tasks.killed").json()["traces"]
        answers = [shop.pipeline.get(f"/traces/{trace['trace_id']}").json()["spans"] for trace in traces]
        return [span for spans in answers for span in spans if span["attributes"].get("celery.task_id") == task.id]

    shop.pipeline.until(lambda: bool(found()), "recorded", 20)
    (span,) = found()
    assert (span["name"], span["status"]) == ("shop_tasks.killed", "error")
    assert span["error"].startswith("WorkerLostError: ")


def test_an_eager_task_is_below_the_code_that_runs_it_and_other_applications_are_left_alone() -> None:
    buffer = BufferTransport()
    tracer = Tracer(buffer)
    own, other = Celery("own", set_as_current=False), Celery("other", set_as_current=False)
    instrument_celery(own, Tracer(BufferTransport()))
    instrument_celery(own, tracer)

    def inner() -> None:
        assert current() is not None

    def outer() -> None:
        tasks["inner"].apply()

    def foreign() -> None:
        assert current() is None

    tasks = {
        name: app.task(name=name)(fn)
        for app, name, fn in ((own, "inner", inner), (own, "outer", outer), (other, "foreign", foreign))
    }
    for name in ("foreign", "outer"):
        tasks[name].apply(throw=True)
        assert current() is None
    first, second = wait_for(buffer, 2)
    assert [(span.name, span.status) for span in (first, second)] == [("outer", "ok"), ("inner", "ok")]
    assert (second.trace_id, second.parent_span_id) == (first.trace_id, first.span_id)
