"""Where the seam is put: on a subclass for one client, on the class that defines ``request`` for a whole SDK."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from tokentrace.client.track.rules import Sdk
from tokentrace.client.track.seam import SETTINGS, Settings, watched

_subclasses: weakref.WeakValueDictionary[Any, type] = weakref.WeakValueDictionary()
#: Class -> its own ``request``, where that is replaced.
_replaced: dict[type, Callable[..., Any]] = {}


def watch_client(client: Any, settings: Settings) -> None:
    """
    Track one client, and the copies that are made of it.

    Args:
        client: A client of the SDK. A second call changes its settings.
        settings: How it is tracked.
    """
    unwatch_client(client)
    base = type(client)
    key = (base, settings.key())
    cls = _subclasses.get(key)
    if cls is None:
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        # Looked up at each call, because ``request`` of the base may be replaced later.
        request = watched(base.request, lambda: base.request, settings)
        cls = types.new_class(
            base.__name__,
            (base,),
            exec_body=lambda space: space.update(names, request=request, **{SETTINGS: settings}),
        )
        _subclasses[key] = cls
    client.__class__ = cls


def unwatch_client(client: Any) -> None:
    """Give *client* its own class back; one that is not tracked stays as it is."""
    cls = type(client)
    if SETTINGS in cls.__dict__:
        client.__class__ = cls.__bases__[0]


def watch_sdk(module: Any, settings: Settings) -> None:
    """
    Track all clients of an SDK.

    Args:
        module: The module of the SDK. A second call changes the settings.
        settings: How the clients are tracked.
    """
    for cls in _seams(module, settings.sdk):
        original = _replaced.setdefault(cls, cls.__dict__["request"])
        type.__setattr__(cls, "request", watched(original, partial(_same, original), settings, everywhere=True))


def unwatch_sdk(module: Any, sdk: Sdk) -> None:
    """Give the clients of the SDK *module* their own method back."""
    for cls in _seams(module, sdk):
        original = _replaced.pop(cls, None)
        if original is not None:
            type.__setattr__(cls, "request", original)


def _same(original: Callable[..., Any]) -> Callable[..., Any]:
    return original


def _seams(module: Any, sdk: Sdk) -> list[type]:
    """Return the classes that define ``request``."""
    clients = [getattr(module, name) for name in sdk.clients]
    return [next(cls for cls in client.__mro__ if "request" in cls.__dict__) for client in clients]
