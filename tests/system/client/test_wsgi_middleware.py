"""``WsgiTraceMiddleware`` around Flask under the server of Werkzeug and under gunicorn, and as WSGI demands it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.validate import validator

import pytest
from flask import Flask, Response, abort, request, stream_with_context

from kit.environment import plain_environment
from kit.pipeline import free_port, http
from kit.reporting import until
from kit.web_apps import hang_up, wait_for, wsgi_server
from tokentrace import BufferTransport, Tracer, WsgiTraceMiddleware, current


class Served(NamedTuple):
    """A running application."""

    url: str
    buffer: BufferTransport
    tracer: Tracer


def flask_app() -> Flask:
    """Return an application with a route for each thing that can happen."""
    app = Flask(__name__)

    @app.get("/items/<item>")
    def item(item: str) -> dict[str, str]:
        with request.environ["tokentrace.trace"].span("look", kind="tool"):
            return {"item": item}

    @app.get("/nested/<int:number>")
    def nested(number: int) -> dict[str, int]:
        trace = current()
        assert trace is not None
        with trace.span(f"outer {number}") as outer, outer.span(f"inner {number}"):
            return {"number": number}

    @app.get("/refused")
    def refused() -> Response:
        abort(422)

    @app.get("/broken")
    def broken() -> Response:
        raise KeyError("gone")

    @app.get("/stream/<int:count>")
    def stream(count: int) -> Response:
        def parts() -> Iterator[bytes]:
            for number in range(count):
                trace = current()
                assert trace is not None
                with trace.span(f"chunk {number}"):
                    yield b"x" * 1000

        return Response(stream_with_context(parts()))

    @app.get("/stream-breaks")
    def stream_breaks() -> Response:
        def parts() -> Iterator[bytes]:
            yield b"one"
            raise ValueError("half way")

        return Response(parts())

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"traced": current() is not None}

    return app


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[Served]:
    """Run *app* with the middleware."""
    buffer = BufferTransport()
    tracer = Tracer(buffer, source="shop")
    app.wsgi_app = WsgiTraceMiddleware(app.wsgi_app, tracer, **options)
    with wsgi_server(app) as url:
        yield Served(url, buffer, tracer)


@pytest.fixture
def site() -> Iterator[Served]:
    with served(flask_app()) as site:
        yield site


def test_a_request_is_a_root_span_that_continues_the_trace_of_its_caller(site: Served) -> None:
    with site.tracer.trace("caller", session_id="s-1") as trace, trace.span("calls") as span:
        answer = http("GET", f"{site.url}/items/12345678?q=%C3%BC&token=t-9", None, span.headers())
    calls, root, look = wait_for(site.buffer, 3)
    assert (root.name, root.kind, root.status, root.caller) == ("GET /items/{id}", "http", "ok", "shop")
    assert root.attributes == {
        "method": "GET",
        "path": "/items/12345678",
        "query": {"q": "ü", "token": "[REDACTED]"},
        "statusCode": 200,
    }
    assert (root.parent_span_id, look.parent_span_id) == (calls.span_id, root.span_id)
    assert {one.trace_id for one in (calls, root, look)} == {trace.id}
    assert {one.session_id for one in (root, look)} == {"s-1"}
    assert (answer.headers["x-session-id"], answer.headers["x-trace-id"]) == ("s-1", root.trace_id)
    assert json.loads(answer.body) == {"item": "12345678"}


@pytest.mark.parametrize(
    ("path", "status"), [("/items/1", 200), ("/none", 404), ("/refused", 422), ("/broken", 500), ("/%C3%BC", 404)]
)
def test_the_status_is_an_error_from_400_on(site: Served, path: str, status: int) -> None:
    assert http("GET", site.url + path).status == status
    root = wait_for(site.buffer, 2 if status == 200 else 1)[0]
    assert root.attributes["statusCode"] == status
    assert (root.status, root.error) == (("ok", "") if status == 200 else ("error", f"HTTP {status}"))
    assert root.attributes["path"] == path.replace("%C3%BC", "ü")


def test_an_exception_that_reaches_the_server_is_recorded(site: Served) -> None:
    def broken(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise KeyError("gone")

    buffer = BufferTransport()
    with wsgi_server(WsgiTraceMiddleware(broken, Tracer(buffer))) as url:
        assert http("GET", f"{url}/x").status == 500
        (root,) = wait_for(buffer, 1)
    assert (root.status, root.error) == ("error", "KeyError: 'gone'")


@pytest.mark.parametrize(("first", "second"), [("200 OK", "500 Error"), ("404 Not Found", "200 OK")])
def test_the_last_status_that_an_application_gives_counts(first: str, second: str) -> None:
    def twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(first, [])
        try:
            raise ValueError("too late")
        except ValueError:
            start_response(second, [], sys.exc_info())
        return [b""]

    buffer = BufferTransport()
    with wsgi_server(WsgiTraceMiddleware(twice, Tracer(buffer))) as url:
        assert http("GET", f"{url}/x").status == int(second[:3])
        (root,) = wait_for(buffer, 1)
    assert (root.attributes["statusCode"], root.status) == (int(second[:3]), "error" if second[0] == "5" else "ok")


def test_a_stream_ends_with_its_last_part_and_its_spans_are_below_the_root(site: Served) -> None:
    assert len(http("GET", f"{site.url}/stream/3").body) == 3000
    root, *parts = wait_for(site.buffer, 4)
    assert [part.name for part in parts] == ["chunk 0", "chunk 1", "chunk 2"]
    assert {part.parent_span_id for part in parts} == {root.span_id}
    assert (root.status, "disconnected" in root.attributes) == ("ok", False)


def test_a_stream_that_breaks_is_an_error_and_a_client_that_hangs_up_is_none(site: Served) -> None:
    with contextlib.suppress(HTTPException, OSError):
        http("GET", f"{site.url}/stream-breaks")
    (root,) = wait_for(site.buffer, 1)
    assert (root.status, root.error) == ("error", "ValueError: half way")
    site.buffer.reset()
    hang_up(site.url, "/stream/1000000", after=5000)
    until(lambda: any(span.kind == "http" for span in site.buffer.spans), "a root span")
    (root,) = [span for span in site.buffer.spans if span.kind == "http"]
    assert (root.status, root.attributes["disconnected"]) == ("ok", True)


def test_skipped_paths_have_no_trace(site: Served) -> None:
    answer = http("GET", f"{site.url}/health")
    assert json.loads(answer.body) == {"traced": False}
    assert "x-trace-id" not in answer.headers
    assert len(site.buffer) == 0


def test_route_names_are_the_rules_of_flask_and_details_have_no_secrets() -> None:
    with served(flask_app(), route_names=True, include_details=True) as site:
        for path in ("/items/1", "/none"):
            http("GET", site.url + path, None, {"Cookie": "sid=c-1", "User-Agent": "curl/8"})
        first, second = [span for span in wait_for(site.buffer, 3) if span.kind == "http"]
    assert (first.name, second.name) == ("GET /items/<item>", "GET /none")
    assert (first.attributes["ip"], first.attributes["userAgent"]) == ("127.0.0.1", "curl/8")
    assert first.attributes["headers"]["cookie"] == "[REDACTED]"
    assert first.attributes["responseHeaders"]["Content-Type"] == "application/json"


def test_parallel_requests_do_not_mix_their_contexts(site: Served) -> None:
    def ask(number: int) -> str:
        answer = http("GET", f"{site.url}/nested/{number}", None, {"X-Session-Id": f"s-{number}"})
        return answer.headers["x-trace-id"]

    with ThreadPoolExecutor(20) as pool:
        traces = list(pool.map(ask, range(100)))
    spans = wait_for(site.buffer, 300)
    for number, trace_id in enumerate(traces):
        own = {span.name: span for span in spans if span.trace_id == trace_id}
        assert own.keys() == {f"GET /nested/{number}", f"outer {number}", f"inner {number}"}
        assert own[f"inner {number}"].parent_span_id == own[f"outer {number}"].span_id
        assert own[f"outer {number}"].parent_span_id == own[f"GET /nested/{number}"].span_id
        assert {span.session_id for span in own.values()} == {f"s-{number}"}


def test_the_middleware_keeps_to_wsgi_and_leaves_no_context_behind() -> None:
    buffer = BufferTransport()

    def inner(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Trace-Id", "own")])
        return [b"one"]

    checked: Any = validator(WsgiTraceMiddleware(validator(inner), Tracer(buffer)))
    answers: list[Any] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/app",
        "PATH_INFO": "/x",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answers.append((status, dict(headers)))
        return lambda data: None

    body = checked(environ, start_response)
    assert current() is None
    assert list(body) == [b"one"]
    body.close()
    assert current() is None
    assert answers[0][1]["X-Trace-Id"] == "own"
    (root,) = wait_for(buffer, 1)
    assert (root.name, root.status) == ("GET /app/x", "ok")


#: A module for gunicorn.
MODULE = """
from flask import Flask, request
from tokentrace import Tracer, WsgiTraceMiddleware

