"""Worker processes of every kind send the spans of their tasks before they end, however short they live."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.pipeline import Pipeline, free_port, http
from kit.programs import assert_ended, run_program
from kit.raw_stream import read_raw, span_names
from kit.reporting import until

_CELERY = """
import os
from celery import Celery
from tokentrace import Reporter, Span

folder = os.environ["FOLDER"]
app = Celery("worker", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": folder, "data_folder_out": folder}
app.conf.worker_max_tasks_per_child = 1
app.conf.worker_hijack_root_logger = False
app.conf.broker_connection_retry_on_startup = False
reporter = Reporter("celery")
reporter.report(Span(name="start", kind="custom"))  # the parent sends too

@app.task
def work(number):
    for index in range(100):
        reporter.report(Span(name=f"{number}-{index}", kind="custom"))
    open(os.path.join(folder, "..", "done", str(number)), "w").close()
"""


@pytest.mark.broker
@pytest.mark.story
def test_every_span_of_celery_children_that_do_one_task_arrives(tmp_path: Path) -> None:
    for name in ("queue", "done"):
        (tmp_path / name).mkdir()
    (tmp_path / "worker.py").write_text(_CELERY)
    pipeline = Pipeline(tmp_path / "serve")
    pipeline.start()
    try:
        environment = {**os.environ, "FOLDER": str(tmp_path / "queue"), "TOKENTRACE_URL": pipeline.nats_url}
        ask = "import worker\nfor number in range(100):\n    worker.work.delay(number)\n"
        subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=environment, check=True)
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--concurrency", "4", "-l", "WARNING"]
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen(
                [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
            ) as worker,
        ):
            until(lambda: len(list((tmp_path / "done").iterdir())) == 100, "all tasks done", 240)
            worker.terminate()
            worker.wait(60)
        log_text = (tmp_path / "log").read_text()
        assert "spans lost" not in log_text
        # Two processes imported the module: that which asked and the worker.
        pipeline.until(lambda: _spans(pipeline) >= 10_002, "all spans stored", 60)
        assert _spans(pipeline) == 10_002, log_text[-2000:]
    finally:
        pipeline.stop()


def _spans(pipeline: Pipeline) -> int:
    return int(http("GET", f"{pipeline.url}/metrics?window=30d").json()["cost"]["span_count"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_send_the_spans_of_their_tasks(url: str, method: str, tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(
        "import multiprocessing, sys\n"
        "from tokentrace import Reporter, Span\n"
        "reporter = Reporter('pool', sys.argv[1])\n"
        "def work(number):\n"
        "    for index in range(10):\n"
        "        reporter.report(Span(name=f'{number}-{index}', kind='custom'))\n"
        "if __name__ == '__main__':\n"
        "    reporter.report(Span(name='parent', kind='custom'))\n"
        "    with multiprocessing.get_context(sys.argv[2]).Pool(2, maxtasksperchild=2) as pool:\n"
        "        pool.map(work, range(12), chunksize=1)\n"
        "        pool.close()\n"
        "        pool.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "pool.py", url, method], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert_ended(done)
    expected = [f"{number}-{index}" for number in range(12) for index in range(10)]
    assert span_names(read_raw(url)) == Counter(["parent", *expected])


def test_gunicorn_workers_that_are_preloaded_and_recycled_send_all(url: str, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text(
        "from tokentrace import Reporter, Span\n"
        "reporter = Reporter('web')\n"
        "reporter.report(Span(name='preloaded', kind='custom'))\n"
        "assert reporter.flush(15)\n"
        "def app(environ, start_response):\n"
        "    for index in range(10):\n"
        "        reporter.report(Span(name=environ['PATH_INFO'], kind='custom'))\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n"
        "    return [b'ok']\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--max-requests", "5", "--bind"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*command, f"127.0.0.1:{port}", "web:app"],
            cwd=tmp_path,
            env={**os.environ, "TOKENTRACE_URL": url},
            stdout=log,
            stderr=log,
        ) as server,
    ):
        try:
            until(lambda: _answers(port, "/ready"), "gunicorn is ready")
            answered = sum(_answers(port, f"/n{number}") for number in range(40))
        finally:
            server.terminate()
            server.wait(60)
    log_text = (tmp_path / "log").read_text()
    found = span_names(read_raw(url))
    assert "spans lost" not in log_text
    assert found.pop("preloaded") == 1
    assert found.pop("/ready") % 10 == 0
    assert answered >= 30, log_text[-2000:]
    assert found.total() == 10 * answered


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
            return bool(response.status == 200)
    except OSError:  # a worker that is being recycled
        return False


def test_spans_of_two_event_loops_and_of_one_that_is_closed_amid_a_call_arrive(url: str) -> None:
    done = run_program(
        "import asyncio\n"
        "reporter = Reporter('loops', url)\n"
        "async def call(name):\n"
        "    reporter.report(Span(name=name, kind='custom'))\n"
        "    await asyncio.sleep(0.01)\n"
        "    reporter.report(Span(name=name, kind='custom'))\n"
        "asyncio.run(call('first'))\n"
        "asyncio.run(call('second'))\n"
        "loop = asyncio.new_event_loop()\n"
        "task = loop.create_task(call('cut'))\n"
        "loop.run_until_complete(asyncio.sleep(0))\n"
        "task.cancel()\n"
        "loop.run_until_complete(asyncio.sleep(0))\n"
        "loop.close()\n"
        "async def flush():\n"
        "    assert await reporter.aflush(15)\n"
        "asyncio.run(flush())\n",
        url,
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter({"first": 2, "second": 2, "cut": 1})


def test_a_process_that_calls_os_exit_sends_only_what_it_has_flushed(url: str, broker: Broker) -> None:
    done = run_program(
        "reporter = Reporter('exit', url)\n"
        "reporter.report(Span(name='flushed', kind='custom'))\n"
        "assert reporter.flush(15)\n"
        "os._exit(0)\n",
        url,
    )
    assert_ended(done)
    assert span_names(read_raw(url)) == Counter(["flushed"])
