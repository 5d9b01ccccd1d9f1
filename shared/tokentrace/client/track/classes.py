"""
The replacing of methods, on one object or on a class, so that ``isinstance``, copies and ``super()`` keep working.

An object gets a subclass of its class that has the same name. A class gets the replacement itself, which reaches the
objects that exist already. Where both were done, the object's own replacement does the work and that of the class
passes the call on, so that no call is seen twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

#: A function that takes the original method and a function object -> what ``watch_object`` or ``watch_class`` was
#: given for it, and returns the replacement.
Wrapper = Callable[[Callable[..., Any], Callable[[Any], Any]], Callable[..., Any]]

_MARK = "_tokentrace_watcher"
_subclasses: dict[tuple[type, frozenset[str]], type] = {}
_originals: dict[tuple[type, str], Any] = {}


def watch_object(target: object, wrappers: Mapping[str, Wrapper], watcher: object) -> None:
    """
    Replace methods, and properties, of *target* alone.

    Args:
        target: An object with a ``__dict__``. A second call changes its watcher.
        wrappers: Name of a method -> what makes its replacement.
        watcher: What the replacements get for *target*.

    Raises:
        TypeError: The class of *target* allows no subclass in its place.
    """
    if not is_watched(target):
        cls = type(target)
        key = (cls, frozenset(wrappers))
        if key not in _subclasses:
            _subclasses[key] = _subclass(cls, wrappers)
        target.__class__ = _subclasses[key]
    vars(target)[_MARK] = watcher


def unwatch_object(target: object) -> None:
    """Give *target* its own methods back; an object that is not watched stays as it is."""
    if is_watched(target):
        del vars(target)[_MARK]
        target.__class__ = type(target).__bases__[0]


def is_watched(target: object) -> bool:
    """Return True if methods of *target* itself are replaced."""
    return _MARK in getattr(target, "__dict__", ())


def watch_class(cls: type, wrappers: Mapping[str, Wrapper], watcher: object) -> None:
    """
    Replace methods of *cls* and so of all its objects, but of those that are watched themselves.

    Args:
        cls: The class that defines the methods. A second call changes the watcher.
        wrappers: Name of a method -> what makes its replacement.
        watcher: What the replacements get for the objects.
    """
    for name, wrap in wrappers.items():
        original = _originals.setdefault((cls, name), cls.__dict__[name])
        setattr(cls, name, _replacement(original, wrap, watcher))


def unwatch_class(cls: type, wrappers: Mapping[str, Wrapper]) -> None:
    """Give *cls* its own methods back."""
    for name in wrappers:
        original = _originals.pop((cls, name), None)
        if original is not None:
            setattr(cls, name, original)


def _replacement(original: Any, wrap: Wrapper, watcher: object) -> Any:
    watched = wrap(original, lambda target: watcher)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (original if is_watched(self) else watched)(self, *args, **kwargs)

    return method


def _subclass(cls: type, wrappers: Mapping[str, Wrapper]) -> type:
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__slots__": (),
    }
    for name, wrap in wrappers.items():
        original = getattr(cls, name)
        if isinstance(original, property) and original.fget is not None:
            namespace[name] = property(_bound(wrap(original.fget, _watcher_of)))
            continue
        namespace[name] = functools.wraps(original)(_bound(wrap(original, _watcher_of)))
    return type(cls)(cls.__name__, (cls,), namespace)


def _watcher_of(target: Any) -> Any:
    return vars(target)[_MARK]


def _bound(watched: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watched(self, *args, **kwargs)

    return method
