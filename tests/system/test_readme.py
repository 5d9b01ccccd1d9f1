"""What the README tells people to type works when they type it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.pipeline import ROOT, Pipeline

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")


def commands(language: str) -> list[str]:
    """Every line of every block of *language*."""
    found: list[str] = []
    for name in DOCUMENTS:
        for block in re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE):
            found += block.strip().splitlines() if language == "sh" else [block]
    return found


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("readme"))
    serving.start()
    yield serving
    serving.stop()


def test_every_command_of_the_documents_works(pipeline: Pipeline) -> None:
    seen = set()
    for line in commands("sh"):
        words = shlex.split(line)
        seen.add(words[0])
        if words[:2] == ["docker", "compose"]:
            continue  # run for real in tests/compose
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, line
        elif words[0] == "curl":
            port = str(pipeline.port)
            line = re.sub(r"localhost:(8700|9090)", f"127.0.0.1:{port}", line)
            # On a busy machine an answer may be a 503: curl asks again, as its Retry-After says.
            again = "" if "--max-time" in line else " --retry 20"
            done = subprocess.run(
                ["bash", "-c", line + " --silent --fail" + again], capture_output=True, text=True, check=False
            )
            # What never ends is cut off by the README itself.
            assert done.returncode == (28 if "--max-time" in line else 0), f"{line}: {done.stderr}"
            assert done.stdout.startswith(("{", "# HELP", "trace_id,", ": following")) or "-X DELETE" in line
        elif words[0] == ".venv/bin/tokentrace":
            program = [sys.executable, "-m", "tokentrace_standalone", *words[1:]]
            program += [] if words[1] == "rules" else ["--url", pipeline.nats_url]
            assert subprocess.run(program, cwd=ROOT, capture_output=True, check=False).returncode == 0
        else:
            raise AssertionError(f"no test knows how to run {line!r}")
    assert seen >= {"make", "curl"}


def test_the_rules_of_the_readme_are_valid(tmp_path: Path) -> None:
    (block,) = commands("yaml")
    file = tmp_path / "tokentrace.yml"
    file.write_text(block)
    check = [sys.executable, "-m", "tokentrace_standalone", "rules", "check", str(file)]
    # Nothing is delivered here, so its example may name a host that no test may deliver to.
    env = {**os.environ, "TOKENTRACE_ALERT_ALLOW_HOSTS": "hooks.example.com"}
    done = subprocess.run(check, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 rules are valid\n")


def test_the_python_of_the_readme_runs(pipeline: Pipeline, tmp_path: Path) -> None:
    before = pipeline.metrics()["span_count"]
    blocks = commands("python")
    reporting = [block for block in blocks if "reporter.report" in block]
    assert reporting
    for block in blocks:
        program = block.replace("nats://127.0.0.1:4222", pipeline.nats_url)
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=dict(os.environ), check=False)
        assert done.returncode == 0
    pipeline.until(lambda: pipeline.metrics()["span_count"] == before + len(reporting), "the README's span")


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("help", "setup", "serve", "test", "test-fast", "check", "fmt", "bench", "up", "down"):
        assert f"make {target} " in shown
