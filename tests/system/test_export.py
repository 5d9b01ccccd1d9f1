"""``GET /export`` returns the matching spans, the same in both formats, and streams a large response."""

from __future__ import annotations

import asyncio
import csv
import http.client
import io
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kit.builders import make_batch, make_span
from kit.fleet import Fleet
from tokentrace.bus import jetstream, subjects
from tokentrace.records import Batch, encode_batches

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"]
ODD = [*FORMULAS, 'quote " and, comma', "line\r\nbreak\n", "ünï 日本 🎉", "'=kept", " =x", "a\x00b", ""]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("export"), ["ingest", "aggregator", "api"])
    running.start()
    assert running.get("api", "/export").body == b""
    assert list(csv.reader(io.StringIO(running.get("api", "/export?format=csv").body.decode())))[1:] == []
    answer = running.send("ingest", "POST", "/spans", SPANS)
    assert answer.status == 202, answer.body
    running.until(lambda: running.get("api", "/traces").json()["total"] == len(SPANS), "stored")
    yield running
    assert set(running.stop().values()) == {0}


def numbered_span(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "trace_id": f"t{number}",
        "span_id": f"s{number}",
        "kind": "llm",
        "model": ("gpt-4o", "claude-sonnet-4-5")[number % 2],
        "provider": ("openai", "anthropic")[number % 2],
        "caller": f"c{number % 3}",
        "prompt_tokens": number,
        "comp_tokens": 1,
        "latency_ms": 10.5 * number,
        "started_at": f"2026-03-15T14:00:{number:02}.000Z",
        "status": ("ok", "error", "timeout")[number % 3],
        "attributes": {"step": number % 2, "ok": number % 2 == 0, "nested.key": "x"},
        "session_id": f"session{number % 2}",
        "user_id": f"user{number % 2}",
        **({"cost_usd": number / 100} if number % 4 else {}),
        **fields,
    }


SPANS = [
    numbered_span(number, name=text, error=text, attributes={"text": text, "n": -1.5, "yes": True})
    for number, text in enumerate(ODD)
] + [numbered_span(number) for number in range(len(ODD), 40)]
FILTERS = [
    "",
    "model=gpt-4o",
    "caller=c1&status=error",
    "provider=anthropic",
    "kind=llm",
    "kind=tool",
    "name=%3D1%2B1",
    "session=session1",
    "user=user0",
    "min_cost=0.2",
    "min_latency=300",
    "q=QUOTE",
    "attr.step=1",
    "attr.ok=true&attr.nested.key=x",
    "since=2026-03-15T14:00:20Z",
    "until=2026-03-15T14:00:05Z",
    "since=2026-03-15T14:00:05Z&until=2026-03-15T14:00:06.000Z",
    "since=2027-01-01T00:00:00Z",
]


def lines(fleet: Fleet, query: str) -> list[dict[str, Any]]:
    answer = fleet.get("api", f"/export?{query}")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


def table(fleet: Fleet, query: str) -> list[dict[str, str]]:
    answer = fleet.get("api", f"/export?format=csv&{query}")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="spans.csv"'
    return list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))


def csv_field(value: Any) -> str:
    """Return the CSV field for a value of the JSON lines."""
    if value is None or value == {}:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, str):
        return "'" + value if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return str(value)


@pytest.mark.parametrize("query", FILTERS)
def test_an_export_holds_the_matching_spans_and_both_formats_agree(fleet: Fleet, query: str) -> None:
    spans = lines(fleet, query)
    traces = fleet.get("api", f"/traces?limit=200&{query}").json()["trace_ids"]
    assert sorted(span["trace_id"] for span in spans) == sorted(traces)
    rows = table(fleet, query)
    assert len(rows) == len(spans)
    for span, row in zip(spans, rows, strict=True):
        attributes = span.pop("attributes", {})
        assert (json.loads(row.pop("attributes")) if attributes else row.pop("attributes")) == (attributes or "")
        assert span.keys() <= row.keys()
        assert {name: row[name] for name in row} == {name: csv_field(span.get(name)) for name in row}


def test_json_lines_show_spans_as_traces_do(fleet: Fleet) -> None:
    by_trace = {span["trace_id"]: span for span in lines(fleet, "")}
    assert len(by_trace) == len(SPANS)
    for trace, span in by_trace.items():
        (shown,) = fleet.get("api", f"/traces/{trace}").json()["spans"]
        assert shown.pop("depth") == 0
        assert span.pop("trace_id") == trace
        assert span == shown


def test_no_csv_field_starts_like_a_formula(fleet: Fleet) -> None:
    fields = [text for row in table(fleet, "") for text in row.values()]
    assert not any(text.startswith(("=", "+", "-", "@", "\t", "\r")) for text in fields)
    assert {"'" + formula for formula in FORMULAS} <= set(fields)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("format=xml", "format: 'xml' is neither jsonl nor csv"),
        ("format=", "format: '' is neither jsonl nor csv"),
        ("limit=5", "limit: unknown parameter; allowed are "),
        ("status=bad", "status: 'bad' is none of"),
        ("since=now", "since: "),
        ("min_cost=x", "min_cost: "),
        ("format=csv&format=csv", "format: given twice"),
    ],
)
def test_an_invalid_parameter_is_refused_by_name(fleet: Fleet, query: str, named: str) -> None:
    answer = fleet.get("api", f"/export?{query}")
    assert answer.status == 400
    assert answer.json()["error"].startswith(named)
    assert fleet.send("api", "POST", "/export", {}).status == 405


MANY, TEXT = 50_000, "0123456789abcdef" * 256


def publish(fleet: Fleet, batches: Sequence[Batch]) -> None:
    """Publish *batches* to the log without ingest."""

    async def run() -> None:
        async with jetstream.connect(fleet.broker.url, name="test") as bus:
            for batch in batches:
                await bus.publish(subjects.spans("default", 0), encode_batches([batch]))

    asyncio.run(run())


@pytest.mark.story
def test_a_large_export_is_streamed_and_takes_less_memory_than_its_size(fleet: Fleet) -> None:
    project = uuid.uuid4().hex
    now = time.time_ns()
    fields = {"span_id": "1", "caller": "many", "arrived_ns": now}
    spans = [
        make_span(trace_id=f"{project}.{number}", attributes={"n": number, "t": TEXT}, **fields)
        for number in range(MANY)
    ]
    size = 500
    publish(
        fleet,
        [
            make_batch(*spans[start : start + size], id=f"{project}.{start}", sequence=0, arrived_ns=now)
            for start in range(0, MANY, size)
        ],
    )
    fleet.until(lambda: stored(fleet) >= MANY + len(SPANS), "stored", 60)
    assert lines(fleet, "caller=many&attr.n=49999")
    pid = fleet.running["api"].pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = peak_bytes(pid)
    connection = http.client.HTTPConnection("127.0.0.1", fleet.ports["api"], timeout=60)
    connection.request("GET", "/export?caller=many")
    answer = connection.getresponse()
    assert answer.headers["transfer-encoding"] == "chunked"
    numbers, rest, total = [], b"", 0
    while piece := answer.read1(1024 * 1024):
        total += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        numbers += [json.loads(line)["attributes"]["n"] for line in whole]
    connection.close()
    assert rest == b""
    assert numbers == list(range(MANY))
    assert total > MANY * len(TEXT)
    assert peak_bytes(pid) - before < total


def stored(fleet: Fleet) -> int:
    return int(fleet.get("api", "/health").json()["stored_spans"])


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, in bytes, since the peak was last reset."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
