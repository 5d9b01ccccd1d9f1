"""``tokentrace doctor``: of a file, of standard input, and of what a real exporter sends to it."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from kit.commands import Command, Ended, run_commands
from kit.environment import PATIENCE, plain_environment
from kit.otlp_fixtures import fixtures
from kit.pipeline import Pipeline, free_port, http
from kit.receiver import Receiver, Reply, Sent

FIRST = next(fixture for fixture in fixtures() if fixture.name.startswith("anthropic-sdk/"))
PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Doctor:
    """A ``tokentrace doctor --listen`` process; *lines* is what it has printed."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        words = ["doctor", "--listen", f":{self.port}", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokentrace_standalone", *words],
            env=plain_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.started = self.process.stderr.readline()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def shows(self, text: str) -> bool:
        """Wait until a line contains *text*; return False if none does."""
        deadline = time.monotonic() + 20 * PATIENCE
        while time.monotonic() < deadline:
            if any(text in line for line in self.lines):
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30 * PATIENCE)

    def close(self) -> None:
        """End the process if it still runs, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def listening(*flags: str) -> Iterator[Doctor]:
    doctor = Doctor(*flags)
    try:
        yield doctor
        assert doctor.stop() == 0
    finally:
        doctor.close()


def export(url: str, **options: Any) -> SpanExporter:
    """Send a call with the exporter of OpenTelemetry's SDK, and return the exporter."""
    exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", **options)
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("my.library", "1.2").start_as_current_span("chat gpt-4o") as span:
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.response.model": "gpt-4o",
                "gen_ai.response.id": "chatcmpl-0123456789abcdef",
                "gen_ai.usage.input_tokens": 1000,
                "gen_ai.usage.output_tokens": 100,
            }
        )
    provider.shutdown()
    return exporter


def run(directory: Path, *words: str) -> Ended:
    [ended] = run_commands([Command(directory, ["doctor", *words])])
    return ended


def test_a_file_is_shown_span_by_span_in_each_form(tmp_path: Path) -> None:
    forms = {"a.json": FIRST.body, "a.pb": FIRST.protobuf(), "a.gz": gzip.compress(FIRST.protobuf())}
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
    shown = {name: run(tmp_path, name) for name in forms}
    for name, ended in shown.items():
        assert (ended.code, ended.stderr) == (0, ""), name
        assert "  dialect   semconv\n" in ended.stdout
    rest = {ended.stdout.partition("\n")[2] for ended in shown.values()}
    assert len(rest) == 1
    heads = [ended.stdout.partition(":")[0] for ended in shown.values()]
    assert heads == ["traces (json)", "traces (protobuf)", "traces (protobuf, gzip)"]


def test_standard_input_and_json_are_for_programs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tokentrace_standalone", "doctor", "-", "--json"],
        input=FIRST.body,
        capture_output=True,
        cwd=tmp_path,
        env=plain_environment(),
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["signal"], found["encoding"], found["gzip"]) == ("traces", "json", False)
    assert [span["span_id"] for span in found["spans"]] == list(FIRST.expected["spans"])


def test_configured_prices_count(tmp_path: Path) -> None:
    model = next(span["model"] for span in FIRST.expected["spans"].values() if span["kind"] == "llm")
    prices = f"pricing: {{models: {{{model}: {{prompt_per_1m: 1, completion_per_1m: 1}}}}}}\n"
    (tmp_path / "tokentrace.yml").write_text(prices)
    (tmp_path / "a.json").write_bytes(FIRST.body)
    assert f"price: {model}@configuration" in run(tmp_path, "a.json").stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "doctor: name a FILE, - for standard input, or --listen HOST:PORT"),
        (["a.txt", "--listen", ":0"], "--listen: excludes FILE"),
        (["a.txt", "--forward", "http://127.0.0.1:9"], "--forward: needs --listen"),
        (["a.txt"], "body: is text and no OTLP: 'hello'"),
        (["missing.json"], "missing.json: No such file or directory"),
        (["--listen", "x:y"], "addr: 'x:y' is not host:port"),
        (["--listen", ":0", "--forward", "ftp://x"], "--forward: must start with http:// or https://"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, words: list[str], error: str) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    ended = run(tmp_path, *words)
    assert ended.code == (1 if "missing" in error else 2)
    assert ended.stderr.startswith(f"tokentrace: {error}")
    assert ended.stderr.count("\n") == 1


def test_what_an_exporter_sends_is_shown_as_it_comes(tmp_path: Path) -> None:
    with listening() as doctor:
        assert doctor.started == f"listening at {doctor.url}\n"
        export(doctor.url)
        assert doctor.shows("== POST /v1/traces")
        assert doctor.shows("traces (protobuf): 1 spans, 1 calls")
        assert doctor.shows("my.library 1.2, service shop")
        assert doctor.shows("response chatcmpl-0123456789abcdef")
        assert doctor.shows("cost      0.0035 USD, priced")


