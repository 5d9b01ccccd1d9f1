"""How far a reader has come in a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

#: What a broker counts and an instant after 1970: an int64 that is not negative.
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Position(msgspec.Struct, frozen=True, array_like=True):
    """
    The last message a reader has applied.

    Attributes:
        created_ns: When the stream was made, Unix nanoseconds: a stream made anew starts its numbers over.
        sequence: Last sequence applied; 0 = nothing yet.
    """

    created_ns: Natural
    sequence: Natural
