"""Resolutions: the widths of buckets, how long they are kept, and which buckets cover a window."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from tokentrace.errors import Rejected
from tokentrace.units import DAY


class Resolution(NamedTuple):
    """The width of buckets and how long they are kept, in seconds."""

    width_s: int
    keep_s: int

    @property
    def segment_s(self) -> int:
        """Seconds that one piece of a snapshot covers: whole buckets, about a sixteenth of ``keep_s``."""
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
#: Resolutions whose buckets a window may begin or end with; the two widest are used only in the middle of a window.
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
    Return the fewest buckets that cover [from_s, to_s), widened at each edge to whole buckets that are still kept.

    Args:
        from_s, to_s, now_s: Unix seconds; from_s < to_s; from_s is at most 31 days before now_s.

    Returns:
        Stretches in order, without gap or overlap.
    """
    edge = _finest(from_s, now_s)
    start = from_s // RESOLUTIONS[edge].width_s * RESOLUTIONS[edge].width_s
    # The last stretch begins where no coarser bucket fits before to_s; all buckets of the stretch must still be kept.
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
    Return the interval of ``cover`` cut at the multiples of *step_s*; the first and the last step may be shorter.

    Returns:
        The stretches of each step.

    Raises:
        Rejected: *step_s* is not a positive multiple of the width of the finest buckets kept at *from_s*.
    """
    finest = finest_step_s(from_s, now_s)
    if step_s <= 0 or step_s % finest:
        raise Rejected(f"step: {step_s}s is no multiple of {finest}s, the finest buckets kept at the start")
    whole = cover(from_s, to_s, now_s)
    start, end = whole[0].start_s, whole[-1].end_s
    cuts = [start, *range((start // step_s + 1) * step_s, end, step_s), end]
    return [_cover_exactly(low, high) for low, high in pairwise(cuts)]


def _cover_exactly(start: int, end: int) -> list[Stretch]:
    """Return the fewest buckets that make up [start, end) exactly."""
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
    """Return the width in seconds of the finest buckets that are still kept at *from_s*."""
    return RESOLUTIONS[_finest(from_s, now_s)].width_s


def _finest(at_s: int, now_s: int) -> int:
    for index, resolution in enumerate(_EDGES):
        if at_s >= now_s - resolution.keep_s:
            return index
    return len(_EDGES) - 1
