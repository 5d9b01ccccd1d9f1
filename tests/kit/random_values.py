"""Odd values, and random changes of JSON and of bytes. A case is a function of its seed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any


class Raw(str):
    """Text that stands in JSON as it is: numbers that Python cannot hold, or text that is no JSON."""


#: Few different texts, so that what the pipeline keeps for each name does not grow during a run.
TEXTS: Sequence[Any] = (
    *(
        "",
        " ",
        "a",
        "0",
        "-1",
        "null",
        "true",
        "ok",
        "error",
        "llm",
        "gpt-4o",
        "unknown",
        "other",
        "cost_usd",
        "attr.x",
    ),
    *(
        "..",
        ".",
        "a/b",
        "a%2Fb",
        "a b",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "a\x00b",
        "\x7f",
        "'; DROP TABLE spans; --",
        '"',
        "\\",
    ),
    *(
        "\u00fc",
        "u\u0308",
        "\u03a3\u03c2",
        "\U0001f600",
        "\u202e",
        "\u2028",
        "\x85",
        "\ufeff",
        "\ufffd",
        "{}",
        "[]",
        "${A}",
    ),
    *("2026-03-15T14:23:01.441Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "24:00"),
    *("1h", "0s", "-1h", "106751d", "9e9h", "1ns", "1e3s", "2h30m", "x" * 300, "x" * 40_000, "[EMAIL_REDACTED]"),
    *(
        "a@b.io",
        "4155551234",
        "http://127.0.0.1:9/",
        "https://hooks.example.com/x",
        "http://169.254.169.254/",
        "r",
        "t",
    ),
    Raw(r'"\ud800"'),
    Raw(r'"a\udfffb"'),
)
NUMBERS: Sequence[Any] = (
    *(0, 1, -1, 7, 1.0, 0.5, -0.0, 1e-9, 1e18, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 2**70),
    *(
        Raw("1e999"),
        Raw("-1e999"),
        Raw("9" * 5000),
        Raw("1" + "0" * 400),
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-0"),
        Raw("01"),
    ),
)
ODD: Sequence[Any] = (
    *(None, True, False, [], {}, [None], [[]], {"": None}, [1, "x", None], {"a": {"b": []}}),
    *(
        Raw("[" * 900 + "]" * 900),
        Raw('{"a":' * 900 + "1" + "}" * 900),
        Raw("[" * 50_000),
        Raw("{"),
        Raw(""),
        Raw("'x'"),
    ),
)


#: Longest list that a change makes; several changes would otherwise multiply its length each time.
_MOST_ITEMS = 1500


def odd_value(dice: random.Random) -> Any:
    """Return a value that some field does not expect."""
    return dice.choice(dice.choice((TEXTS, NUMBERS, ODD)))


def odd_text(dice: random.Random, longest: int = 400) -> str:
    """Return a text of at most *longest* characters."""
    return str(dice.choice(TEXTS))[:longest]


def changed(value: Any, dice: random.Random) -> Any:
    """Return *value*, made of builtins, with one place in it replaced, removed, added or doubled."""
    if isinstance(value, Mapping) and value and dice.random() < 0.85:
        copy = dict(value)
        key = dice.choice(list(copy))
        roll = dice.random()
        if roll < 0.45:
            copy[key] = changed(copy[key], dice)
        elif roll < 0.75:
            copy[key] = odd_value(dice)
        elif roll < 0.9:
            del copy[key]
        else:
            copy[odd_text(dice)] = odd_value(dice)
        return copy
    if isinstance(value, list) and value and dice.random() < 0.85:
        items = list(value)
        at = dice.randrange(len(items))
        roll = dice.random()
        if roll < 0.5:
            items[at] = changed(items[at], dice)
        elif roll < 0.7:
            items[at] = odd_value(dice)
        elif roll < 0.8:
            del items[at]
        else:
            items = (items + items * dice.choice((1, 1, 30, 1200)))[:_MOST_ITEMS]
        return items
    return odd_value(dice)


def encode(value: Any) -> bytes:
    """Return *value* as JSON, in which a ``Raw`` stands as it is."""
    return _encode(value).encode("utf-8", "surrogatepass")


def _encode(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(str(key))}:{_encode(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_encode, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def damaged(payload: bytes, dice: random.Random) -> bytes:
    """Return *payload* with some bytes changed, inserted, removed or cut off."""
    data = bytearray(payload)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        at = dice.randrange(len(data) + 1)
        roll = dice.random()
        if roll < 0.5 and at < len(data):
            data[at] = dice.randrange(256)
        elif roll < 0.7:
            data[at:at] = dice.randbytes(dice.choice((1, 1, 4, 300)))
        elif roll < 0.9:
            del data[at : at + dice.choice((1, 1, 4, 300))]
        else:
            del data[at:]
    return bytes(data)


UNREADABLE = (
    *(b"", b" ", b"\x00", b"\xff\xfe", b'{"name":"\xff\xfe"}', b'{"\xff":1}', b'{"name":"\x00"}', b"\xef\xbb\xbf{}"),
    *(b"[" * 100_000, b"1", b'"x"', b"NaN", b"{", b"[", b"{}", b"[]", b"[[]]", b"null", b"[null]", b"{}{}", b"{} x"),
    *('{"name":"x"}'.encode("utf-16"), b"\x90", b"\x91\xc0", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xdb\xff\xff\xff\xff"),
)


def unreadable(dice: random.Random) -> bytes:
    """Return bytes that are hardly anything."""
    if dice.random() < 0.4:
        return dice.randbytes(dice.choice((1, 5, 60, 3000)))
    return dice.choice(UNREADABLE)
