"""``TraceMiddleware`` around FastAPI and Starlette under uvicorn: one root span a request, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from typing import Annotated, Any, NamedTuple

import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi import Path as PathName
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from kit.pipeline import http
from kit.reporting import until
from kit.web_apps import asgi_server, hang_up, wait_for
from tokentrace import BufferTransport, TraceMiddleware, Tracer, current

#: Lets a background task end.
GO = threading.Event()


class Served(NamedTuple):
    """A running application."""

    url: str
    buffer: BufferTransport
    tracer: Tracer


async def chunks(count: int) -> AsyncIterator[bytes]:
    """Yield *count* parts of a body, each in a span of its own."""
    for number in range(count):
        trace = current()
        assert trace is not None
        with trace.span(f"chunk {number}"):
            await asyncio.sleep(0.01)
        yield b"x" * 1000


def fastapi_app() -> FastAPI:
    """Return an application with a route for each thing that can happen."""
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: Annotated[str, PathName()], request: Request) -> dict[str, str]:
        with request.scope["tokentrace"].span("look", kind="tool"):
            await asyncio.sleep(0)
        return {"item": item}

    @app.get("/sync/{number}")
    def sync(number: int) -> dict[str, str]:
        trace = current()
        assert trace is not None
        with trace.span(f"sync {number}"):
            pass
        return {}

    @app.get("/nested/{number}")
    async def nested(number: int) -> dict[str, int]:
        async def deeper() -> None:
            span = current()
            assert span is not None
            async with span.span(f"task {number}"):
                await asyncio.sleep(0.001 * (number % 5))

        trace = current()
        assert trace is not None
        async with trace.span(f"outer {number}"):
            await asyncio.gather(deeper(), asyncio.create_task(deeper()))
        return {"number": number}

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(422, "no")

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("gone")

    @app.get("/stream/{count}")
    async def stream(count: int) -> StreamingResponse:
        return StreamingResponse(chunks(count))

    @app.get("/stream-breaks")
    async def stream_breaks() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            raise ValueError("half way")

        return StreamingResponse(parts())

    @app.get("/later")
    async def later(tasks: BackgroundTasks, request: Request) -> dict[str, str]:
        def work() -> None:
            with request.scope["tokentrace"].span("background"):
                assert GO.wait(20)

        tasks.add_task(work)
        return {}

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"traced": current() is not None}

    @app.websocket("/chat")
    async def chat(socket: WebSocket) -> None:
        if "refuse" in socket.query_params:
            await socket.close()
            return
        await socket.accept()
        async for text in socket.iter_text():
            with socket.scope["tokentrace"].span(f"said {text}"):
                await socket.send_text(text)
            if text == "fail":
                raise RuntimeError("chat failed")
            if text == "bye":
                await socket.close(1011)
                return

    return app


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[Served]:
    """Run *app* with the middleware."""
    buffer = BufferTransport()
    tracer = Tracer(buffer, source="shop")
    app.add_middleware(TraceMiddleware, tracer=tracer, **options)
    with asgi_server(app) as url:
        yield Served(url, buffer, tracer)


@pytest.fixture
def site() -> Iterator[Served]:
    with served(fastapi_app()) as site:
        yield site


class TestRoot:
    def test_a_request_is_a_root_span_with_the_spans_of_its_handler_below(self, site: Served) -> None:
        answer = http("GET", f"{site.url}/items/12345678?q=1&q=2&token=t-9", None, {"X-Session-Id": "s-1"})
        root, look = wait_for(site.buffer, 2)
        assert (root.name, root.kind, root.status, root.caller) == ("GET /items/{id}", "http", "ok", "shop")
        assert root.attributes == {
            "method": "GET",
            "path": "/items/12345678",
            "query": {"q": ["1", "2"], "token": "[REDACTED]"},
            "statusCode": 200,
        }
        assert (look.name, look.kind, look.parent_span_id, look.trace_id) == (
            "look",
            "tool",
            root.span_id,
            root.trace_id,
        )
        assert root.parent_span_id is None
        assert {span.session_id for span in (root, look)} == {"s-1"}
        assert (answer.headers["x-session-id"], answer.headers["x-trace-id"]) == ("s-1", root.trace_id)
        assert json.loads(answer.body) == {"item": "12345678"}

    def test_a_request_continues_the_trace_of_its_caller(self, site: Served) -> None:
        with site.tracer.trace("caller", session_id="s-2") as trace, trace.span("calls") as span:
            http("GET", f"{site.url}/sync/1", None, span.headers())
        calls, root, inner = wait_for(site.buffer, 3)
        assert {one.trace_id for one in (calls, root, inner)} == {trace.id}
        assert (root.parent_span_id, inner.parent_span_id) == (calls.span_id, root.span_id)
        assert {one.session_id for one in (root, inner)} == {"s-2"}

    def test_the_headers_of_cost_katana_name_the_session_and_the_parent(self, site: Served) -> None:
        headers = {"X-Trace-Session-Id": "s-3", "X-Parent-Trace-Id": "span-of-the-caller"}
        http("GET", f"{site.url}/sync/1", None, headers)
        root = wait_for(site.buffer, 2)[0]
        assert (root.session_id, root.parent_span_id) == ("s-3", "span-of-the-caller")

    def test_without_a_valid_session_header_the_session_is_a_new_one(self, site: Served) -> None:
        answers = [http("GET", f"{site.url}/sync/1", None, headers) for headers in ({}, {"x-session-id": "ü ü"})]
        sessions = {answer.headers["x-session-id"] for answer in answers}
        assert len(sessions) == 2
        assert {span.session_id for span in wait_for(site.buffer, 4)} == sessions

    @pytest.mark.parametrize(
        ("path", "status", "error"),
        [
            ("/items/1", 200, ""),
            ("/none", 404, "HTTP 404"),
            ("/refused", 422, "HTTP 422"),
            ("/sync/x", 422, "HTTP 422"),
        ],
    )
    def test_the_status_is_an_error_from_400_on(self, site: Served, path: str, status: int, error: str) -> None:
        assert http("GET", site.url + path).status == status
        root = wait_for(site.buffer, 2 if status == 200 else 1)[0]
        assert (root.attributes["statusCode"], root.error) == (status, error)
        assert root.status == ("error" if error else "ok")

    def test_an_exception_is_recorded_and_the_answer_is_that_of_the_framework(self, site: Served) -> None:
        assert http("GET", f"{site.url}/broken").status == 500
        (root,) = wait_for(site.buffer, 1)
        assert (root.status, root.error) == ("error", "KeyError: 'gone'")
        assert 'raise KeyError("gone")' in root.error_stack

    def test_around_the_whole_application_the_exception_is_recorded_with_the_500(self) -> None:
        buffer = BufferTransport()
        with asgi_server(TraceMiddleware(fastapi_app(), Tracer(buffer))) as url:
            assert http("GET", f"{url}/broken").status == 500
            (root,) = wait_for(buffer, 1)
        assert (root.attributes["statusCode"], root.error) == (500, "KeyError: 'gone'")

    def test_skipped_paths_have_no_trace_and_no_headers(self, site: Served) -> None:
        answer = http("GET", f"{site.url}/health")
        assert json.loads(answer.body) == {"traced": False}
        assert "x-trace-id" not in answer.headers
        assert http("GET", f"{site.url}/").status == 404
        assert http("GET", f"{site.url}/sync/1").status == 200
        assert {span.name for span in wait_for(site.buffer, 2)} == {"GET /sync/1", "sync 1"}

    def test_details_are_recorded_without_secrets(self) -> None:
        with served(fastapi_app(), include_details=True, session_header="X-Conversation") as site:
            headers = {
                "User-Agent": "curl/8",
                "Authorization": "Bearer abc",
                "Cookie": "sid=c-1",
                "X-Api-Key": "k-1",
                "X-Conversation": "s-9",
                "Accept": "a/b",
            }
            http("GET", f"{site.url}/items/1", None, headers)
            root = wait_for(site.buffer, 2)[0]
        assert root.session_id == "s-9"
        assert (root.attributes["ip"], root.attributes["userAgent"]) == ("127.0.0.1", "curl/8")
        assert root.attributes["headers"]["accept"] == "a/b"
        assert {root.attributes["headers"][name] for name in ("authorization", "cookie", "x-api-key")} == {"[REDACTED]"}
        assert root.attributes["responseHeaders"]["content-type"] == "application/json"


class TestNames:
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/users/42", "GET /users/42"),
            ("/users/12345678/orders", "GET /users/{id}/orders"),
            ("/v1/5f0c7d1e-6f0f-4a57-9a0e-3f0a6a1c2b3d", "GET /v1/{id}"),
            ("/c/0a1b2c3d4e5f/feedface/x", "GET /c/{id}/feedface/x"),
        ],
    )
    def test_ids_in_a_path_are_replaced(self, site: Served, path: str, name: str) -> None:
        http("GET", site.url + path)
        assert wait_for(site.buffer, 1)[0].name == name

    def test_route_names_are_the_templates_of_fastapi_also_for_streams_and_errors(self) -> None:
        with served(fastapi_app(), route_names=True) as site:
            for path in ("/items/1", "/stream/2", "/broken", "/none"):
                http("GET", site.url + path)
            names = [span.name for span in wait_for(site.buffer, 7) if span.kind == "http"]
        assert names == ["GET /items/{item}", "GET /stream/{count}", "GET /broken", "GET /none"]

    def test_route_names_are_the_templates_of_starlette_with_the_path_of_the_mount(self) -> None:
        async def hello(request: Request) -> PlainTextResponse:
            return PlainTextResponse(request.path_params["who"])

        inner = Starlette(routes=[Route("/hello/{who}", hello)])
        app = Starlette(routes=[Mount("/api", inner), Route("/hi/{who}", hello)])
        with served(app, route_names=True) as site:
            assert [http("GET", f"{site.url}/{path}/ann").body for path in ("api/hello", "hi")] == [b"ann", b"ann"]
            names = [span.name for span in wait_for(site.buffer, 2)]
        assert names == ["GET /api/hello/{who}", "GET /hi/{who}"]

    def test_a_function_may_choose_the_name(self) -> None:
        with served(fastapi_app(), name=lambda method, path: f"{path} by {method}") as site:
            http("GET", f"{site.url}/none")
            assert wait_for(site.buffer, 1)[0].name == "/none by GET"

    def test_a_name_has_no_address(self, site: Served) -> None:
        http("GET", f"{site.url}/users/ann@example.com")
        (root,) = wait_for(site.buffer, 1)
        assert (root.name, root.attributes["path"]) == ("GET /users/[EMAIL_REDACTED]", "/users/[EMAIL_REDACTED]")


class TestEnds:
    def test_a_stream_ends_with_its_last_part_and_its_spans_are_below_the_root(self, site: Served) -> None:
        assert len(http("GET", f"{site.url}/stream/3").body) == 3000
        root, *parts = wait_for(site.buffer, 4)
        assert [part.name for part in parts] == ["chunk 0", "chunk 1", "chunk 2"]
        assert {part.parent_span_id for part in parts} == {root.span_id}
        assert root.ended_ns >= max(part.ended_ns for part in parts)
        assert root.status == "ok"

    def test_a_stream_that_breaks_is_an_error(self, site: Served) -> None:
        with pytest.raises(IncompleteRead):
            http("GET", f"{site.url}/stream-breaks")
        (root,) = wait_for(site.buffer, 1)
        assert (root.status, root.error) == ("error", "ValueError: half way")

    def test_a_client_that_hangs_up_ends_the_root_once_and_is_no_error(self, site: Served) -> None:
        hang_up(site.url, "/stream/100000", after=5000)
        until(lambda: any(span.kind == "http" for span in site.buffer.spans), "a root span")
        (root,) = [span for span in site.buffer.spans if span.kind == "http"]
        assert (root.status, root.attributes["disconnected"]) == ("ok", True)

    def test_a_root_ends_before_the_background_tasks_which_stay_in_the_trace(self, site: Served) -> None:
        GO.clear()
        http("GET", f"{site.url}/later")
        (root,) = wait_for(site.buffer, 1)
        GO.set()
        background = wait_for(site.buffer, 2)[1]
        assert (background.name, background.parent_span_id) == ("background", root.span_id)
        assert background.trace_id == root.trace_id


def test_middlewares_of_starlette_around_and_below_change_nothing() -> None:
    """``BaseHTTPMiddleware`` runs what is below it in a task of its own."""
    app = fastapi_app()

    @app.middleware("http")
    async def below(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    buffer = BufferTransport()
    app.add_middleware(TraceMiddleware, tracer=Tracer(buffer), route_names=True)

    @app.middleware("http")
    async def around(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    with asgi_server(app) as url:
        assert len(http("GET", f"{url}/stream/2").body) == 2000
        root, *parts = wait_for(buffer, 3)
        assert (root.name, root.status) == ("GET /stream/{count}", "ok")
        assert [part.parent_span_id for part in parts] == [root.span_id] * 2
        buffer.reset()
        assert http("GET", f"{url}/broken").status == 500
        (root,) = wait_for(buffer, 1)
        assert (root.name, root.status, root.error) == ("GET /broken", "error", "KeyError: 'gone'")


def test_parallel_requests_do_not_mix_their_contexts(site: Served) -> None:
    def ask(number: int) -> str:
        answer = http("GET", f"{site.url}/nested/{number}", None, {"X-Session-Id": f"s-{number}"})
        return answer.headers["x-trace-id"]

    with ThreadPoolExecutor(20) as pool:
        traces = list(pool.map(ask, range(100)))
    spans = wait_for(site.buffer, 400)
    assert len(set(traces)) == 100
    for number, trace_id in enumerate(traces):
        own = [span for span in spans if span.trace_id == trace_id]
        assert {span.session_id for span in own} == {f"s-{number}"}
        by_name = {span.name: span for span in own}
        assert sorted(span.name for span in own) == sorted(
            [f"GET /nested/{number}", f"outer {number}", f"task {number}", f"task {number}"]
        )
        root, outer = by_name[f"GET /nested/{number}"], by_name[f"outer {number}"]
        assert outer.parent_span_id == root.span_id
        assert {span.parent_span_id for span in own if span.name == f"task {number}"} == {outer.span_id}


class TestWebSockets:
    def test_a_websocket_has_one_root_span(self, site: Served) -> None:
        with connect(f"ws{site.url[4:]}/chat") as socket:
            for text in ("a", "b"):
                socket.send(text)
                assert socket.recv() == text
            assert socket.response is not None
            trace_id = socket.response.headers["x-trace-id"]
        root, first, second = wait_for(site.buffer, 3)
        assert (root.name, root.kind, root.status, root.trace_id) == ("WEBSOCKET /chat", "http", "ok", trace_id)
        assert {first.parent_span_id, second.parent_span_id} == {root.span_id}

    @pytest.mark.parametrize(
        ("text", "error"), [("bye", "closed with code 1011"), ("fail", "RuntimeError: chat failed")]
    )
    def test_a_websocket_that_fails_is_an_error(self, site: Served, text: str, error: str) -> None:
        with connect(f"ws{site.url[4:]}/chat") as socket:
            socket.send(text)
            assert socket.recv() == text
            with pytest.raises(ConnectionClosed):
                socket.recv()
        root = wait_for(site.buffer, 2)[0]
        assert (root.status, root.error) == ("error", error)

    def test_a_websocket_that_is_refused_is_a_403(self, site: Served) -> None:
        with pytest.raises(InvalidStatus):
            connect(f"ws{site.url[4:]}/chat?refuse=1")
        (root,) = wait_for(site.buffer, 1)
        assert (root.status, root.attributes["statusCode"]) == ("error", 403)


class _Broken:
    """A tracer that fails at one point."""

    def __init__(self, tracer: Tracer, point: str) -> None:
        self._tracer, self._point = tracer, point

    def __getattr__(self, name: str) -> Any:
        if name == self._point:
            raise RuntimeError(f"{name} is broken")
        return getattr(self._tracer, name)


@pytest.mark.parametrize("point", ["extract", "start", "name"])
def test_a_fault_of_ours_is_logged_once_and_the_request_goes_on(
    point: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokentrace.client.middleware.request._known_faults", set())
    tracer: Any = _Broken(Tracer(BufferTransport()), point)

    def broken_name(method: str, path: str) -> str:
        raise RuntimeError("name is broken")

    app = fastapi_app()
    app.add_middleware(TraceMiddleware, tracer=tracer, name=broken_name if point == "name" else None)
    with asgi_server(app) as url:
        for _ in range(3):
            assert http("GET", f"{url}/nested2").status == 404
            assert http("GET", f"{url}/health").status == 200
    lines = [record for record in caplog.records if record.name == "tokentrace.middleware"]
    assert len(lines) == 1
    assert f"{point} is broken" in lines[0].message


@pytest.mark.parametrize("method", ["set", "end", "fail", "headers"])
def test_a_span_that_fails_changes_no_answer(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {}
    with asgi_server(fastapi_app()) as url:
        for path in ("/refused", "/broken", "/none"):
            plain[path] = http("GET", url + path)
    buffer = BufferTransport()
    app = fastapi_app()
    app.add_middleware(TraceMiddleware, tracer=Tracer(buffer))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"{method} is broken")

    monkeypatch.setattr("tokentrace.client.middleware.request._known_faults", set())
    monkeypatch.setattr(f"tokentrace.client.tracing.open_span.OpenSpan.{method}", broken)
    with asgi_server(app) as url:
        for path, expected in plain.items():
            answer = http("GET", url + path)
            assert (answer.status, answer.body) == (expected.status, expected.body)
