"""
No prompt and no answer of any captured OTLP request is kept by a ``serve`` that keeps metadata only.

The search covers the files of the streams, the files and tables of the span store, the snapshots and the log. With
redaction off the same search finds every text, which proves that it works.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path

import pytest

from kit import otlp
from kit.environment import GUARD
from kit.json_spans import fresh
from kit.leaks import UNCOMPRESSED, dump_snapshots, dump_tables, search
from kit.otlp import ENCODINGS, LOGS, TRACES
from kit.otlp_content import otlp_files, texts_of
from kit.otlp_fixtures import Fixture, fixtures
from kit.pipeline import Pipeline

#: A fact of nearly all requests: a search that does not find it in a place does not work there.
FACT = b"gpt-4o-mini-2024-07-18"
PLACES = ("streams", "store", "tables", "snapshots", "log")


def needles() -> dict[bytes, str]:
    """Return text -> itself and the requests that hold it."""
    found: dict[str, list[str]] = {}
    for path in otlp_files():
        for text in texts_of(path):
            found.setdefault(text, []).append(f"{path.parent.name}/{path.name}")
    return {text.encode(): f"{text!r} of {', '.join(names[:5])}" for text, names in found.items()}


class Outcome:
    """
    What is found after all captured requests were sent to a ``serve`` with the redaction mode *mode*.

    Attributes:
        spans: How many spans are stored.
        texts: Place -> descriptions of the prompts and answers that occur there.
        facts: The places in which ``FACT`` occurs.
    """

    def __init__(self, directory: Path, mode: str) -> None:
        shim = directory / "shim"
        shim.mkdir(parents=True)
        (shim / "sitecustomize.py").write_text(UNCOMPRESSED)
        env = {"TOKENTRACE_REDACTION_MODE": mode, "PYTHONPATH": os.pathsep.join([str(shim), str(GUARD)])}
        pipeline = Pipeline(directory / "run", env=env)
        pipeline.start()
        try:
            send_all(pipeline)
            self.spans = len(pipeline.get("/export?format=jsonl").body.splitlines())
        finally:
            # A reader saves a snapshot when it stops, so the search covers what came last.
            assert pipeline.stop() == 0
        (directory / "tables").mkdir()
        dump_tables(sorted(pipeline.data.rglob("*.duckdb")), directory / "tables" / "all")
        assert asyncio.run(dump_snapshots(pipeline.data, directory / "snapshots")) > 0
        places = {
            "streams": pipeline.data / "nats",
            "store": pipeline.data / "spans",
            "tables": directory / "tables",
            "snapshots": directory / "snapshots" / "objects",
            "log": pipeline.log,
        }
        assert tuple(places) == PLACES
        assert all(place.exists() for place in places.values())
        assert pipeline.log.stat().st_size > 0
        self.texts = {name: search(needles(), place) for name, place in places.items()}
        self.facts = {name for name, place in places.items() if search({FACT: "fact"}, place)}


def send_all(pipeline: Pipeline) -> None:
    """Send each captured request in both encodings, with ids of its own in each; log records belong to their spans."""
    numbers: dict[Path, int] = {}
    traces: set[str] = set()
    for path in otlp_files():
        is_logs = path.name.endswith(".logs.json")
        case = path.with_name(path.name.replace(".logs.json", ".json"))
        number = numbers.setdefault(case, len(numbers))
        for turn, encoding in enumerate(ENCODINGS):
            fixture = Fixture(path.stem, path.read_bytes(), {"spans": {}})
            request, _ = otlp.unique(fixture, len(ENCODINGS) * number + turn + 1, time.time_ns())
            answer = otlp.post(pipeline, request, encoding, LOGS if is_logs else TRACES)
            otlp.assert_stored(answer, encoding, LOGS if is_logs else TRACES)
            traces |= {span["traceId"].lower() for span in otlp.spans_of(request)}
    last = fresh("last")
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([otlp.call()], last)), "protobuf")
    pipeline.until(lambda: pipeline.get(f"/metrics?window=1h&caller={last}").json()["span_count"] == 1, "counted")
    for trace in traces:
        pipeline.until(partial(is_stored, pipeline, trace), f"{trace} stored")


def is_stored(pipeline: Pipeline, trace: str) -> bool:
    return pipeline.get(f"/traces/{trace}").status == 200


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("private"), "metadata_only")


@pytest.fixture(scope="module")
def unredacted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("off"), "off")


@pytest.mark.parametrize("place", PLACES)
def test_no_prompt_or_answer_of_any_captured_request_is_found(private: Outcome, place: str) -> None:
    assert sorted(private.texts[place]) == []


def test_all_spans_and_their_facts_are_kept(private: Outcome, unredacted: Outcome) -> None:
    assert private.spans == unredacted.spans > 2 * len(fixtures())
    assert private.facts == unredacted.facts == set(PLACES) - {"log"}


def test_with_redaction_off_the_same_search_finds_every_text(unredacted: Outcome) -> None:
    assert len(needles()) > 10
    for place in ("streams", "store", "tables"):
        assert sorted(set(needles().values()) - unredacted.texts[place]) == [], place
