"""Rubbish: bytes that no decoder of the product accepts, and damaged copies of what it wrote."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import msgspec

from kit.examples import SEED


def dice_of(name: str) -> random.Random:
    """Return the dice of the fuzzer *name*; ``FOREIGN_SEED`` repeats a run."""
    seed = int(os.environ.get("FOREIGN_SEED", "0")) or SEED
    print(f"{name}: FOREIGN_SEED={seed}")
    return random.Random(f"{name} {seed}")


def rounds(default: int) -> int:
    """Return how many rounds a fuzzer does; ``FOREIGN_ROUNDS`` makes a run longer."""
    return int(os.environ.get("FOREIGN_ROUNDS", str(default)))


def noise(dice: random.Random, size: int = 60) -> bytes:
    """Return bytes that are neither UTF-8, nor JSON, nor msgpack, nor compressed."""
    return b"\xc1\xff" + dice.randbytes(size)


def bend(dice: random.Random, value: Any, depth: int = 0) -> Any:
    """Return *value* with a few parts replaced by invalid values."""
    odd: tuple[Any, ...] = (None, True, -1, 2**63 - 1, -(2**63), 1e308, "", "\u2028x", "x" * 300)
    odd += ([], {}, [[]], {"": 0}, "2026-13-99T")
    if dice.random() < 0.12:
        return dice.choice(odd)
    if isinstance(value, dict) and depth < 8:
        kept = {key: bend(dice, item, depth + 1) for key, item in value.items() if dice.random() > 0.05}
        return kept | ({"odd": 1} if dice.random() < 0.1 else {})
    if isinstance(value, list) and depth < 8:
        return [bend(dice, item, depth + 1) for item in value for _ in range(dice.choice((1, 1, 1, 1, 0, 2)))]
    return value


def bent(dice: random.Random, payload: bytes) -> bytes:
    """Return a damaged copy of *payload*: values are replaced, or bytes are changed and sometimes cut off."""
    packed = (msgspec.msgpack.decode, msgspec.msgpack.encode)
    for decode, encode in ((msgspec.json.decode, msgspec.json.encode), packed):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            if dice.random() < 0.7:
                return encode(bend(dice, decode(payload)))
    return flipped(dice, payload)


def flipped(dice: random.Random, payload: bytes) -> bytes:
    """Return *payload* with a few bytes changed, and sometimes cut off."""
    data = bytearray(payload or b"x")
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data[: dice.randrange(len(data) + 1)] if dice.random() < 0.3 else data)


def damage_file(dice: random.Random, file: Path) -> str:
    """Damage *file* in place, or put something else where it is; return what was done."""
    content = file.read_bytes() if file.is_file() else b""
    what = dice.choice(("noise", "noise at the head", "flipped bytes", "cut", "emptied", "removed", "a directory"))
    if what == "noise":
        file.write_bytes(noise(dice, dice.randrange(1, 20_000)))
    elif what == "noise at the head":
        head = noise(dice, dice.randrange(1, 9000))
        file.write_bytes(head + content[len(head) :])
    elif what == "flipped bytes":
        file.write_bytes(flipped(dice, content))
    elif what == "cut":
        file.write_bytes(content[: dice.randrange(len(content) + 1)])
    elif what == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
        if what == "a directory":
            (file / "inside").mkdir(parents=True)
    return what
