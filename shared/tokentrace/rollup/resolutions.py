"""The widths of buckets, how long they are kept, and which buckets make up a window."""

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
        """Seconds saved as one piece of a snapshot: whole buckets, about a sixteenth of what is kept."""
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
#: Resolutions that may be the finest of a window; the two widest are used in its middle only.
_EDGES = RESOLUTIONS[:-2]
HORIZON_NS = 31 * DAY


class Stretch(NamedTuple):
    """
    A run of whole buckets of one resolution.

    Attributes:
        resolution: Index of the resolution.
        start_s, end_s: Unix seconds; end_s is not included.
    """

    resolution: int
    start_s: int
    end_s: int


def cover(from_s: int, to_s: int, now_s: int) -> list[Stretch]:
    """
    The fewest buckets that cover [from_s, to_s), widened at each edge to the finest buckets that are still kept there.

    Args:
        from_s, to_s, now_s: Unix seconds; from_s < to_s; from_s is at most 31 days before now_s.

    Returns:
        Stretches in order, without gap or overlap.
    """
    edge = _finest(from_s, now_s)
    start = from_s // RESOLUTIONS[edge].width_s * RESOLUTIONS[edge].width_s
    # The last stretch begins where no coarser bucket fits any more; all of its buckets must still be kept.
    end_edge = next(
        (
            index
            for index, (fine, coarse) in enumerate(pairwise(_EDGES))
            if max(start, to_s // coarse.width_s * coarse.width_s) >= now_s - fine.keep_s
        ),
        len(_EDGES) - 1,
    )
    end = -(-to_s // RESOLUTIONS[end_edge].width_s) * RESOLUTIONS[end_edge].width_s
    return _cover_exactly(start, end)


def cover_in_steps(from_s: int, to_s: int, now_s: int, step_s: int) -> list[list[Stretch]]:
    """
    The interval of ``cover`` in steps that begin at multiples of *step_s*; the first and the last may be shorter.

    Returns:
        The stretches of each step.

    Raises:
        Rejected: *step_s* is not a multiple of the width of the buckets kept at *from_s*.
    """
    finest = finest_step_s(from_s, now_s)
    if step_s <= 0 or step_s % finest:
        raise Rejected(f"step: {step_s}s is no multiple of {finest}s, the finest buckets kept at the start")
    whole = cover(from_s, to_s, now_s)
    start, end = whole[0].start_s, whole[-1].end_s
    cuts = [start, *range((start // step_s + 1) * step_s, end, step_s), end]
    return [_cover_exactly(low, high) for low, high in pairwise(cuts)]


def _cover_exactly(start: int, end: int) -> list[Stretch]:
    """The fewest buckets that make up [start, end)."""
    stretches: list[Stretch] = []

    def add(index: int, low: int, high: int) -> None:
        if low >= high:
            return
        width = RESOLUTIONS[index].width_s
        if index == 0 or low % width == 0 == high % width:
            stretches.append(Stretch(index, low, high))
            return
        inner_low, inner_high = -(-low // width) * width, high // width * width
        if inner_low >= inner_high:
            add(index - 1, low, high)
            return
        add(index - 1, low, inner_low)
        add(index, inner_low, inner_high)
        add(index - 1, inner_high, high)

    add(len(RESOLUTIONS) - 1, start, end)
    return stretches


def finest_step_s(from_s: int, now_s: int) -> int:
    """Width in seconds of the finest buckets that are still kept at *from_s*."""
    return RESOLUTIONS[_finest(from_s, now_s)].width_s


def _finest(at_s: int, now_s: int) -> int:
    for index, resolution in enumerate(_EDGES):
        if at_s >= now_s - resolution.keep_s:
            return index
    return len(_EDGES) - 1
