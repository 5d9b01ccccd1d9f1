"""Request bodies that are too large, cut off or badly compressed are refused, and memory stays bounded."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.cases import check_all
from kit.http_errors import refused
from kit.json_spans import fresh, json_call
from kit.pipeline import Answer, Pipeline
from kit.reported_spans import assert_exact

MIB = 1024 * 1024
CALL = json.dumps(json_call()).encode()
GZIP = {"Content-Encoding": "gzip"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("limits"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def memory_bytes(pipeline: Pipeline, field: str) -> int:
    """Return a field of ``/proc/PID/status``: ``VmRSS`` is the memory now, ``VmHWM`` the most there ever was."""
    assert pipeline.process is not None
    lines = Path(f"/proc/{pipeline.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def gzip_bomb() -> bytes:
    """Return a gigabyte of zeros as gzip: one block of 16 MiB, 64 times."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(16 * MIB)
    first = pack.compress(zeros) + pack.flush(zlib.Z_FULL_FLUSH)
    repeated = pack.compress(zeros) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + repeated * 63


def test_a_gzip_bomb_is_a_413_and_takes_little_memory(pipeline: Pipeline) -> None:
    before, bomb = memory_bytes(pipeline, "VmRSS"), gzip_bomb()
    for path in ("/spans", "/mist"):
        assert "decompress" in refused(pipeline.post(path, bomb, GZIP), 413), path
        assert memory_bytes(pipeline, "VmHWM") - before < 200 * MIB, path
    assert_exact(pipeline, {})


def post_sized(pipeline: Pipeline, size: int) -> Answer:
    """Post *size* zeros with a Content-Length; the answer may come before the end."""
    connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/spans")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(size // MIB):
                connection.send(bytes(MIB))
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def post_chunked(pipeline: Pipeline, chunk: bytes, count: int, head: bytes = b"", **headers: str) -> Answer:
    """Post *head* and *count* times *chunk* without a Content-Length; the answer may come before the end."""
    connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/spans")
        for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in [head] * bool(head) + [chunk] * count:
                connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            connection.send(b"0\r\n\r\n")
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def test_a_body_of_100_mb_is_a_413_with_and_without_a_content_length(pipeline: Pipeline) -> None:
    before = memory_bytes(pipeline, "VmRSS")
    refused(post_sized(pipeline, 100 * MIB), 413)
    refused(post_chunked(pipeline, b" " * MIB, 100), 413)
    assert memory_bytes(pipeline, "VmHWM") - before < 200 * MIB
    assert_exact(pipeline, {})


def test_a_content_length_over_the_limit_is_refused_before_the_body_arrives(pipeline: Pipeline) -> None:
    for length in ("99999999999999999999", "8388609"):
        connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/spans")
            connection.putheader("Content-Length", length)
            connection.endheaders(b"{}")
            response = connection.getresponse()
            assert response.status in (400, 413), length
            response.read()
    assert_exact(pipeline, {})


def test_a_client_that_disconnects_within_its_body_leaves_no_span(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    body = json.dumps(json_call(caller=caller)).encode()
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", pipeline.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/spans")
            connection.putheader("Content-Length", str(len(body) + 10))
            connection.endheaders(body)
    assert_exact(pipeline, {caller: 0})


def test_bytes_after_a_gzip_body_are_refused(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    packed = gzip.compress(json.dumps(json_call(caller=caller)).encode())
    refused(pipeline.post("/spans", packed + b"rubbish", GZIP), 400)
    refused(post_chunked(pipeline, bytes(MIB), 16, packed, Content_Encoding="gzip"), 400, 413)
    assert_exact(pipeline, {caller: 0})


INVALID_GZIP = {
    "truncated": gzip.compress(CALL * 100)[:-9],
    "header only": gzip.compress(CALL)[:10],
    "half a header": gzip.compress(CALL)[:5],
    "not compressed": CALL,
    "empty": b"",
    "wrong checksum": gzip.compress(CALL)[:-8] + bytes(8),
    "zlib": zlib.compress(CALL),
    "random bytes": random.Random(1).randbytes(5000),
    "gzip of random bytes": gzip.compress(random.Random(2).randbytes(5000)),
    "gzip of gzip": gzip.compress(gzip.compress(CALL)),
}


def test_invalid_gzip_is_a_400(pipeline: Pipeline) -> None:
    def check(body: bytes) -> None:
        refused(pipeline.post("/spans", body, GZIP), 400)
        refused(pipeline.post("/mist", body, GZIP), 400)

    check_all(INVALID_GZIP, check)
    assert_exact(pipeline, {})
