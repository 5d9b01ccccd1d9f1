"""
The contract of a route: what it declares for the OpenAPI document, and how it reads a request.

How it works. A route is a function on a ``Router``, declared with ``operation(...)``: its id, texts, body, answers and
errors. FastAPI reads the function's signature for the document, but it neither reads requests nor writes answers here,
because its own parsing costs twice as much and accepts what this API refuses (a parameter given twice, ``limit=1.0``).
``ContractRoute`` calls the function itself with at most three kinds of arguments: the request, names from the path, and
one ``Annotated[Model, Query()]``, where the model derives from ``Params``. Any other argument is a TypeError at start,
because otherwise it would silently never get a value.

``Params`` reads the query string: it refuses a parameter that is unknown, or given twice without being declared as
repeated, with its name in the error text, and passes each value to a parser of tokentrace, whose error text is sent to
the client.

Bodies and answers are msgspec Structs: the Struct that decodes a body or encodes an answer is also its JSON schema.
FastAPI cannot read Structs, so ``operation`` keeps them in a list and leaves a number in the route, which
``tokentrace.service.openapi`` replaces by the schemas when the document is built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter
from fastapi.params import Query as QueryMark
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, request_response
from starlette.types import Receive, Scope, Send

from tokentrace.errors import Rejected, shorten

T = TypeVar("T")
_ESCAPED_SLASH = re.compile("%2[fF]")
#: Stands for an escaped slash while a path is matched; no decoded path contains it.
_SLASH = "\ud82f"
#: A name in a path that stands for full stops: a client removes ``.`` and ``..`` from a path, even if they are escaped,
#: so their escapes are escaped once more. An id that looks like this itself is escaped like them.
_DOTS = re.compile("(?:%(?:25)*2E){1,2}")
#: How often a parameter that may be repeated is taken at most.
MAX_REPEATED = 100
#: Key of a route's ``openapi_extra`` whose value is the number of its ``Operation``.
MARK = "x-operation"


class Failure(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an error; ``error`` says which input is wrong and why."""

    error: str


