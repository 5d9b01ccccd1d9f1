"""
The smallest and the largest value of each distribution of a series, so that no quantile leaves the range of the data.

A row of a matrix of extremes belongs to a series. With F distributions it has 2 F columns: the smallest value of each,
then the bitwise complement of the largest value of each. The complement reverses the order, so both kinds of column
merge by taking the minimum. A distribution without values has ``NOTHING`` in both columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tokentrace.rollup.int_sums import IntSums, pack
from tokentrace.rollup.quantile import Ints, starts_of
from tokentrace.rollup.rows import Field

NOTHING = 2**63 - 1


def extremes_of(rows: Ints, fields: Mapping[str, Field]) -> Ints:
    """Return the extremes of each of *rows*: int64 of shape (number of rows, 2 * number of fields)."""
    size = len(fields)
    extremes = np.full((len(rows), 2 * size), NOTHING, np.int64)
    for number, field in enumerate(fields.values()):
        counted = field.counted(rows)
        values = rows[counted, field.column]
        extremes[counted, number], extremes[counted, size + number] = values, ~values
    return extremes


def extremes_of_changes(values: Ints, added: Ints, number: int, size: int) -> Ints:
    """
    Return the extremes of changed values; a removed value has none, because other spans may have the same value.

    Args:
        values: The value of each row.
        added: Indices of the rows that add their value.
        number: Number of the distribution that changes; -1 = the schema has no such distribution.
        size: Number of distributions.
    """
    extremes = np.full((len(values), 2 * size), NOTHING, np.int64)
    if number >= 0:
        extremes[added, number], extremes[added, size + number] = values[added], ~values[added]
    return extremes


def least_of_runs(extremes: Ints, starts: Ints) -> Ints:
    """Return the extremes of each run of rows; a run extends from one index in *starts* to the next or to the end."""
    return np.minimum.reduceat(extremes, starts, axis=0) if len(extremes) else extremes


def least_by(groups: Ints, extremes: Ints) -> tuple[Ints, Ints]:
    """Return (distinct *groups*, ascending; the extremes of the rows of each)."""
    order = np.argsort(groups, kind="stable")
    groups = groups[order]
    starts = starts_of(groups)
    return groups[starts], least_of_runs(extremes[order], starts)


class PackedExtremes(NamedTuple):
    """
    Extremes in less memory, as bytes: they are read less often than sums, and making arrays of them delays a start.

    Attributes:
        rows: Number of series.
        columns: Number of columns, twice the number of distributions of a series.
        saved: The bytes of ``small_columns``, ``small``, ``large_columns`` and ``large`` of ``Packed``.
    """

    rows: int
    columns: int
    saved: Sequence[bytes]


def pack_extremes(extremes: Ints) -> PackedExtremes:
    """Return *extremes* in less memory."""
    size = extremes.shape[1] // 2
    values = np.concatenate([extremes[:, :size], ~extremes[:, size:]], axis=1)
    # 0 stands for no value, so that a column without values takes no memory.
    values = np.where(extremes == NOTHING, 0, values + (values >= 0))
    packed = pack(IntSums(values))
    arrays = packed.small_columns, packed.small, packed.large_columns, packed.large
    return PackedExtremes(len(values), values.shape[1], [array.tobytes() for array in arrays])


def saved_extremes(rows: int, columns: int, saved: Sequence[bytes]) -> PackedExtremes:
    """
    Return extremes from a snapshot; the arguments are the attributes.

    Raises:
        ValueError, TypeError: The arrays do not fit together.
    """
    small_columns, small, large_columns, large = map(len, saved)
    # The numbers of columns take 8 bytes each, small values 4 and large ones 8.
    if (small_columns | large_columns) % 8 or (2 * small, large) != (rows * small_columns, rows * large_columns):
        raise ValueError(f"the extremes are not those of {rows} series")
    return PackedExtremes(rows, columns, saved)


def unpack_extremes(packed: PackedExtremes) -> Ints:
    """Return the extremes that were packed."""
    rows, columns, (small_columns, small, large_columns, large) = packed
    values = np.zeros((rows, columns), np.int64)
    for names, numbers, kind in ((small_columns, small, np.uint32), (large_columns, large, np.int64)):
        places = np.frombuffer(names, np.int64)
        values[:, places] = np.frombuffer(numbers, kind).reshape(rows, len(places))
    missing = values == 0
    values -= values > 0
    size = values.shape[1] // 2
    values[:, size:] = ~values[:, size:]
    values[missing] = NOTHING
    return values
