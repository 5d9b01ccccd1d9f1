"""The commands, programs and configurations in the documentation work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kit.commands import Command, run_commands
from kit.emitter_runs import PAGES
from kit.environment import ROOT
from kit.pipeline import Pipeline
from tokentrace_alerter.delivery.payload import signature

# ``test_keys`` runs the page about keys, because they close the server.
KEYS = ROOT / "docs" / "how-to" / "keys.md"
# ``test_emitters`` runs the pages of emitters, in environments of their own.
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for page in (ROOT / "docs").rglob("*.md") if page.parent != PAGES and page != KEYS),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "bench").rglob("*.md"),
    ]
)
# Examples may name these hosts; nothing is delivered to them, because the configurations are only checked.
EXAMPLE_HOSTS = "hooks.example.com,alertmanager.example.com"


def blocks_of(document: Path, language: str) -> list[str]:
    """Return every block of *language* in a document, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def documents_with(language: str) -> list[Path]:
    """Return the documents that hold a block of *language*."""
    return [document for document in DOCUMENTS if blocks_of(document, language)]


def name_of(document: Path) -> str:
    """Return the path of a document relative to the repository, as the id of a test."""
    return str(document.relative_to(ROOT))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("documents"))
    serving.start()
    yield serving
    serving.stop()


def run_curl(line: str, pipeline: Pipeline) -> None:
    """Run a documented curl command against the pipeline."""
    command = re.sub(r"localhost:(8700|9090)", f"127.0.0.1:{pipeline.port}", line)
    # On a busy machine a response may be a 503; curl then repeats the request after the time in Retry-After.
    again = "" if "--max-time" in line else " --retry 20"
    done = subprocess.run(
        ["bash", "-c", command + " --silent --fail" + again], capture_output=True, text=True, check=False
    )
    # With --max-time the documented command itself ends an endless response, with exit code 28.
    assert done.returncode == (28 if "--max-time" in line else 0), f"{line}: {done.stderr}"
    assert (
        done.stdout.startswith(("{", "# HELP", "trace_id,", "\ufeffsession_id,", ": following")) or "-X DELETE" in line
    ), done.stdout


def address_of(command: str, pipeline: Pipeline) -> list[str]:
    """Return the flag that leads *command* of ``tokentrace`` to the pipeline; [] if it needs none."""
    if command in ("rules", "config", "doctor"):
        return []
    return ["--api", pipeline.url] if command == "coverage" else ["--url", pipeline.nats_url]


@pytest.mark.parametrize("document", documents_with("sh"), ids=name_of)
def test_the_commands_of_a_document_work(document: Path, pipeline: Pipeline) -> None:
    """Commands of ``docker compose`` are skipped, and ``make`` runs with ``-n``, which executes nothing."""
    for line in "".join(blocks_of(document, "sh")).splitlines():
        words = shlex.split(line)
        if words[:2] == ["docker", "compose"]:
            continue  # because tests/compose runs the stack
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, line
        elif words[0] == "curl":
            run_curl(line, pipeline)
        elif words[0] == ".venv/bin/tokentrace":
            program = [sys.executable, "-m", "tokentrace_standalone", *words[1:], *address_of(words[1], pipeline)]
            done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        elif words[0] == ".venv/bin/python":
            program = [sys.executable, *words[1:]]
            key = "a key of at least 16 characters"
            env = {**os.environ, "TOKENTRACE_NATS_URL": pipeline.nats_url, "TOKENTRACE_REDACTION_HASH_KEY": key}
            done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        else:
            raise AssertionError(f"no test knows how to run {line!r}")


def test_the_readme_has_commands_of_make_curl_and_tokentrace() -> None:
    seen = {shlex.split(line)[0] for block in blocks_of(ROOT / "README.md", "sh") for line in block.splitlines()}
    assert seen >= {"make", "curl", ".venv/bin/tokentrace"}


@pytest.mark.parametrize("document", documents_with("yaml"), ids=name_of)
def test_every_configuration_of_a_document_is_valid(document: Path, tmp_path: Path) -> None:
    blocks = blocks_of(document, "yaml")
    checks = []
    for number, block in enumerate(blocks):
        words = ["rules", "check", "tokentrace.yml"]
        checks.append(Command(tmp_path / str(number), words, {"TOKENTRACE_ALERT_ALLOW_HOSTS": EXAMPLE_HOSTS}))
        checks[-1].directory.mkdir()
        (checks[-1].directory / "tokentrace.yml").write_text(block)
    for block, done in zip(blocks, run_commands(checks), strict=True):
        assert done.code == 0, done.stderr
        count = len(yaml.safe_load(block).get("alerts", []))
        assert done.stdout.endswith(f"{count} {'rule is' if count == 1 else 'rules are'} valid\n")


@pytest.mark.parametrize("document", documents_with("python"), ids=name_of)
def test_the_python_of_a_document_runs_and_its_spans_arrive(document: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    blocks = blocks_of(document, "python")

    def received() -> int:
        # All spans: those that the commands replay have an hour of times, and would leave a short window meanwhile.
        return int(pipeline.get("/metrics/span_count?kind=all&window=30d").json()["value"])

    def settled() -> bool:
        earlier = received()
        time.sleep(0.3)
        return received() == earlier

    pipeline.until(settled, "what was sent before is counted")
    before = received()
    for block in blocks:
        program = block.replace("nats://127.0.0.1:4222", pipeline.nats_url)
        program = program.replace("http://127.0.0.1:8700", pipeline.url)
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    # Each of these blocks sends one span.
    ways = ("reporter.report", "stream.publish", "http://127.0.0.1:8700/spans", "http://127.0.0.1:8700/v1/traces")
    reporting = [block for block in blocks if any(way in block for way in ways)]
    tracing = [block for block in blocks if 'Tracer("nats://' in block]
    least = before + len(reporting) + len(tracing)
    pipeline.until(lambda: received() >= least, f"the spans of {name_of(document)}")
    assert tracing or received() == least


def test_the_documented_check_of_a_signature_accepts_ours_and_refuses_one_with_another_key() -> None:
    (block,) = [b for b in blocks_of(ROOT / "docs/how-to/write-alert-rules.md", "python") if "is_genuine" in b]
    names: dict[str, object] = {}
    exec(block, names)
    is_genuine = names["is_genuine"]
    assert callable(is_genuine)
    assert is_genuine("key", b"body", signature("key", b"body"))
    assert not is_genuine("key", b"body", signature("another key", b"body"))


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) >= {"help", "setup", "pins", "serve", "test", "test-fast", "test-all", "check", "bench"}
    missing = [target for target in targets if f"make {target} " not in shown]
    assert not missing
