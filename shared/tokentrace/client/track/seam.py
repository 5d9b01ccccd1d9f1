"""
The seam of the SDKs of OpenAI and Anthropic: the method ``request`` of the client.

Every method of every resource, raw and streaming responses, parsing and helpers end in ``client.request(cast_to,
options, ...)``, outside of the retries: one call, one span. One client gets a subclass of its class with ``request``
overridden, so copies of it are tracked too. A whole SDK gets it on the class that defines it, which reaches the clients
that exist already; a client that is tracked itself is left to its own subclass.

All that is ours runs in ``safely``. What the application sees is what the SDK returned or raised, but for the refusal
of a budget.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokentrace.client.money import BudgetExceeded
from tokentrace.client.tracing import Tracer, default_tracer, is_suppressed
from tokentrace.client.track import answers
from tokentrace.client.track.budgets import AnyBudget, Reserved, most_usd, refusal
from tokentrace.client.track.call import Call
from tokentrace.client.track.faults import asafely, safely
from tokentrace.client.track.providers import provider_of
from tokentrace.client.track.rules import Route, Sdk
from tokentrace.client.track.stream_usage import asking
from tokentrace.errors import Unavailable

#: Asked before each call; one that returns True leaves the call to another way of tracking.
skips: list[Callable[[], bool]] = []

#: Attribute of the class of a client that is tracked itself.
SETTINGS = "__tokentrace_settings__"


@dataclass(frozen=True, eq=False)
class Settings:
    """
    How the calls of a client are tracked.

    Attributes:
        sdk: What is tracked of its SDK.
        tracer: Where spans go; None = the default tracer.
        budget: What the calls are paid from; None = no limit.
        stream_usage_hosts: Further hosts that can be asked for the usage of a stream.
        provider: The provider; "" = found by the client.
    """

    sdk: Sdk
    tracer: Tracer | None = None
    budget: AnyBudget | None = None
    stream_usage_hosts: frozenset[str] = frozenset()
    provider: str = ""

    def key(self) -> tuple[Any, ...]:
        """Return what makes the subclass of a client; objects by their identity."""
        return (self.sdk.module, id(self.tracer), id(self.budget), self.stream_usage_hosts, self.provider)


class _Begun(NamedTuple):
    """A tracked call that is about to be sent."""

    call: Call
    route: Route
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hides_usage: bool
    usd: Any
    refused: Exception | None


def watched(
    original: Callable[..., Any],
    current: Callable[[], Callable[..., Any]],
    settings: Settings,
    *,
    everywhere: bool = False,
) -> Callable[..., Any]:
    """
    Return what replaces the method *original*.

    Args:
        original: The method.
        current: Returns the method to call.
        settings: How calls are tracked.
        everywhere: Whether it replaces the method of all clients, so that those with their own are passed on.
    """
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def arequest(self: Any, *args: Any, **kwargs: Any) -> Any:
            if everywhere and hasattr(type(self), SETTINGS):
                return await current()(self, *args, **kwargs)
            begun = safely(_begin, settings, self, args, kwargs)
            if begun is None:
                result = await current()(self, *args, **kwargs)
                safely(_fetched, settings.sdk, args, kwargs, result)
                return result
            refused = await asafely(_areserve, settings.budget, begun)
            if refused is not None:
                raise refused
            try:
                result = await current()(self, *begun.args, **begun.kwargs)
            except BaseException as exc:
                safely(begun.call.fail, exc)
                raise
            safely(_end, begun, result)
            return result

        return arequest

    @functools.wraps(original)
    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        if everywhere and hasattr(type(self), SETTINGS):
            return current()(self, *args, **kwargs)
        begun = safely(_begin, settings, self, args, kwargs)
        if begun is None:
            result = current()(self, *args, **kwargs)
            safely(_fetched, settings.sdk, args, kwargs, result)
            return result
        refused = safely(_reserve, settings.budget, begun)
        if refused is not None:
            raise refused
        try:
            result = current()(self, *begun.args, **begun.kwargs)
        except BaseException as exc:
            safely(begun.call.fail, exc)
            raise
        safely(_end, begun, result)
        return result

    return request


def _options(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs["options"]


def _begin(settings: Settings, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Begun | None:
    """Open the span of a call; None if it is not tracked."""
    options = _options(args, kwargs)
    route = settings.sdk.route(options.method, options.url)
    if route is None or is_suppressed() or any(skip() for skip in skips):
        return None
    body = options.json_data if isinstance(options.json_data, Mapping) else {}
    if isinstance(options.extra_json, Mapping):
        body = {**body, **options.extra_json}
    model = body.get("model")
    model = model if isinstance(model, str) else ""
    provider = settings.provider or provider_of(settings.sdk, client)
    if provider == settings.sdk.module and route.priced_as:
        provider = route.priced_as
    tracer = settings.tracer or default_tracer()
    hides_usage = False
    if route.asks_usage and tracer.stream_usage == "auto":
        asked = safely(asking, options, client, settings.stream_usage_hosts)
        if asked is not None:
            hides_usage = True
            args, kwargs = _with_options(args, kwargs, asked)
    # The price before the span: a fault must not leave an open span.
    usd = refused = None
    if settings.budget is not None:
        usd = most_usd(settings.budget, body, model, provider, route.kind)
        refused = refusal(settings.budget, model) if usd is None else None
    call = Call.begin(
        tracer,
        route.name,
        kind=route.kind,
        model=model,
        provider=provider,
        scope=f"tokentrace.{settings.sdk.module}",
        attributes={"request_model": model} if model else None,
    )
    if call is None:
        return None
    call.asked(body)
    return _Begun(call, route, args, kwargs, hides_usage, usd, refused)


def _with_options(
    args: tuple[Any, ...], kwargs: dict[str, Any], options: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > 1:
        return (args[0], options, *args[2:]), kwargs
    return args, {**kwargs, "options": options}


def _reserve(budget: AnyBudget | None, begun: _Begun) -> Exception | None:
    """Reserve what the call may cost; return what *budget* refuses it with, before anything is sent."""
    refused = begun.refused
    if refused is None and budget is not None and begun.usd is not None:
        try:
            begun.call.reserved = Reserved(budget.reserve(begun.usd), budget)
        except (BudgetExceeded, Unavailable) as exc:
            refused = exc
    if refused is not None:
        begun.call.abandon()
    return refused


async def _areserve(budget: AnyBudget | None, begun: _Begun) -> Exception | None:
    """Do what ``_reserve`` does without blocking the event loop."""
    refused = begun.refused
    if refused is None and budget is not None and begun.usd is not None:
        try:
            begun.call.reserved = Reserved(await budget.areserve(begun.usd), budget)
        except (BudgetExceeded, Unavailable) as exc:
            refused = exc
        except asyncio.CancelledError:
            begun.call.abandon()
            raise
    if refused is not None:
        begun.call.abandon()
    return refused


def _end(begun: _Begun, result: object) -> None:
    """End the call with *result*, or let it end with its stream. Never raises."""
    done = safely(_taken, begun, result)
    if done is None:
        safely(begun.call.end)


def _taken(begun: _Begun, result: object) -> bool:
    answers.take(begun.call, begun.route, result, hides_usage=begun.hides_usage)
    return True


def _fetched(sdk: Sdk, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
    """End a call in the background, if a request of another path has fetched its answer."""
    if not sdk.background:
        return
    options = _options(args, kwargs)
    path = options.url.partition("?")[0]
    if path.startswith(sdk.background) and answers.background.waits_for(
        path.removeprefix(sdk.background).partition("/")[0]
    ):
        answers.take_fetched(result)
