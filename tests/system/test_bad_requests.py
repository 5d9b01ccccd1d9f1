"""Bad requests: none is answered with a 5xx other than 503 with Retry-After, and none leaves a traceback in the log."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.pipeline import Pipeline, SeparateServices

SPAN = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "trace_id": "t", "span_id": "s", "session_id": "se"}
RULE = {"name": "r", "metric": "error_rate", "op": "gt", "threshold": 1, "window": "1h"}

POSTED = (
    "/spans",
    "/mist",
    "/scores",
    "/alerts",
    "/alerts/r/silence",
    "/api/sessions/se/end",
    "/api/traces/start",
    "/api/traces/ingest",
    "/api/traces/messages",
    "/api/traces/x/end",
)
GOT = (
    "/metrics",
    "/metrics/prometheus",
    "/stats",
    "/traces",
    "/traces/recent",
    "/traces/t",
    "/traces/t/spans/s/receipt",
    "/export",
    "/rejected",
    "/alerts",
    "/alerts/r/status",
    "/alerts/r/deliveries",
    "/api/sessions",
    "/api/sessions/summary",
    "/api/sessions/se/graph",
    "/api/sessions/se/details",
    "/health",
    "/healthz",
    "/readyz",
    "/internal/metrics",
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("bad"))
    pipeline.start()
    try:
        assert pipeline.post("/spans", SPAN).status == 202
        assert pipeline.post("/alerts", RULE).status == 201
        pipeline.until(lambda: pipeline.get("/traces/t").status == 200, "stored")
        yield pipeline
    finally:
        pipeline.stop()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeparateServices]:
    """Start separate services whose api forwards posted records to ingest."""
    pipeline = SeparateServices(tmp_path_factory.mktemp("apart"))
    pipeline.env["TOKENTRACE_INGEST_URL"] = f"http://127.0.0.1:{pipeline.ports['ingest']}"
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


@pytest.fixture(autouse=True)
def quiet(serving: Pipeline) -> Iterator[None]:
    """Check after each test that the pipeline is ready and that the test left no traceback in the log."""
    before = len(serving.log.read_text())
    yield
    assert serving.get("/readyz").status == 200
    new = serving.log.read_text()[before:]
    assert "Traceback" not in new, new[:3000]


def exchange(port: int, request: bytes, *, leave: Callable[[socket.socket], None] = lambda _: None) -> bytes:
    """Send the bytes *request*, call *leave* with the socket, and return the bytes of the response."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
        client.sendall(request)
        leave(client)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while client.fileno() >= 0 and (part := client.recv(1 << 16)):
                answer += part
        return answer


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(method: str, target: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ", 2)[1])


def is_no_failure(answer: bytes) -> bool:
    """Return True if the status is below 500, or 503 with Retry-After: a service is then unavailable or behind."""
    return status_of(answer) < 500 or (status_of(answer) == 503 and b"\nretry-after: " in answer)


def field(name: str, value: bytes) -> bytes:
    """Return a JSON body with *value* in the field *name* and valid values in the other fields that routes require."""
    known = {"metric": b'"error_rate"', "op": b'"gt"', "threshold": b"1", "window": b'"1h"', "name": b'"n"'}
    fields = {**known, "trace_id": b'"t"', name: value}
    return b"{" + b",".join(b'"%s":%s' % (key.encode(), held) for key, held in fields.items()) + b"}"


UNREADABLE = {
    "not UTF-8": b"\xff\xfe",
    "not UTF-8 in a value": b'{"name":"\xff\xfe","duration":"\xc3\x28"}',
    "not UTF-8 in a key": b'{"\xff":1}',
    "half a surrogate pair": rb'{"name":"\ud800","duration":"\ud800","error":"\udfff"}',
    "half a surrogate pair in a key": rb'{"\ud800":1}',
    "a raw NUL": b'{"name":"\x00"}',
    "UTF-16": '{"name":"x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"name":"x"}',
    "arrays without end": b"[" * 100_000,
    "nothing but a number": b"1",
    "nothing but text": b'"x"',
    "NaN": b'{"threshold":NaN}',
}
#: Bodies that routes for spans take as what they mean.
LENIENT = ("half a surrogate pair", "half a surrogate pair in a key", "a byte order mark")
#: Route -> the fields that get each of VALUES; other routes get them in OTHER_FIELDS.
FIELDS = {
    "/alerts": ("name", "threshold", "window", "filter", "delivery", "group_by", "min_spans"),
    "/alerts/r/silence": ("duration",),
    "/scores": ("value", "trace_id"),
    "/mist": ("name", "trace_id"),
}
OTHER_FIELDS = ("name", "error", "trace_id")
VALUES = {
    "NUL": rb'"a\u0000b"',
    "deep": b"[" * 900 + b"]" * 900,
    "deep objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "5,000 digits": b"9" * 5000,
    "1e999": b"1e999",
    "2**70": b"%d" % 2**70,
    "an array": b'[1,"x",null]',
    "an object": b'{"a":{"b":[]}}',
    "a number": b"7",
    "long": b'"' + b"x" * 60_000 + b'"',
}


def together(port: int, requests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each of *requests* with its response; 24 are sent at a time, because some take a second."""
    requests = list(requests)
    with ThreadPoolExecutor(24) as senders:
        yield from zip(requests, senders.map(lambda request: exchange(port, request), requests), strict=True)


@pytest.mark.parametrize("path", POSTED)
def test_an_invalid_body_is_refused_with_an_error(serving: Pipeline, path: str) -> None:
    for name, body in UNREADABLE.items():
        for sent, headers in ((body, ()), (gzip.compress(body, 1), ("Content-Encoding: gzip",))):
            answer = exchange(serving.port, post(path, sent, *headers))
            # The routes that end a span or a session ignore unknown fields, so they may accept an object. Routes for
            # spans read leniently.
            lenient = path.startswith("/api/traces/") and name in LENIENT
            if not lenient and (not path.endswith("/end") or not body.startswith(b"{")):
                assert status_of(answer) in (400, 413), (name, headers, answer[:300])
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"], name
            assert status_of(answer) < 500, (name, headers, answer[:300])


@pytest.mark.parametrize("path", ["/alerts", "/alerts/r/silence", "/api/sessions/se/end"])
def test_the_error_for_a_body_that_is_not_utf_8_says_so(serving: Pipeline, path: str) -> None:
    answer = exchange(serving.port, post(path, b'{"name":"\xff\xfe","duration":"\xff","error":"\xff"}'))
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert status_of(answer) == 400
    assert error.startswith("body: ")
    assert "utf-8" in error


def test_an_unusual_value_of_a_field_causes_no_failure(serving: Pipeline) -> None:
    fields = [(path, name) for path in POSTED for name in FIELDS.get(path, OTHER_FIELDS)]
    bodies = [post(path, field(name, value)) for path, name in fields for value in VALUES.values()]
    for request, answer in together(serving.port, bodies):
        assert is_no_failure(answer), (request[:300], answer[:300])


SEGMENTS = ("%ff", "%00", "%", "%zz", "%ed%a0%80", "%c0%af", "%2F", "..%2f..", "%0d%0a", "\xff", "x" * 5000)


def test_an_unusual_path_causes_no_failure(serving: Pipeline) -> None:
    targets = {
        target
        for segment in SEGMENTS
        for path in (*GOT, *POSTED)
        for target in (f"{path}/{segment}", path.replace("/r/", f"/{segment}/"), path.replace("/t/", f"/{segment}/"))
    }
    requests = [post(target, b'{"duration":"1s"}') for target in targets]
    requests += [ask(method, target) for method in ("GET", "DELETE") for target in targets]
    for request, answer in together(serving.port, requests):
        assert is_no_failure(answer), (request[:100], answer[:300])


PARAMETERS = (
    *("model", "caller", "status", "name", "kind", "session", "user", "q", "since", "until", "min_cost", "attr.x"),
    *("limit", "offset", "cursor", "window", "groupby", "step", "sort", "order", "format", "page", "from", "to"),
    *("userId", "minCost", "maxSpans", "attr.%ff", "%ff", "%00"),
)
QUERIES = ("%ff", "%00", "%zz", "%ed%a0%80", "9" * 400, "-1", "1e999", "nan", "%2B", "9999-12-31T23:59:59Z", "106751d")


def test_an_unusual_value_of_a_parameter_causes_no_failure(serving: Pipeline) -> None:
    paths = ("/metrics", "/traces", "/export", "/rejected", "/api/sessions", "/alerts/r/deliveries")
    asked = [ask("GET", f"{path}?{name}={value}") for path in paths for name in PARAMETERS for value in QUERIES]
    for request, answer in together(serving.port, asked):
        assert is_no_failure(answer), (request[:100], answer[:300])


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


LEAVING: dict[str, Callable[[socket.socket], None]] = {
    "half-closed": lambda client: client.shutdown(socket.SHUT_WR),
    "reset": reset,
    "closed": lambda client: client.close(),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
def test_a_client_that_disconnects_early_leaves_no_traceback(
    serving: Pipeline, leave: Callable[[socket.socket], None]
) -> None:
    good = json.dumps(SPAN).encode()
    kept = post("/spans", good).replace(b"Connection: close\r\n", b"")
    reads = b"".join(ask("GET", path).replace(b"Connection: close\r\n", b"") for path in GOT)
    requests = [post(path, good)[:-3] for path in POSTED]
    requests += [kept * 20, reads, reads + kept[:-3], post("/spans", b"")[:-4], b"GET /metr"]
    chunked = b"POST /spans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"
    requests += [chunked, ask("GET", "/traces/tail")]
    for request in requests * 2:
        exchange(serving.port, request, leave=leave)
    time.sleep(0.3)  # so that requests in progress end before the log is checked


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_the_offer_of_another_protocol_is_ignored_and_the_body_is_read(serving: Pipeline, protocol: str) -> None:
    """Java's HTTP client offers h2c with each request."""
    offer = (f"Upgrade: {protocol}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    body = json.dumps({**SPAN, "span_id": f"offers {protocol}"}).encode()
    kept = post("/spans", body, *offer).replace(b"Connection: close\r\n", b"")
    for request in (post("/spans", body, *offer), kept * 3 + ask("GET", "/stats")):
        with socket.create_connection(("127.0.0.1", serving.port), timeout=20) as client:
            client.sendall(request)
            answers = b""
            while answers.count(b"HTTP/1.1 2") < request.count(b" HTTP/1.1\r\n"):
                part = client.recv(1 << 16)
                assert part, answers
                answers += part
            assert answers.count(b"HTTP/1.1 202") == request.count(b"POST /spans")


HEADERS = ("Idempotency-Key", "X-Service-Name", "X-Session-Id", "X-Project-Id", "Content-Type", "Authorization")


def test_odd_headers_and_targets_that_the_api_forwards_cause_no_5xx(apart: SeparateServices) -> None:
    for name in HEADERS:
        for value in ("\xff\xfe", "\xc3\xa4", "x" * 5000, "a\x01b", "a\x7fb", ""):
            answer = exchange(apart.port, post("/spans", json.dumps(SPAN).encode(), f"{name}: {value}"))
            assert status_of(answer) < 500, (name, value[:10], answer[:300])
    for segment in SEGMENTS:
        answer = exchange(apart.port, post(f"/api/traces/{segment}/end?{segment}", b"{}"))
        assert status_of(answer) < 500, (segment, answer[:300])
    for name, body in UNREADABLE.items():
        assert status_of(exchange(apart.port, post("/spans", body))) == 400, name


def test_a_half_sent_request_does_not_keep_services_from_stopping(apart: SeparateServices) -> None:
    with socket.create_connection(("127.0.0.1", apart.port)) as client:
        client.sendall(post("/spans", b"x" * 50)[:-10])
        apart.until(lambda: apart.get("/healthz").status == 200, "asked")
        assert apart.stop() == 0
    assert "Traceback" not in apart.log.read_text()