def test_answers_are_those_of_a_receiver_of_otlp() -> None:
    with listening() as doctor:
        json_type = {"Content-Type": "application/json"}
        good = http("POST", f"{doctor.url}/v1/traces", FIRST.body, json_type)
        assert (good.status, good.body, good.headers["content-type"]) == (200, b"{}", "application/json")
        good = http("POST", f"{doctor.url}/api/public/otel/v1/traces", FIRST.protobuf(), PROTOBUF)
        assert (good.status, good.body, good.headers["content-type"]) == (200, b"", "application/x-protobuf")
        bad = http("POST", f"{doctor.url}/v1/logs", FIRST.body, json_type)
        assert (bad.status, bad.json()["code"]) == (400, 3)
        assert bad.json()["message"] == "body: is an export of traces, which belongs to /v1/traces"
        bad = http("POST", f"{doctor.url}/v1/traces", b"hello", PROTOBUF)
        assert (bad.status, bad.headers["content-type"]) == (400, "application/x-protobuf")
        assert b"is text and no OTLP: 'hello'" in bad.body
        assert http("POST", f"{doctor.url}/spans", FIRST.body, json_type).status == 404
        odd = http("POST", f"{doctor.url}/v1/traces", b"x", {**PROTOBUF, "Content-Encoding": "br"})
        assert odd.status == 415
        assert doctor.shows("not OTLP: body: is text and no OTLP: 'hello'")


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_a_request_is_passed_on_unchanged_and_the_answer_too(compression: Compression) -> None:
    def answer(sent: Sent) -> Reply:
        return Reply(200, {"X-Receiver": "yes", "Content-Type": "application/x-protobuf"}, b"")

    with Receiver(answer) as receiver, Receiver() as direct, listening("--forward", f"{receiver.url}/base") as doctor:
        export(doctor.url, compression=compression, headers={"authorization": "Basic abc", "x-langfuse": "1"})
        export(direct.url, compression=compression, headers={"authorization": "Basic abc", "x-langfuse": "1"})
        [passed], [bare] = receiver.sent, direct.sent
        assert passed.path == "/base/v1/traces"
        unlike = ("host", "content-length", "connection")

        def kept(sent: Sent) -> list[tuple[str, str]]:
            return sorted((name.lower(), value) for name, value in sent.headers if name.lower() not in unlike)

        assert kept(passed) == kept(bare)
        data = gzip.decompress(passed.body) if compression is Compression.Gzip else passed.body
        request = ExportTraceServiceRequest.FromString(data)
        assert request.resource_spans[0].scope_spans[0].spans[0].name == "chat gpt-4o"
        assert doctor.shows("== POST /v1/traces, the receiver answered 200")
        body = b"\x00any bytes\xff"
        relayed = http("POST", f"{doctor.url}/a%2Fb/v1/traces?a=%20", body, PROTOBUF)
        assert relayed.headers["x-receiver"] == "yes"
        assert (receiver.sent[-1].path, receiver.sent[-1].body) == ("/base/a%2Fb/v1/traces?a=%20", body)


def test_an_answer_of_the_receiver_reaches_the_exporter() -> None:
    answers = iter([Reply(503, {"Retry-After": "1"}, b"busy"), Reply(200)])
    with Receiver(lambda sent: next(answers)) as receiver, listening("--forward", receiver.url) as doctor:
        export(doctor.url)
        # The exporter obeyed the answer of the receiver and sent the same bytes again.
        assert len(receiver.sent) == 2
        assert receiver.sent[0].body == receiver.sent[1].body
        assert doctor.shows("the receiver answered 503")
        assert doctor.shows("the receiver answered 200")


def test_a_receiver_that_is_away_is_a_503_that_may_be_tried_again() -> None:
    with listening("--forward", f"http://user:secret@127.0.0.1:{free_port()}", "--json") as doctor:
        answer = http("POST", f"{doctor.url}/v1/traces", FIRST.body, {"Content-Type": "application/json"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["code"] == 14
        assert "does not answer: ConnectError" in answer.json()["message"]
        assert "secret" not in doctor.started + answer.body.decode()
        assert doctor.shows('"forwarded":503')
        [line] = doctor.lines
        assert json.loads(line)["request"] == "POST /v1/traces"


def test_an_address_in_use_is_an_error(tmp_path: Path) -> None:
    with Receiver() as taken:
        ended = run(tmp_path, "--listen", f":{taken.port}")
    assert (ended.code, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith(f"tokentrace: cannot listen on 127.0.0.1:{taken.port}: ")


def test_what_passes_through_reaches_a_running_pipeline(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    with listening("--forward", pipeline.url) as doctor:
        export(doctor.url, compression=Compression.Gzip)
        assert doctor.shows("the receiver answered 200")

    def rows() -> Any:
        return pipeline.get("/coverage").json()["rows"]

    pipeline.until(lambda: len(rows()) == 1, "the call is stored")
    [row] = rows()
    assert (row["caller"], row["scope"], row["source"], row["calls"]) == ("shop", "my.library", "otlp", 1)
    assert (row["usage"]["calls"], row["response_id"]["calls"], row["session"]["calls"]) == (1, 1, 0)
    assert "set the attribute session.id" in next(gap["advice"] for gap in row["gaps"] if gap["what"] == "session")
    trace = pipeline.get("/traces?limit=1").json()
    assert trace["traces"][0]["total_cost_usd"] == 0.0035
    assert pipeline.stop() == 0
