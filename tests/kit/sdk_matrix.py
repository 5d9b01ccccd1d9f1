"""
The matrix: each case runs with an untouched client and with tracked ones, and both must see the same.

It runs in pytest with the newest SDKs, and as a program, ``python -m kit.sdk_matrix openai``, in environments with
older ones; so it needs nothing but the SDK and the base installation.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from kit.llm_server import Got, LlmServer, Script
from tokentrace import BufferTransport, Span, Tracer, instrument, uninstrument
from tokentrace.client.track.faults import faults
from tokentrace.records import check_span, settle_usage

#: One client that is tracked; all clients of the SDK; one client that asks for the usage of streams.
WAYS = ("client", "sdk", "asking")
_UNCLOSED = "asyncio: an error occurred during closing of asynchronous generator"
#: Headers that differ from call to call.
_OPTION = b',"stream_options":{"include_usage":true}'
_VOLATILE = ("idempotency", "host", "user-agent", "x-stainless-read-timeout")


@dataclass(frozen=True)
class Case:
    """
    A use of a client.

    Attributes:
        name: What it shows.
        use: What the application does: a function, or a coroutine function, of the client and the server. It returns
            what it sees.
        script: Makes what the server does.
        span: Fields of the only span, of which ``attributes`` need not be all; None = there is no span.
        asking: Fields that differ where the usage of streams is asked for.
        client: The name of the client's class.
        options: Further arguments of the client.
        leaves_generators: Whether it leaves asynchronous generators to asyncio, which often logs that it cannot close
            them, for untouched clients too.
    """

    name: str
    use: Callable[[Any, LlmServer], Any] | Callable[[Any, LlmServer], Awaitable[Any]]
    span: Mapping[str, Any] | None
    client: str
    script: Callable[[], Script] = Script
    asking: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    leaves_generators: bool = False


class Outcome(NamedTuple):
    """What a case has led to: what the application saw, what the server got, the spans, and lines of the log."""

    seen: Any
    requests: list[Got]
    spans: list[Span]
    errors: list[str]


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


def seen(value: Any) -> Any:
    """Return *value* in a form that can be compared: its type and content."""
    if isinstance(value, BaseException):
        details = [getattr(value, name, None) for name in ("status_code", "body", "request_id", "code", "type")]
        return [type(value).__qualname__, type(value).__module__, str(value), details]
    if isinstance(value, (list, tuple)):
        return [seen(item) for item in value]
    if hasattr(value, "model_dump_json"):
        shown = json.loads(value.model_dump_json(exclude_unset=True))
        return [type(value).__qualname__, shown, getattr(value, "_request_id", None)]
    return value if isinstance(value, (str, int, float, bytes, dict, type(None))) else type(value).__qualname__


def run(case: Case, sdk: str, server: LlmServer, way: str) -> Outcome:
    """Run *case* once; *way* is plain, or one of ``WAYS``."""
    module = importlib.import_module(sdk)
    server.start(case.script())
    buffer = BufferTransport()
    tracer = Tracer(buffer)
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    try:
        if way == "sdk":
            instrument(sdk, tracer=tracer)
        given = _use(case, module, server, tracer, way)
        gc.collect()
    finally:
        if way == "sdk":
            uninstrument(sdk)
        logging.getLogger().removeHandler(errors)
    return Outcome(given, server.requests, buffer.spans, errors.lines)


def _use(case: Case, module: Any, server: LlmServer, tracer: Tracer, way: str) -> Any:
    def make() -> Any:
        address = {"base_url": f"{server.url}/v1" if module.__name__ == "openai" else server.url}
        if "azure_endpoint" in case.options:
            address = {}
        options = {
            name: value.format(url=server.url) if isinstance(value, str) else value
            for name, value in case.options.items()
        }
        # Reading the certificates takes longer than all the rest.
        kind = "DefaultAsyncHttpxClient" if asyncio.iscoroutinefunction(case.use) else "DefaultHttpxClient"
        http_client = getattr(module, kind)(verify=False)
        client = getattr(module, case.client)(**{"api_key": "k", "http_client": http_client, **address, **options})
        if way in ("client", "asking"):
            instrument(client, tracer=tracer, stream_usage_hosts=[server.host] if way == "asking" else ())
        return client

    async def run_async() -> Any:
        client = make()
        try:
            return seen(await case.use(client, server))
        except Exception as exc:  # noqa: BLE001 - what the application would see is compared
            return seen(exc)
        finally:
            await _settled()
            await client.close()

    if asyncio.iscoroutinefunction(case.use):
        return asyncio.run(run_async())
    client = make()
    try:
        return seen(case.use(client, server))
    except Exception as exc:  # noqa: BLE001 - what the application would see is compared
        return seen(exc)
    finally:
        client.close()


async def _settled() -> None:
    """Wait until the generators that were dropped are closed, which asyncio does in tasks of their own."""
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=5)


def problems(case: Case, sdk: str, server: LlmServer) -> Iterator[str]:
    """Yield what differs between an untouched and a tracked client, and what is wrong about the span."""
    plain = run(case, sdk, server, "plain")
    for way in WAYS:
        for problem in _problems(case, way, plain, partial(run, case, sdk, server, way)):
            yield f"[{way}] {problem}"


def _problems(case: Case, way: str, plain: Outcome, track: Callable[[], Outcome]) -> Iterator[str]:
    faults_before = faults()
    tracked = track()
    if tracked.seen != plain.seen:
        yield f"the application sees {tracked.seen!r}, not {plain.seen!r}"
    if faults() != faults_before:
        yield f"{faults() - faults_before} faults"
    logged = [line for line in tracked.errors if not (case.leaves_generators and line.startswith(_UNCLOSED))]
    if logged:
        yield f"the log says {logged}"
    asks = way == "asking" and bool(case.asking)
    sent = [_sent(got, hides_option=asks) for got in tracked.requests]
    if sent != [_sent(got) for got in plain.requests]:
        yield f"the server gets {sent}, not {[_sent(got) for got in plain.requests]}"
    expected = None if case.span is None else {**case.span, **(case.asking if way == "asking" else {})}
    if len(tracked.spans) != (expected is not None):
        yield f"there are {len(tracked.spans)} spans: {tracked.spans}"
    elif expected is not None:
        yield from _differences(tracked.spans[0], expected)


def _sent(got: Got, *, hides_option: bool = False) -> Any:
    body: Any = got.body
    headers = {
        name: value
        for name, value in got.headers.items()
        if not name.startswith(_VOLATILE) and "idempotency" not in name
    }
    if hides_option and got.method == "POST":
        assert body.count(_OPTION) == 1, body
        body = body.replace(_OPTION, b"")
        headers["content-length"] = str(len(body))
    if b"form-data; name=" in got.body:
        # The boundary between the parts of a form is random.
        boundary = headers.pop("content-type").partition("boundary=")[2].encode()
        body = got.body.replace(boundary, b"boundary")
        headers.pop("content-length")
    return got.method, got.path, headers, body


def _differences(span: Span, expected: Mapping[str, Any]) -> Iterator[str]:
    check_span(settle_usage(span))
    for name, value in expected.items():
        found = getattr(span, name)
        if name == "attributes":
            found = {key: found.get(key) for key in value}
        if name == "error" and value and found.startswith(value):
            continue  # the rest is the text of the SDK, which differs from version to version
        if found != value:
            yield f"{name} is {found!r}, not {value!r}"
    if not 0 < span.started_ns <= span.ended_ns or span.ttft_ns > span.latency_ns:
        yield f"times: {span.started_ns}, {span.ended_ns}, {span.latency_ns}, {span.ttft_ns}"


def main(sdk: str) -> int:
    """Run all cases of *sdk* in all ways, print what is wrong, and return how many cases it is."""
    cases: list[Case] = importlib.import_module(f"kit.sdk_cases_{sdk}").CASES
    wrong = 0
    importlib.import_module(sdk)
    # What is loaded by now need not be searched for garbage again and again.
    gc.freeze()
    with LlmServer() as server:
        for case in cases:
            found = list(problems(case, sdk, server))
            wrong += bool(found)
            for text in found:
                print(f"{case.name}: {text}", flush=True)
    print(
        f"{len(cases)} cases in {len(WAYS)} ways with {sdk} {importlib.import_module(sdk).__version__}: {wrong} wrong"
    )
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1]), 1))
