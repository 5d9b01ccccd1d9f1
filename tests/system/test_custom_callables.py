"""Delivery to custom Python callables."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from kit.pipeline import Pipeline, free_port
from kit.receiver import (
    CALL,
    HOOKS,
    DeliveryRun,
    events,
    kept,
    make_event,
    make_rule,
)
from tokentrace.errors import ConfigError
from tokentrace.units import SECOND
from tokentrace_alerter.delivery import Callbacks, load_target

JSON = {"Content-Type": "application/json"}


def rendered(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a new module of callables; the module and what they write are in the current directory."""
    name = f"hooks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("plain", "plain"),
        ("waits", "waits"),
        ("one", "object"),
        ("one.deliver", "object"),
        ("wrapped", "waits"),
        ("called", "called"),
    ],
)
async def test_a_custom_callable_receives_the_event(hooks: str, tmp_path: Path, target: str, where: str) -> None:
    async with DeliveryRun(make_rule(delivery={"type": "custom", "target": f"{hooks}:{target}"})) as run:
        event = make_event()
        await run.publish(event)
        await run.done()
    assert run.outcomes() == ["delivered"]
    assert kept(tmp_path, where) == [msgspec.to_builtins(event)]


async def test_a_custom_callable_that_raises_is_retried(hooks: str, tmp_path: Path) -> None:
    async with DeliveryRun(make_rule(delivery={"type": "custom", "target": f"{hooks}:raises"})) as run:
        await run.publish(make_event())
        await run.done()
    assert run.outcomes() == ["retry", "retry", "delivered"]
    assert "RuntimeError: not today 1" in run.records()[0]["error"]
    assert len(kept(tmp_path, "raises")) == 1


@pytest.mark.parametrize("target", ["nothing:here", "hooks:missing", "hooks:plain.missing", "broken:here"])
def test_a_target_that_cannot_be_loaded_ends_the_alerter_with_exit_code_2(tmp_path: Path, target: str) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "broken.py").write_text("def here(:\n")
    rule = make_rule(delivery={"type": "custom", "target": target})
    (tmp_path / "tokentrace.yml").write_text(json.dumps({"alerts": [rule]}))
    command = [sys.executable, "-m", "tokentrace_alerter", "--nats", f"nats://127.0.0.1:{free_port()}"]
    flags = ["--addr", f"127.0.0.1:{free_port()}", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr[-1000:]
    assert "target" in done.stderr
    assert target in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["not_callable", "_Object", "_Called"])
def test_a_target_that_is_not_callable_is_refused(hooks: str, name: str) -> None:
    with pytest.raises(ConfigError, match="target"):
        load_target(f"{hooks}:{name}")


async def test_a_custom_callable_that_hangs_is_called_at_most_eight_times(hooks: str) -> None:
    """A thread cannot be ended, so the number of threads that hang is limited."""
    calls = Callbacks(8)
    for _ in range(8):
        with pytest.raises(TimeoutError):
            await calls.call(f"{hooks}:hangs", {}, SECOND // 100)
    before = threading.active_count()
    with pytest.raises(TimeoutError, match="8 earlier calls"):
        await calls.call(f"{hooks}:hangs", {}, SECOND // 100)
    assert threading.active_count() == before


def test_a_custom_callable_that_hangs_does_not_keep_the_alerter_from_stopping(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    rule = make_rule(delivery={"type": "custom", "target": "hooks:hangs"}, window="10s", eval_interval="1s")
    (tmp_path / "tokentrace.yml").write_text(json.dumps({"alerts": [rule]}))
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        assert serving.post("/spans", [CALL]).status == 202
        serving.until(lambda: len(events(serving, "rule")) == 1, "fired", 15)
        time.sleep(0.5)
        assert serving.process is not None
        serving.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            serving.process.wait(12)
        assert serving.process.returncode == 0, "serve still waits for the callable"
    finally:
        if serving.process is not None and serving.process.poll() is None:
            serving.kill()
