"""How far a reader has come in a stream."""

from __future__ import annotations

import msgspec


class Position(msgspec.Struct, frozen=True, array_like=True):
    """
    The last message a reader has applied.

    Attributes:
        created_ns: When the stream was made, Unix nanoseconds: a stream made anew starts its numbers over.
        sequence: Last sequence applied; 0 = nothing yet.
    """

    created_ns: int
    sequence: int
