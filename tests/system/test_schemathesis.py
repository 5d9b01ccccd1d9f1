"""
Schemathesis reads the OpenAPI document of a running server and sends requests that it allows and that it forbids.

``make test`` sends about 100 cases, 4 for each operation, and ``make test-all`` about 2,000. ``TOKENTRACE_SEED``
repeats a run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.examples import PROFILE, SEED, WHOLE
from kit.pipeline import Pipeline

#: A 503 is allowed, because a service may be unavailable. A request that fits its schema may be refused, because a
#: schema cannot express every condition, for example that a metric exists.
_CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
positive_data_acceptance.enabled = false

# With Prefer: handling=lenient, 202 lists the spans that were rejected.
[[operations]]
include-name = "POST /spans"
checks.negative_data_rejection.expected-statuses = ["202", "4xx", "503"]
"""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


def test_every_answer_is_as_the_document_describes_it_and_none_is_a_failure(serving: Pipeline) -> None:
    cases = {"fast": "2", "ci": "4"}.get(PROFILE, "85")
    print(f"TOKENTRACE_SEED={SEED}, {cases} cases for each operation")
    config = serving.directory / "schemathesis.toml"
    config.write_text(_CONFIG)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
        *("run", f"{serving.url}/openapi.json", "--phases", "fuzzing", "--max-examples", cases),
        *("--seed", str(SEED), "--workers", "1", "--no-shrink", "--continue-on-failure", "--no-color"),
        # The response of this path has no end.
        *("--exclude-path", "/traces/tail"),
    ]
    ran = subprocess.run(command, cwd=serving.directory, capture_output=True, text=True, timeout=1800, check=False)
    assert ran.returncode == 0, ran.stdout[-12_000:] + ran.stderr[-2_000:]
    generated = re.search(r"(\d+) generated, \1 passed", ran.stdout)
    assert generated is not None, ran.stdout[-2_000:]
    print(f"{generated.group(0)}")
    assert int(generated.group(1)) >= (2_000 if WHOLE else 20)
    assert "Traceback" not in serving.log.read_text()
