"""The query parameters that routes share: how each is read, and how the document describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, WithJsonSchema

from tokentrace.errors import Rejected, shorten
from tokentrace.records import KINDS
from tokentrace.service.contract import Params, parsed
from tokentrace.units import SECOND, parse_duration, parse_instant

#: Every pattern uses ASCII classes, because readers of the document differ in what ``\d`` means.
DURATION_PATTERN = r"^(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d))+)$"
INSTANT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+\- ][0-9]{2}:[0-9]{2})$"
)
ATTRIBUTE_PREFIX = "attr."


class Window(NamedTuple):
    """A length of time as it was written, and in nanoseconds."""

    text: str
    ns: int


def parse_window(text: str) -> Window:
    """
    Read a window.

    Raises:
        Rejected: Not a duration of a second or more.
    """
    window_ns = parse_duration(text)
    if window_ns < SECOND:
        raise Rejected(f"{shorten(text)!r} is shorter than 1s")
    return Window(text, window_ns)


def parse_count(text: str) -> int:
    """
    Read a whole number >= 0 of at most 18 digits.

    Raises:
        Rejected: Anything else.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Rejected(f"{shorten(text)!r} is not a whole number >= 0")
    return int(text)


def parse_number(text: str) -> float:
    """
    Read a number from 0 to below 1e12.

    Raises:
        Rejected: Anything else.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e12:
        raise Rejected(f"{shorten(text)!r} is not a number >= 0")
    return number


def parse_moment(text: str) -> int:
    """
    Read an RFC 3339 instant as Unix nanoseconds.

    Raises:
        Rejected: Anything else.
    """
    # A plus sign that was not escaped arrives as a space.
    return parse_instant(text[:10] + text[10:].replace(" ", "+"))


def choice(names: Sequence[str], words: str = "") -> Any:
    """
    Return the annotation of a parameter that is one of *names*.

    Args:
        words: How a refusal lists them; "" = "none of a, b".
    """

    def parse(text: str) -> str:
        if text not in names:
            raise Rejected(f"{shorten(text)!r} is {words or 'none of ' + ', '.join(names)}")
        return text

    return Annotated[str | None, parsed(parse), WithJsonSchema({"type": "string", "enum": list(names)})]


_NATURAL = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
Text = Annotated[str | None, WithJsonSchema({"type": "string"})]
Duration = Annotated[
    Window,
    parsed(parse_window),
    WithJsonSchema({"type": "string", "format": "go-duration", "pattern": DURATION_PATTERN}),
]
Count = Annotated[int, parsed(parse_count), WithJsonSchema(_NATURAL)]
OptionalCount = Annotated[int | None, parsed(parse_count), WithJsonSchema(_NATURAL)]
Amount = Annotated[
    float | None, parsed(parse_number), WithJsonSchema({"type": "number", "minimum": 0, "exclusiveMaximum": 10**12})
]
Moment = Annotated[
    int | None,
    parsed(parse_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": INSTANT_PATTERN}),
]
Attributes = Annotated[dict[str, str], WithJsonSchema({"type": "string", "examples": ["abc123"]})]
KIND_NAMES = tuple(KINDS)


class AttributeParams(Params):
    """Parameters among which ``attr.<key>`` filters by an attribute."""

    prefix: ClassVar[str] = ATTRIBUTE_PREFIX
    attributes: Attributes = Field(
        default_factory=dict,
        alias="attr.<key>",
        description=(
            "Any number of filters by attribute: `attr.` and the attribute's key, such as `attr.request_id=abc123`. "
            "Numbers and booleans are compared as JSON text."
        ),
    )
