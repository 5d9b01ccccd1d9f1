"""
Real emitters of OpenTelemetry spans against a running ``tokentrace serve``: every call counts once, to the token.

Each is set up as its page in ``docs/how-to/otlp`` says. What an emitter does not tell is listed in ``kit.emitters``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.emitter_pairs import PAIRS
from kit.emitter_runs import ADDRESS, PAGES, CannotInstall, Environments, Run, SetUp, read_page, run
from kit.emitter_truth import problems
from kit.emitters import EMITTERS, Emitter
from kit.examples import WHOLE
from kit.llm_server import LlmServer
from kit.pipeline import Pipeline

#: The Anthropic SDK makes spans as soon as there is a provider of tracers; both are installed for other tests.
INSTALLED = SetUp(
    packages=(),
    exports={"OTEL_EXPORTER_OTLP_ENDPOINT": ADDRESS},
    command=("python", "app.py"),
    program="""
from anthropic import Anthropic
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

question = [{"role": "user", "content": "How is the weather in Rome?"}]
Anthropic().messages.create(model="claude-opus-4-5", max_tokens=1000, messages=question)
""",
)


CASES = [*((emitter, read_page(emitter)) for emitter in EMITTERS), *PAIRS]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("emitters"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    """Start one server for all emitters, because an answer with an id that was seen before is the same call."""
    with LlmServer() as running:
        yield running


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    return Environments(tmp_path_factory.mktemp("environments"))


def assert_right(emitter: Emitter, pipeline: Pipeline, ran: Run) -> None:
    """Check what is stored and what is counted of the calls of *emitter*."""
    spans: list[dict[str, Any]] = []
    wrong: list[str] = []

    def is_right() -> bool:
        lines = pipeline.get(f"/export?format=jsonl&caller={emitter.name}").body.splitlines()
        spans[:] = [json.loads(line) for line in lines]
        wrong[:] = problems(emitter, ran.told, spans)
        return not wrong

    try:
        # What is acknowledged is stored a moment later.
        pipeline.until(is_right, "stored", 5)
    except AssertionError:
        raise AssertionError(wrong) from None
    calls = [span for span in spans if span["kind"] in ("llm", "embedding")]
    cost_nusd = sum(round((span["cost_usd"] or 0) * 1e9) for span in calls)

    def counted() -> tuple[int, int]:
        path = f"/metrics?window=1h&caller={emitter.name}&kind="
        kinds = [pipeline.get(path + kind).json() for kind in ("llm", "embedding")]
        return sum(one["span_count"] for one in kinds), sum(
            round((one["cost"]["total_usd"] or 0) * 1e9) for one in kinds
        )

    pipeline.until(lambda: counted() == (len(calls), cost_nusd), f"counted: {len(calls)} calls, {cost_nusd}", 20)


def test_the_spans_of_the_installed_sdk_count_once_to_the_token(
    pipeline: Pipeline, server: LlmServer, tmp_path: Path
) -> None:
    emitter = Emitter("installed", "anthropic-sdk", providers=("anthropic",))
    ran = run(emitter, tmp_path, INSTALLED, server, pipeline.url, Path(sys.executable).parent)
    assert ran.refused == []
    assert_right(emitter, pipeline, ran)


def test_every_page_of_an_emitter_is_run() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == {emitter.page for emitter in EMITTERS}
    assert all(read_page(emitter).packages for emitter in EMITTERS)


@pytest.mark.skipif(not WHOLE, reason="make test-all only: it installs the emitters")
@pytest.mark.parametrize(("emitter", "set_up"), CASES, ids=[emitter.name for emitter, _ in CASES])
def test_every_call_of_an_emitter_counts_once_to_the_token(
    emitter: Emitter, set_up: SetUp, pipeline: Pipeline, server: LlmServer, environments: Environments
) -> None:
    try:
        folder = environments.make(set_up)
    except CannotInstall as exc:
        pytest.skip(f"{emitter.name} cannot be installed: {exc}")
    ran = run(emitter, folder, set_up, server, pipeline.url)
    assert set(ran.refused) <= set(emitter.calls_home)
    assert_right(emitter, pipeline, ran)
