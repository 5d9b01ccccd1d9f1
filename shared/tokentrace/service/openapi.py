"""The OpenAPI document of a service, built once at start, and the application that serves it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tokentrace.service.admit import Admission, Door
from tokentrace.service.compressed import Compressed
from tokentrace.service.contract import (
    MARK,
    Answer,
    Content,
    ContractRoute,
    Failure,
    Operation,
    Router,
    SdkFailure,
    operation,
    operation_of,
)
from tokentrace.service.health import Health, Sample
from tokentrace.service.health_operations import health_router
from tokentrace.service.login_operations import SESSION_PATH, login_router
from tokentrace.service.otlp_answers import MEDIA, OTLP_PATHS, RpcStatus, code_of, encode_status
from tokentrace.service.otlp_operations import Protobuf
from tokentrace.service.reference import REFERENCE_PATHS, reference_router
from tokentrace.service.web import (
    EXCEPTION_HANDLERS,
    SDK_PATHS,
    HotPathApp,
    HotPaths,
)
from tokentrace.version import __version__

OPENAPI_PATH = "/openapi.json"
_SCHEME = "bearer"
_REF = "#/components/schemas/{name}"
_DESCRIPTION = """\
Token-level observability for LLM calls.

The body of an error is `{"error": text}`, and the text says which input is wrong and why; below `/api/` the text is
also in `message`. Where OTLP is posted, the body is a `google.rpc.Status` in the encoding of the request. `Retry-After`
of a 503 says after how many seconds to try again. Unknown query parameters are refused with 400, but ignored where
spans or messages are sent, by `/traces/recent`, by health checks and by the page. `HEAD`
is answered wherever `GET` is. Times are RFC 3339 with a time zone, durations are written `90s`, `2h30m` or `7d`, money
is in US dollars.
"""
#: Tag -> description, in the order in which the document lists them.
TAGS: Mapping[str, str] = {
    "spans": "Send spans.",
    "OTLP": "Send spans and log records as OpenTelemetry's exporters and collectors do.",
    "Cost Katana": "Send spans and messages as Cost Katana's clients do.",
    "metrics": "Cost, tokens, latency, errors and quality over a window.",
    "traces": "Stored spans and traces: search, follow, export, score and delete.",
    "sessions": "Conversations, as Cost Katana's clients request them.",
    "alerts": "Rules, their state and their deliveries.",
    "prices": "How the price of a model is found, and what a call costs.",
    "service": "Health, the service's own metrics and this document.",
}
_ERRORS: Mapping[int, str] = {
    400: "The request is invalid; the text names the field or parameter.",
    401: "The token or key is missing, wrong or ended.",
    403: "The Host or the Origin is not one of this server's, or the key does not allow this.",
    404: "What the path or the body names does not exist.",
    409: "The name or id is in use, or the state has changed meanwhile.",
    413: "The body, the batch or one span in it is too large.",
    415: "The Content-Type is not that of the body, or the Content-Encoding is neither absent nor gzip.",
    422: "The Idempotency-Key was used with another body within the last 24 hours.",
    429: "Too many wrong tokens, or too many requests of a key; try again after Retry-After seconds.",
    503: "The broker, the store or another service is unavailable or behind; try again after Retry-After seconds.",
}
_UNAUTHORIZED = "missing or wrong bearer token"
_FOREIGN = "Host: 'example.com' is not served here; http_server.hosts lists more names"
_UNTYPED = "Content-Type: 'text/plain' is not taken, send application/json"


def build_document(routes: Sequence[BaseRoute], *, token_required: bool, open_paths: Collection[str]) -> dict[str, Any]:
    """
    Return the OpenAPI 3.1 document of *routes*; of two routes with one path and method the first is documented.

    Args:
        token_required: Requests need a token or a key. If not, the document shows it as optional.
        open_paths: The paths that need no token.
    """
    documented = _first_of_each(routes)
    document = get_openapi(
        title="tokentrace",
        version=__version__,
        description=_DESCRIPTION,
        routes=documented,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    _add_parameter_examples(document["paths"], documented)
    entries = [
        (path, entry, operation_of(entry)) for path, item in document["paths"].items() for entry in item.values()
    ]
    schemas = _Schemas(types for _, _, declared in entries for types in _types_of(declared))
    for path, entry, declared in entries:
        del entry[MARK]
        is_open = path in open_paths
        errors = {403: _FOREIGN} | ({415: _UNTYPED} if declared.body else {}) | dict(declared.errors)
        if not is_open:
            errors[401] = _UNAUTHORIZED
        entry["security"] = [] if is_open else [{_SCHEME: []}] if token_required else [{}, {_SCHEME: []}]
        entry["responses"] = {str(answer.status): {} for answer in declared.answers}
        for answer in declared.answers:
            _add_answer(entry["responses"][str(answer.status)], answer, schemas)
        for status in sorted(errors):
            entry["responses"].setdefault(str(status), _failure(path, status, errors[status], schemas))
        if declared.body:
            entry["requestBody"] = {
                "required": declared.body_required,
                "content": {content.media: _content(content, schemas) for content in declared.body},
            }
        for header in declared.headers:
            schema: dict[str, Any] = {"type": "string"}
            if header.max_length is not None:
                schema["maxLength"] = header.max_length
            entry.setdefault("parameters", []).append(
                {
                    "name": header.name,
                    "in": "header",
                    "required": False,
                    "description": header.description,
                    "schema": schema,
                    "example": header.example,
                }
            )
    scheme = {
        "type": "http",
        "scheme": "bearer",
        "description": "`http_server.auth_token`, or a key with the scope that the request needs.",
    }
    document["components"] = {"schemas": schemas.components, "securitySchemes": {_SCHEME: scheme}}
    return document


def _first_of_each(routes: Sequence[BaseRoute]) -> list[APIRoute]:
    seen: set[tuple[str, str]] = set()
    documented = []
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            keys = {(route.path_format, method) for method in route.methods or ()}
            if not keys & seen:
                documented.append(route)
            seen |= keys
    return documented


def _add_parameter_examples(paths: dict[str, Any], routes: Sequence[APIRoute]) -> None:
    """Add the examples of query parameters, which FastAPI drops if the schema of a field is given by hand."""
    for route in routes:
        if not isinstance(route, ContractRoute) or route.params is None:
            continue
        examples = {info.alias or name: info.examples for name, info in route.params.model_fields.items()}
        for method in route.methods or ():
            for parameter in paths[route.path_format][method.lower()]["parameters"]:
                if parameter["in"] == "query" and examples[parameter["name"]]:
                    parameter["schema"]["examples"] = examples[parameter["name"]]


class _Schemas:
    """The JSON schemas of msgspec types, which refer to common components."""

    def __init__(self, types: Iterable[Any]) -> None:
        # The keys are text, because an annotated type with a schema of its own is not hashable.
        kinds = {repr(kind): kind for kind in [Failure, SdkFailure, RpcStatus, Protobuf, *types]}
        schemas, components = msgspec.json.schema_components(kinds.values(), ref_template=_REF)
        self._of = dict(zip(kinds, schemas, strict=True))
        self.components = components

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of *kind*; for a tuple, a schema that accepts each of its members."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(member) for member in kind]}
        return self._of[repr(kind)]


def _types_of(declared: Operation) -> Iterator[Any]:
    for kind in (*(answer.type for answer in declared.answers), *(content.type for content in declared.body)):
        if kind is not None:
            yield from kind if isinstance(kind, tuple) else (kind,)


def _add_answer(entry: dict[str, Any], answer: Answer, schemas: _Schemas) -> None:
    entry.setdefault("description", answer.description)
    if answer.headers:
        entry["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.type is not None:
        entry.setdefault("content", {})[answer.media] = {"schema": schemas.of(answer.type), "example": answer.example}


def _content(content: Content, schemas: _Schemas) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in content.examples.items()}
    return {"schema": schemas.of(content.type), **({"examples": examples} if examples else {})}


def _failure(path: str, status: int, text: str, schemas: _Schemas) -> dict[str, Any]:
    entry: dict[str, Any] = {"description": _ERRORS[status], "content": _failure_content(path, status, text, schemas)}
    if status in (429, 503):
        entry["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}, "example": "1"}}
    if status == 401:
        entry["headers"] = {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}}
    return entry


def _failure_content(path: str, status: int, text: str, schemas: _Schemas) -> dict[str, Any]:
    if path in OTLP_PATHS:
        code = code_of(status)
        encoded = encode_status("protobuf", code, text).decode("latin-1")
        return {
            MEDIA["json"]: {"schema": schemas.of(RpcStatus), "example": {"code": code, "message": text}},
            MEDIA["protobuf"]: {"schema": schemas.of(Protobuf), "example": encoded},
        }
    sdk = path.startswith(SDK_PATHS)
    example = {"error": text, "message": text} if sdk else {"error": text}
    return {"application/json": {"schema": schemas.of(SdkFailure if sdk else Failure), "example": example}}


def _document_router(document: Callable[[], bytes]) -> Router:
    router = Router("service")

    @router.get(
        OPENAPI_PATH,
        **operation(
            "getOpenapi",
            "This document",
            "The OpenAPI 3.1 document of every route that this server answers.",
            Answer(dict[str, Any], "The document.", {"openapi": "3.1.0"}),
        ),
    )
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    return router


def _open_paths(routes: Iterable[BaseRoute]) -> list[str]:
    return [
        route.path
        for route in routes
        if isinstance(route, ContractRoute) and not operation_of(route.openapi_extra or {}).needs_token
    ]


def make_documented_app(
    routes: Sequence[BaseRoute],
    hot: HotPaths,
    health: Callable[[], Health],
    samples: Callable[[], Iterable[Sample]],
    admission: Admission,
) -> ASGIApp:
    """
    Return the FastAPI application of *routes*, with health, ``/openapi.json`` and ``/docs``.

    ``/docs`` and its files contain nothing of this installation and need no token; ``/openapi.json`` needs the token.

    Args:
        hot: Endpoints that are looked up before any routing.
        admission: Checks every request before it reaches a route.
    """
    encoded = b""
    every = [
        *routes,
        *health_router(health, samples).routes,
        *_document_router(lambda: encoded).routes,
        *reference_router(OPENAPI_PATH).routes,
        *login_router(admission.login).routes,
    ]
    admission = admission.opening([*REFERENCE_PATHS, SESSION_PATH, *_open_paths(every)])
    encoded = msgspec.json.encode(
        build_document(every, token_required=admission.needs_token, open_paths=admission.open_paths)
    )
    app = FastAPI(
        title="tokentrace",
        version=__version__,
        openapi_url=None,
        # FastAPI instruments itself if the process has an OpenTelemetry SDK, but this server has metrics of its own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers=dict(EXCEPTION_HANDLERS),
    )
    # Do not use include_router, which matches every request twice.
    app.router.routes.extend(every)
    return Door(Compressed(HotPathApp(app, hot)), admission)
