"""The public functions: track a client or a whole SDK, and stop tracking it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, TypeVar

from tokentrace.client.tracing import Tracer
from tokentrace.client.track import anthropic, openai
from tokentrace.client.track.budgets import AnyBudget
from tokentrace.client.track.rules import Sdk
from tokentrace.client.track.seam import Settings
from tokentrace.client.track.targets import unwatch_client, unwatch_sdk, watch_client, watch_sdk
from tokentrace.errors import ConfigError, quoted

T = TypeVar("T")

_SDKS: dict[str, Sdk] = {sdk.module: sdk for sdk in (openai.SDK, anthropic.SDK)}


class Way(Protocol):
    """A module that tracks targets in a way of its own."""

    def accepts(self, target: object) -> bool:
        """Return True if it tracks *target*: a client, a module, or the name of a target."""
        ...

    def watch(self, target: Any, tracer: Tracer | None) -> None:
        """Track *target*; None = the default tracer."""
        ...

    def unwatch(self, target: Any) -> None:
        """Stop tracking *target*."""
        ...


#: Modules with the functions of ``Way``; they are imported only for targets that are of no SDK above.
_WAYS = tuple(f"tokentrace.client.track.{name}" for name in ("google", "litellm", "bedrock"))
_NAMES = (*_SDKS, "google", "litellm")


def instrument(
    target: T,
    *,
    tracer: Tracer | None = None,
    budget: AnyBudget | None = None,
    stream_usage_hosts: Collection[str] = (),
    provider: str = "",
) -> T:
    """
    Track the calls of a client, or of all clients of an SDK: one span for each call, streams included.

    The application gets what the SDK returns and raises, unchanged. A call is below what ``current`` returns when the
    call starts. A second call with the same target replaces the settings of the first.

    Args:
        target: A client of openai or anthropic, whose copies are tracked too; a client of google-genai, or one of boto3
            for ``bedrock-runtime``; or ``"openai"``, ``"anthropic"``, ``"google"`` or ``"litellm"``, or the module
            itself, for all clients that exist and will exist. A name imports the SDK.
        tracer: Where spans go; None = the default tracer.
        budget: A ``Budget`` or ``SharedBudget``. Before a call is sent, the most that it can cost is reserved: a token
            for every three bytes of the prompt, and the output that the request allows, or 4,096 tokens, at the rates
            of the price list, or of ``Budget(prices=...)``.
        stream_usage_hosts: Further hosts, as ``host`` or ``host:port``, whose chat streams may be asked for usage.
            Without it only ``api.openai.com`` is, because other vendors may refuse the option.
        provider: The provider of the calls; "" = found by the class of the client, else by its address.

    Returns:
        The target.

    Raises:
        ConfigError: The target is none that can be tracked, or its SDK is not installed.
        BudgetExceeded: Raised by a tracked call, before it is sent, if the budget has no room for it.
        BudgetUnavailable: Raised by a tracked call if a shared budget that refuses in doubt cannot be asked, or the
            price of the model is not known to it.
    """
    sdk = _sdk_of(target)
    if sdk is None:
        if budget is not None or stream_usage_hosts or provider:
            raise ConfigError("instrument: budget, stream_usage_hosts and provider are for openai and anthropic only")
        _way_of(target).watch(target, tracer)
        return target
    settings = Settings(sdk, tracer, budget, frozenset(stream_usage_hosts), provider)
    if isinstance(target, (str, ModuleType)):
        watch_sdk(_module_of(sdk), settings)
    else:
        watch_client(target, settings)
    return target


def uninstrument(target: object) -> None:
    """
    Stop tracking a client, or all clients of an SDK. What is not tracked stays as it is.

    Args:
        target: As for ``instrument``. Copies that a tracked client has made stay tracked.

    Raises:
        ConfigError: The target is none that can be tracked.
    """
    sdk = _sdk_of(target)
    if sdk is None:
        _way_of(target).unwatch(target)
    elif not isinstance(target, (str, ModuleType)):
        unwatch_client(target)
    elif sdk.module in sys.modules:
        unwatch_sdk(sys.modules[sdk.module], sdk)


def _sdk_of(target: object) -> Sdk | None:
    """Return the SDK of *target*; None if it is of no SDK of ``_SDKS``."""
    if isinstance(target, ModuleType):
        return _SDKS.get(target.__name__)
    if isinstance(target, str):
        return _SDKS.get(target)
    for cls in type(target).__mro__:
        sdk = _SDKS.get(cls.__module__.partition(".")[0])
        if sdk is not None and "request" in cls.__dict__:
            return sdk
    return None


def _module_of(sdk: Sdk) -> ModuleType:
    try:
        return import_module(sdk.module)
    except ImportError as exc:
        raise ConfigError(f"instrument: the package {sdk.module} is not installed: {exc}") from exc


def _way_of(target: object) -> Way:
    for name in _WAYS:
        way: Any = import_module(name)
        if way.accepts(target):
            found: Way = way
            return found
    shown = (
        quoted(target) if isinstance(target, str) else f"an object of {type(target).__module__}.{type(target).__name__}"
    )
    raise ConfigError(f"instrument: {shown} cannot be tracked; known are clients and the names {', '.join(_NAMES)}")
