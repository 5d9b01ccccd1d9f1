"""HTTP load: ``python -m bench.load PORT CONNECTIONS SECONDS REQUEST_FILE`` prints the requests per second."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.process import free_port, nats, pinned, python, started
from bench.row import Failed
from bench.spans import make_otlp, make_spans
from tokentrace.dialect.docs import render_span

_WARM_S, _SECONDS = 1.0, 3.0
#: Keys that a client need not send; without ids, each request has new spans.
_LEFT_OUT = ("trace_id", "span_id", "parent_span_id", "cost_usd")


def post(directory: Path, count: int) -> Path:
    """Return a file with a request that posts *count* spans, without ids and costs."""
    shown = [render_span(span) for span in make_spans(count)]
    docs = [{key: value for key, value in doc.items() if key not in _LEFT_OUT and value is not None} for doc in shown]
    body = json.dumps(docs if count > 1 else docs[0]).encode()
    file = directory / f"post{count}.http"
    head = b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    file.write_bytes(head % len(body) + body)
    return file


def otlp_post(directory: Path, count: int) -> Path:
    """Return a file with a request of OTLP, in protobuf, that posts *count* spans."""
    body = make_otlp(count)
    file = directory / f"otlp{count}.http"
    head = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
    file.write_bytes(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return file


def get(directory: Path) -> Path:
    """Return a file with a request that a bare route answers with an empty object."""
    file = directory / "get.http"
    file.write_bytes(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return file


def request_rate(directory: Path, request: Path, connections: int, *, bare: bool) -> float:
    """
    Return the requests per second that ingest, or a bare route, answers on one core; the load comes from another core.

    Args:
        directory: Directory to create, for the data of the broker.

    Raises:
        Failed: The broker or the server did not start, or the load generator ended with an error.
    """
    with _serving(directory, bare=bare) as (port, _):
        generate(port, connections, _WARM_S, request)
        return generate(port, connections, _SECONDS, request)


def ingest(directory: Path) -> contextlib.AbstractContextManager[tuple[int, subprocess.Popen[bytes]]]:
    """Start a broker and ingest, which keep their data in the new *directory*; yield the port and process of ingest."""
    return _serving(directory, bare=False)


@contextlib.contextmanager
def _serving(directory: Path, *, bare: bool) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    directory.mkdir()
    with nats(directory) as url:
        port = free_port()
        words = (
            python("bench.bare.route", url, str(port))
            if bare
            else python("tokentrace_ingest", "--nats", url, "--addr", f"127.0.0.1:{port}")
        )
        with started(words, f"http://127.0.0.1:{port}/readyz", cores={0}) as process:
            yield port, process


def generate(port: int, connections: int, seconds: float, request: Path) -> float:
    """Send *request* over *connections* for *seconds*, and return how many a second were answered."""
    words = python("bench.load", str(port), str(connections), str(seconds), str(request))
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, preexec_fn=pinned({1}))
    if done.returncode:
        raise Failed(f"the load generator ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


async def _connection(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if head[9:12] not in (b"200", b"202"):
            raise RuntimeError(head.decode())
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if length:
            await reader.readexactly(length)
        done += 1
    writer.close()
    return done


async def _main(port: int, connections: int, seconds: float, request: bytes) -> float:
    began = time.perf_counter()
    done = await asyncio.gather(*(_connection(port, request, began + seconds) for _ in range(connections)))
    return sum(done) / (time.perf_counter() - began)


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        port, connections, seconds, file = sys.argv[1:]
        print(runner.run(_main(int(port), int(connections), float(seconds), Path(file).read_bytes())))
