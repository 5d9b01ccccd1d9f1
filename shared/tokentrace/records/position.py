"""The position of a reader in a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

#: An int64 >= 0, such as a sequence or an instant in Unix nanoseconds.
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Position(msgspec.Struct, frozen=True, array_like=True):
    """
    The last message that a reader has folded.

    Attributes:
        created_ns: When the stream was created, Unix nanoseconds. A recreated stream numbers its messages from 1 again.
        sequence: The sequence of the last folded message; 0 = none yet.
    """

    created_ns: Natural
    sequence: Natural