class SdkFailure(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an error below ``/api/``; ``message`` is the same text as ``error``, for Cost Katana's SDK."""

    error: str
    message: str


@dataclass(frozen=True)
class Answer:
    """
    One answer of an operation.

    Attributes:
        type: A type of which msgspec can make a JSON schema, or a tuple of alternatives; None = the answer has no body.
        example: A value of *type*, in builtins.
        headers: Name of a header -> its description.
        media: Media type of the body.
    """

    type: Any
    description: str
    example: Any = None
    status: int = 200
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """The body of a request in one media type; *type* is as in ``Answer``, and *examples* have names."""

    type: Any
    examples: Mapping[str, Any]
    media: str = "application/json"


@dataclass(frozen=True)
class Header:
    """A request header that an operation reads."""

    name: str
    description: str
    example: str
    max_length: int | None = None


@dataclass(frozen=True)
class Operation:
    """What the document says about a route besides its parameters and texts; see ``operation``."""

    answers: Sequence[Answer]
    body: Sequence[Content] = ()
    body_required: bool = True
    errors: Mapping[int, str] = field(default_factory=dict)
    headers: Sequence[Header] = ()
    needs_token: bool = True


_operations: list[Operation] = []


def operation_of(extra: Mapping[str, Any]) -> Operation:
    """Return the ``Operation`` whose number is in *extra*, an entry of the document made from ``operation(...)``."""
    number: int = extra[MARK]
    return _operations[number]


def operation(
    id: str,
    summary: str,
    description: str,
    *answers: Answer,
    body: Sequence[Content] = (),
    body_required: bool = True,
    errors: Mapping[int, str] | None = None,
    headers: Sequence[Header] = (),
    needs_token: bool = True,
) -> dict[str, Any]:
    """
    Return the keyword arguments of a route's decorator.

    Args:
        id: The ``operationId``; generators of clients make method names of it, so it never changes.
        answers: The answers without an error text, the usual one first.
        body: The bodies that a request may have, one for each media type.
        errors: Status -> an example of the error text. 401 is added on every path that a token protects.
        needs_token: False = the path is open, with every method that it has.
    """
    _operations.append(Operation(answers, body, body_required, errors or {}, headers, needs_token))
    return {
        "operation_id": id,
        "summary": summary,
        "description": inspect.cleandoc(description),
        "status_code": answers[0].status,
        "response_class": Response,
        "openapi_extra": {MARK: len(_operations) - 1},
    }


def parsed(parse: Callable[[str], Any]) -> PlainValidator:
    """
    Return a validator of a query parameter: *parse* reads the text and raises ``Rejected``.

    A default that is text is parsed too, so that the document shows it as a client would write it.
    """

    def validate(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except Rejected as exc:
            raise ValueError(str(exc)) from exc

    return PlainValidator(validate)


def each_parsed(parse: Callable[[str], str]) -> PlainValidator:
    """Return a validator of a parameter that may be repeated: *parse* reads each text and raises ``Rejected``."""

    def validate(values: Sequence[str]) -> tuple[str, ...]:
        try:
            return tuple(parse(value) for value in values)
        except Rejected as exc:
            raise ValueError(str(exc)) from exc

    return PlainValidator(validate)


class Params(BaseModel):
    """
    The query parameters of a family of routes.

    Each field of a subclass is a parameter. A subclass may set ``prefixes``: parameters with a prefix, such as
    ``attr.team`` for ``attr.``, are collected in the field that has the alias ``<prefix><key>``. The names and prefixes
    in ``repeated`` may be given up to 100 times; their values are lists of texts. A subclass with ``extra="ignore"``
    ignores unknown parameters, and takes the last value of a repeated one, instead of refusing them.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)
    prefixes: ClassVar[tuple[str, ...]] = ()
    repeated: ClassVar[frozenset[str]] = frozenset()
    _names: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        aliases = (info.alias or name for name, info in cls.model_fields.items())
        cls._names = frozenset(aliases) - {f"{prefix}<key>" for prefix in cls.prefixes}

    @classmethod
    def read(cls, request: Request) -> Self:
        """
        Read the query string of *request*.

        Raises:
            Rejected: A parameter is unknown, given too often or invalid; the text names the parameter.
        """
        return cls.of(request.query_params.multi_items())

    @classmethod
    def of(cls, items: Sequence[tuple[str, str]]) -> Self:
        """
        Return the parameters of *items*, (name, value) as they were sent.

        Raises:
            Rejected: As ``read``.
        """
        if cls.model_config["extra"] == "ignore":
            values: dict[str, Any] = {name: value for name, value in items if name in cls._names}
        else:
            values = cls._collect(items)
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            [first, *_] = exc.errors(include_url=False, include_input=False)
            cause = first.get("ctx", {}).get("error", first["msg"])
            raise Rejected(f"{first['loc'][0]}: {cause}") from exc

    @classmethod
    def _collect(cls, items: Sequence[tuple[str, str]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in items:
            if name in cls._names:
                if name in cls.repeated:
                    _add(values.setdefault(name, []), name, value)
                    continue
                if name in values:
                    raise Rejected(f"{name}: given twice")
                values[name] = value
                continue
            for prefix in cls.prefixes:
                if name.startswith(prefix) and len(name) > len(prefix):
                    free, key = values.setdefault(f"{prefix}<key>", {}), name.removeprefix(prefix)
                    if prefix in cls.repeated:
                        _add(free.setdefault(key, []), name, value)
                        break
                    if key in free:
                        raise Rejected(f"{name}: given twice")
                    free[key] = value
                    break
            else:
                refuse(name, cls._names, cls.prefixes)
        return values


def _add(values: list[str], name: str, value: str) -> None:
    if len(values) == MAX_REPEATED:
        raise Rejected(f"{shorten(name)}: given over {MAX_REPEATED} times")
    values.append(value)


def refuse(name: str, allowed: frozenset[str], prefixes: Sequence[str] = ()) -> None:
    """
    Refuse the query parameter *name*.

    Raises:
        Rejected: Always; lists the parameters that are allowed.
    """
    known = ", ".join([*sorted(allowed), *(f"{prefix}<key>" for prefix in prefixes)]) or "none"
    raise Rejected(f"{shorten(name)}: unknown parameter; allowed are {known}")


class ContractRoute(APIRoute):
    """A route that reads requests by its contract; it refuses every query parameter if it has no ``Params``."""

    refuses_unknown: ClassVar[bool] = True
    #: The model of the query parameters of the route; None = it has none.
    params: type[Params] | None

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        # Use Starlette's wrapper: FastAPI's opens two exit stacks for dependencies, and there are no dependencies.
        self.app = request_response(self.get_route_handler())
        #: The path up to its first name in braces.
        self._beginning, brace, _ = self.path.partition("{")
        self._has_names = bool(brace)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that turns a request into an answer."""
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint
        request_name, model_name, model = _arguments(self.endpoint, frozenset(self.param_convertors))
        self.params = model
        path_names = tuple(self.param_convertors)
        strict = self.refuses_unknown and model is None

        async def handle(request: Request) -> Response:
            arguments: dict[str, Any] = {}
            for name in path_names:
                arguments[name] = request.path_params[name]
            if model is not None:
                arguments[model_name] = model.read(request)
            elif strict and request.scope["query_string"]:
                for name in request.query_params:
                    refuse(name, frozenset())
            if request_name:
                arguments[request_name] = request
            return await endpoint(**arguments)

        return handle

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match ``HEAD`` where ``GET`` is declared: declaring both would document every operation twice."""
        # Rule out most of some forty routes by the beginning of the path: the pattern of a path takes 2 us.
        path = scope["path"]
        could = path.startswith(self._beginning) if self._has_names else path == self._beginning
        if not could and not scope.get("root_path"):
            return Match.NONE, {}
        raw: bytes = scope.get("raw_path") or b""
        if self._has_names and (b"%25" in raw or b"%2f" in raw.lower()):
            return self._match_escaped(scope, raw)
        match, child = super().matches(scope)
        if match is Match.PARTIAL and self._answers(scope["method"]):
            return Match.FULL, child
        return match, child

    def _match_escaped(self, scope: Scope, raw: bytes) -> tuple[Match, Scope]:
        """
        Match a path in which a slash or a percent sign is escaped.

        Such a slash is part of a name and does not separate names. A name that then is ``%2E`` or ``%2E%2E`` stands for
        full stops.
        """
        path = unquote(_ESCAPED_SLASH.sub(_SLASH, raw.decode("latin-1")))
        match, child = super().matches({**scope, "path": path})
        if match is not Match.NONE:
            names = {
                name: unquote(value) if _DOTS.fullmatch(value) else value.replace(_SLASH, "/")
                for name, value in child["path_params"].items()
            }
            child = {**child, "path_params": names}
        if match is Match.PARTIAL and self._answers(scope["method"]):
            return Match.FULL, child
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; raise an HTTPException with status 405 if the route does not answer its method."""
        if not self._answers(scope["method"]):
            raise HTTPException(405)
        await self.app(scope, receive, send)

    def _answers(self, method: str) -> bool:
        methods = self.methods or set()
        return method in methods or (method == "HEAD" and "GET" in methods)


class LenientRoute(ContractRoute):
    """A ``ContractRoute`` that ignores query parameters if it has no ``Params``, for health checks and span senders."""

    refuses_unknown = False


class Router(APIRouter):
    """
    A router whose routes read requests by contract.

    Args:
        tag: Tag under which the document lists the operations of the router.
        lenient: Query parameters of routes without ``Params`` are ignored instead of refused.
    """

    def __init__(self, tag: str, *, lenient: bool = False) -> None:
        super().__init__(tags=[tag], route_class=LenientRoute if lenient else ContractRoute)


def _arguments(endpoint: Callable[..., Any], path_names: frozenset[str]) -> tuple[str, str, type[Params] | None]:
    """
    Return the names of the arguments for the request and the query parameters, and the model of the latter.

    A name is "" and the model is None if there is no such argument.

    Raises:
        TypeError: An argument is of another kind, or a name in the path is not an argument.
    """
    request_name = model_name = ""
    model: type[Params] | None = None
    hints = get_type_hints(endpoint, include_extras=True)
    names = set(inspect.signature(endpoint).parameters)
    for name in names:
        hint = hints.get(name)
        if name in path_names:
            continue
        if hint is Request:
            request_name = name
        elif get_origin(hint) is Annotated and isinstance(get_args(hint)[1], QueryMark) and model is None:
            model_name, model = name, get_args(hint)[0]
            if not issubclass(model, Params):
                raise TypeError(f"{endpoint.__qualname__}: {name}: {model.__name__} does not derive from Params")
        else:
            raise TypeError(
                f"{endpoint.__qualname__}: {name}: an endpoint takes the request, names in its path and one "
                f"Annotated[Params, Query()]; any other argument would get no value"
            )
    if path_names - names:
        raise TypeError(f"{endpoint.__qualname__}: takes no {', '.join(sorted(path_names - names))} from its path")
    return request_name, model_name, model
