"""The types of query parameters that routes share: how each is parsed and described in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, WithJsonSchema

from tokentrace.errors import Rejected, quoted
from tokentrace.records import KINDS
from tokentrace.service.contract import Params, parsed
from tokentrace.units import MS, SECOND, parse_duration, parse_instant

#: The patterns use ASCII classes, because programs that read the OpenAPI document differ in what ``\d`` matches.
DURATION_PATTERN = r"^(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d))+)$"
INSTANT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+\- ][0-9]{2}:[0-9]{2})$"
)
ATTRIBUTE_PREFIX = "attr."
#: Before the name of a filter: the values that are not wanted.
EXCLUDED_PREFIX = "not."
#: Before the name of a filter: its value on the other side of a comparison.
COMPARED_PREFIX = "compare."


class Window(NamedTuple):
    """A duration: the text that the client wrote, and the same in nanoseconds."""

    text: str
    ns: int


def parse_window(text: str) -> Window:
    """
    Parse a window.

    Raises:
        Rejected: *text* is not a duration, or it is shorter than a second.
    """
    window_ns = parse_duration(text)
    if window_ns < SECOND:
        raise Rejected(f"{quoted(text)} is shorter than 1s")
    return Window(text, window_ns)


def parse_count(text: str) -> int:
    """
    Parse a whole number >= 0 of at most 18 digits.

    Raises:
        Rejected: *text* is anything else.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Rejected(f"{quoted(text)} is not a whole number >= 0 of at most 18 digits")
    return int(text)


def parse_number(text: str) -> float:
    """
    Parse a number from 0 to below 1e12.

    Raises:
        Rejected: *text* is anything else.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e12:
        raise Rejected(f"{quoted(text)} is not a number >= 0 and < 1e12")
    return number


def parse_moment(text: str) -> int:
    """
    Parse an RFC 3339 instant; return Unix nanoseconds.

    Raises:
        Rejected: *text* is not such an instant.
    """
    # A plus sign that was not escaped arrives as a space.
    return parse_instant(text[:10] + text[10:].replace(" ", "+"))


def parse_last_moment(text: str) -> int:
    """
    Parse an RFC 3339 instant as an upper bound that is included; return Unix nanoseconds.

    Answers show instants cut to the millisecond, so an instant of whole milliseconds includes all of its millisecond.

    Raises:
        Rejected: *text* is not such an instant.
    """
    instant_ns = parse_moment(text)
    return instant_ns if instant_ns % MS else instant_ns + MS - 1


def choice(names: Sequence[str], words: str = "") -> Any:
    """
    Return the type of an optional parameter whose value is one of *names*.

    Args:
        words: What the error text says after "is", such as "neither a nor b"; "" = "none of" and the names.
    """

    def parse(text: str) -> str:
        if text not in names:
            raise Rejected(f"{quoted(text)} is {words or 'none of ' + ', '.join(names)}")
        return text

    return Annotated[str | None, parsed(parse), WithJsonSchema({"type": "string", "enum": list(names)})]


def _parse_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise Rejected(f"{quoted(text)} is neither true nor false")
    return text == "true"


Flag = Annotated[bool, parsed(_parse_flag), WithJsonSchema({"type": "boolean"})]
_NATURAL = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
Text = Annotated[str | None, WithJsonSchema({"type": "string"})]
Duration = Annotated[
    Window,
    parsed(parse_window),
    WithJsonSchema({"type": "string", "format": "go-duration", "pattern": DURATION_PATTERN}),
]
OptionalDuration = Annotated[
    Window | None,
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
LastMoment = Annotated[
    int | None,
    parsed(parse_last_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": INSTANT_PATTERN}),
]
Attributes = Annotated[dict[str, str], WithJsonSchema({"type": "string", "examples": ["abc123"]})]
KIND_NAMES = tuple(KINDS)


class AttributeParams(Params):
    """Parameters that include ``attr.<key>``, which filters by an attribute."""

    prefixes: ClassVar[tuple[str, ...]] = (ATTRIBUTE_PREFIX,)
    attributes: Attributes = Field(
        default_factory=dict,
        alias="attr.<key>",
        description=(
            "Any number of filters by attribute: `attr.` and the attribute's key, such as `attr.request_id=abc123`. "
            "A value that is not text is compared as JSON, such as `true`; numbers are compared as numbers: `3` finds "
            "3 and 3.0."
        ),
    )


def with_ids(attributes: Mapping[str, str], given: Mapping[str, str | None]) -> dict[str, str]:
    """
    Return *attributes* with the ids in *given*, under the keys ``user_id`` and ``session_id``.

    Args:
        given: Parameter (``user``, ``user_id``, ``session`` or ``session_id``) -> its value; None = not given.

    Raises:
        Rejected: Two parameters for the same id have different values; the text names both.
    """
    merged, origins = dict(attributes), {key: ATTRIBUTE_PREFIX + key for key in attributes}
    for name, value in given.items():
        key = name if name.endswith("_id") else f"{name}_id"
        if value is None:
            continue
        if merged.setdefault(key, value) != value:
            raise Rejected(f"{name}: {quoted(value)} differs from {origins[key]}, which means the same")
        origins.setdefault(key, name)
    return merged
