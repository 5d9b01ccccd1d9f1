"""Which buckets there are, how long they are kept, and which of them make up a window."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from tokentrace.errors import Rejected
from tokentrace.units import DAY


class Resolution(NamedTuple):
    """Buckets of *width_s* seconds, kept for *keep_s* seconds."""

    width_s: int
    keep_s: int

    @property
    def segment_s(self) -> int:
        """How much of it is saved as one piece: a whole number of buckets, and about a sixteenth of the tier."""
        return -(-self.keep_s // (16 * self.width_s)) * self.width_s


RESOLUTIONS = (
    Resolution(1, 20 * 60),
    Resolution(10, 3 * 3600),
    Resolution(60, 36 * 3600),
    Resolution(600, 8 * 86400),
    Resolution(3600, 31 * 86400),
    Resolution(6 * 3600, 31 * 86400),
    Resolution(86400, 31 * 86400),
)
#: Those that may be the finest of a window; wider ones are only for its middle.
_EDGES = RESOLUTIONS[:-2]
HORIZON_NS = 31 * DAY


class Stretch(NamedTuple):
    """A run of whole buckets of one tier: [start_s, end_s)."""

    tier: int
    start_s: int
    end_s: int


def cover(from_s: int, to_s: int, now_s: int) -> list[Stretch]:
    """
    The fewest buckets that cover [from_s, to_s), widened to the finest buckets still kept at each edge.

    Args:
        from_s, to_s, now_s: Unix seconds; from_s < to_s; from_s no older than the last tier keeps.

    Returns:
        Stretches in order, without gap or overlap.
    """
    edge = _finest(from_s, now_s)
    start = from_s // RESOLUTIONS[edge].width_s * RESOLUTIONS[edge].width_s
    # The last stretch begins where a coarser bucket would no longer fit: all of it has to be kept still.
    end_edge = next(
        (
            index
            for index, (fine, coarse) in enumerate(pairwise(_EDGES))
            if max(start, to_s // coarse.width_s * coarse.width_s) >= now_s - fine.keep_s
        ),
        len(_EDGES) - 1,
    )
    end = -(-to_s // RESOLUTIONS[end_edge].width_s) * RESOLUTIONS[end_edge].width_s
    return _cover(start, end)


def split_at(from_s: int, to_s: int, now_s: int, step_s: int) -> list[list[Stretch]]:
    """
    The same interval as ``plan`` in steps that begin at multiples of *step_s*; the first and the last may be shorter.

    Returns:
        Stretches of each step.

    Raises:
        Rejected: *step_s* is no multiple of the buckets kept at *from_s*.
    """
    finest = finest_step_s(from_s, now_s)
    if step_s <= 0 or step_s % finest:
        raise Rejected(f"step: {step_s}s is no multiple of {finest}s, the finest buckets kept at the start")
    whole = cover(from_s, to_s, now_s)
    start, end = whole[0].start_s, whole[-1].end_s
    cuts = [start, *range((start // step_s + 1) * step_s, end, step_s), end]
    return [_cover(low, high) for low, high in pairwise(cuts)]


def _cover(start: int, end: int) -> list[Stretch]:
    """The fewest buckets that make up [start, end)."""
    stretches: list[Stretch] = []

    def cover(tier: int, low: int, high: int) -> None:
        if low >= high:
            return
        if tier == 0 or low % RESOLUTIONS[tier].width_s == 0 == high % RESOLUTIONS[tier].width_s:
            stretches.append(Stretch(tier, low, high))
            return
        width = RESOLUTIONS[tier].width_s
        inner_low, inner_high = -(-low // width) * width, high // width * width
        if inner_low >= inner_high:
            cover(tier - 1, low, high)
            return
        cover(tier - 1, low, inner_low)
        cover(tier, inner_low, inner_high)
        cover(tier - 1, inner_high, high)

    cover(len(RESOLUTIONS) - 1, start, end)
    return stretches


def finest_step_s(from_s: int, now_s: int) -> int:
    """Width of the finest buckets that are still kept at *from_s*."""
    return RESOLUTIONS[_finest(from_s, now_s)].width_s


def _finest(at_s: int, now_s: int) -> int:
    for index, tier in enumerate(_EDGES):
        if at_s >= now_s - tier.keep_s:
            return index
    return len(_EDGES) - 1
