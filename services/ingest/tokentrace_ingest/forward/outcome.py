"""What became of an attempt to send a request to a target."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Partial(NamedTuple):
    """Number of records that the target refused, and what it says about it; (0, "") = nothing."""

    rejected: int = 0
    message: str = ""


class Outcome(NamedTuple):
    """
    What became of an attempt.

    Attributes:
        kind: sent; again = another attempt may succeed; too_large = smaller requests may be taken; refused.
        reason: Why it is not sent, without secrets.
        partial: What the target refused of a request that it took.
        retry_after_s: How long the target asks to wait, seconds; None = it does not ask.
    """

    kind: Literal["sent", "again", "too_large", "refused"]
    reason: str = ""
    partial: Partial = Partial()
    retry_after_s: float | None = None
