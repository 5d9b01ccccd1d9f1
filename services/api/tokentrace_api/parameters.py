"""Query parameters: read once, refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.requests import Request

from tokentrace.errors import Rejected, shorten
from tokentrace.units import SECOND, parse_duration, parse_instant

Parameters = Mapping[str, str]


def parameters(request: Request, allowed: Collection[str], *, prefix: str = "") -> dict[str, str]:
    """
    The query parameters, each at most once.

    Args:
        prefix: Names that start with it and go on are allowed as well; "" = none.

    Raises:
        Rejected: One that nobody reads, or one given twice: both would be passed over in silence otherwise.
    """
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        free = bool(prefix) and name.startswith(prefix) and len(name) > len(prefix)
        if name not in allowed and not free:
            known = ", ".join([*sorted(allowed), *([f"{prefix}<key>"] if prefix else [])])
            raise Rejected(f"{shorten(name)}: unknown parameter; allowed are {known}")
        if name in given:
            raise Rejected(f"{name}: given twice")
        given[name] = value
    return given


def parse_window(given: Parameters, default: str = "1h") -> tuple[str, int]:
    """
    (As written, nanoseconds) of ``window``.

    Raises:
        Rejected: Not a duration of a second or more.
    """
    text = given.get("window", default)
    try:
        window_ns = parse_duration(text)
    except Rejected as exc:
        raise Rejected(f"window: {exc}") from exc
    if window_ns < SECOND:
        raise Rejected(f"window: {shorten(text)!r} is shorter than 1s")
    return text, window_ns


def parse_count(given: Parameters, name: str, default: int, *, most: int | None = None) -> int:
    """
    A whole number >= 0; over *most* it is *most*.

    Raises:
        Rejected: Anything else.
    """
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Rejected(f"{name}: {shorten(text)!r} is not a whole number >= 0")
    return int(text) if most is None else min(int(text), most)


def parse_number(given: Parameters, name: str) -> float:
    """
    A number >= 0.

    Raises:
        Rejected: Anything else.
    """
    try:
        number = float(given[name])
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e12:
        raise Rejected(f"{name}: {shorten(given[name])!r} is not a number >= 0")
    return number


def parse_moment(given: Parameters, name: str) -> int | None:
    """
    An RFC 3339 instant as Unix nanoseconds; None when it is not given.

    Raises:
        Rejected: Anything else.
    """
    text = given.get(name)
    if text is None:
        return None
    try:
        # A plus sign that was not escaped arrives as a space.
        return parse_instant(text[:10] + text[10:].replace(" ", "+"))
    except Rejected as exc:
        raise Rejected(f"{name}: {exc}") from exc
