"""Checks of the options of transports, and transports that are pickled as their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokentrace.errors import ConfigError, shorten


def rebuilt(kind: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Return what *kind* makes of its arguments: a transport is pickled as these, and starts empty elsewhere."""
    return kind(*arguments, **options)


def check_at_least(name: str, value: float, least: float) -> None:
    """
    Check that the option *name* is a finite number of at least *least*.

    Raises:
        ConfigError: It is none; the text names the option.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ConfigError(f"transport: {name}: {shorten(value)} is not a number of at least {least:g}")