app = Flask(__name__)


@app.get("/users/<user>")
def user(user):
    with request.environ["tokentrace.trace"].span("look", kind="tool"):
        return {"user": user}


app.wsgi_app = WsgiTraceMiddleware(app.wsgi_app, Tracer("file://" + "SPANS"), route_names=True)
"""


def test_under_gunicorn_with_recycled_workers_and_a_preloaded_application_no_span_is_lost(tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    (tmp_path / "shop.py").write_text(MODULE.replace("SPANS", str(spans)))
    port = free_port()
    arguments = f"--bind 127.0.0.1:{port} --workers 2 --threads 4 --max-requests 20 --preload --no-control-socket"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments.split(), "shop:app"],
            cwd=tmp_path,
            env=plain_environment(),
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}/users"

        def is_up() -> bool:
            with contextlib.suppress(OSError):
                return http("GET", f"http://127.0.0.1:{port}/health").status == 404
            return False

        until(is_up, "gunicorn")
        traces = []
        for number in range(100):
            # A worker that is being recycled may refuse a connection that waited for it.
            with contextlib.suppress(OSError):
                traces.append(http("GET", f"{url}/u{number}").headers["x-trace-id"])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert len(traces) >= 90
    stored = [json.loads(line) for line in spans.read_text().splitlines()]
    names = {trace_id: sorted(span["name"] for span in stored if span["trace_id"] == trace_id) for trace_id in traces}
    lost = {trace_id: found for trace_id, found in names.items() if found != ["GET /users/<user>", "look"]}
    assert not lost, (tmp_path / "log").read_text()
