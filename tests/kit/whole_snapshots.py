"""Snapshots of a machine with their parts as one value, and the number of calls that machines in tests remember."""

from __future__ import annotations

import msgspec

from tokentrace.service.machine import Machine
from tokentrace.state import Saved

#: Number of calls that a machine in a test remembers; its snapshots are then a hundredth of the default size.
CAPACITY = 4096


def parts_of(saved: Saved) -> dict[str, bytes]:
    """Return the encoded parts of *saved* as ``Machine.restore`` takes them."""
    return {name: part.encode() for name, part in saved.parts.items() if part.encode}


def save(machine: Machine) -> bytes:
    """Return the state and the parts of *machine* as one value for ``load``."""
    saved = machine.snapshot({})
    return msgspec.msgpack.encode([saved.state(), parts_of(saved)])


def load(machine: Machine, snapshot: bytes) -> None:
    """Restore *machine* from what ``save`` returned."""
    state, parts = msgspec.msgpack.decode(snapshot, type=tuple[bytes, dict[str, bytes]])
    machine.restore(state, parts)
