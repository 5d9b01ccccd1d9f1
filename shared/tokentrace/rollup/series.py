"""Series: the combinations of dimension values for which rollups keep numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokentrace.records import Span
from tokentrace.rollup.folded import FoldedValues, restore_folded
from tokentrace.rollup.quantile import Ints

#: Number of series with a name or a caller that a shard keeps apart.
MAX_SERIES = 2000
#: Most models, and most providers, that a shard keeps apart: the first ones that it sees.
MAX_MODELS, MAX_PROVIDERS = 500, 100
#: Most series without a name and a caller of their own that are kept apart by provider.
MAX_PLAIN = 2000
#: Sixteenths of ``MAX_SERIES`` that may have a name, and that may have a caller only. The last one of each is for
#: combinations of a known name and caller, so that a flood of new ones does not fold a known one whose calls begin to
#: fail, say.
_NAMED, _KNOWN_NAMED, _CALLERS, _KNOWN_CALLERS, _ALL = 11, 12, 3, 4, 16
OTHER = "other"
UNKNOWN = "unknown"
DIMENSIONS = ("kind", "model", "provider", "caller", "name", "status")
#: The dimensions whose values may be counted under ``other``.
FOLDABLE = ("model", "provider", "caller", "name")


class Dimensions(NamedTuple):
    """The dimensions of a series; ``unknown`` stands for a model, provider, caller or name that the span lacks."""

    kind: str
    model: str
    provider: str
    caller: str
    name: str
    status: str


class SeriesTable:
    """
    The series of one shard, numbered in order of appearance; a number never changes.

    The first ``MAX_MODELS`` models and ``MAX_PROVIDERS`` providers are kept apart; later ones are counted as ``other``.
    If there are three quarters of ``MAX_SERIES`` with a name, a new combination is counted under the name ``other``; if
    there is a quarter of it with a caller only, under the caller ``other`` too; and beyond ``MAX_PLAIN`` combinations
    without both, under the provider ``other``. Kind and status are always kept, and so are the models that are kept
    apart, so totals and values by these models are exact.

    Args:
        series: Dimensions of the first series, from a snapshot.
        most: The limit in place of ``MAX_SERIES``.
        folded: What ``folded_snapshot`` returned for these series.

    Attributes:
        series: Dimensions of each series; the index is its number.
    """

    def __init__(
        self,
        series: Iterable[Sequence[str]] = (),
        *,
        most: int | None = None,
        folded: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self._most = most
        self.series: list[Dimensions] = []
        self._numbers: dict[tuple[str, ...], int] = {}
        #: Key that is counted under another one -> number of that series, to find it in one step; within limits.
        self._cached: dict[tuple[str, ...], int] = {}
        self._columns: dict[str, tuple[Ints, dict[str, int]]] = {}
        #: Dimension -> the values that have series of their own, in order of appearance.
        self._separate: dict[str, dict[str, None]] = {dimension: {} for dimension in FOLDABLE}
        #: Dimension -> its values that are counted under ``other``; a dimension without such values is absent.
        self._folded = restore_folded(folded or {})
        #: Number of series with a name, of those with a caller only, and of those with neither but a provider.
        self._named = self._callers = self._plain = 0
        self._noting = False
        for values in series:
            self._add(Dimensions(*values))
        self._noting = True

    def __len__(self) -> int:
        return len(self.series)

    def number(self, key: tuple[str, str, str, str, str, str]) -> int:
        """Return the number of the series for the dimensions *key*; add the series if it is new."""
        known = self._numbers.get(key)
        if known is None:
            known = self._cached.get(key)
        if known is not None:
            return known
        kind, model, provider, caller, name, status = key
        full = Dimensions(kind, model or UNKNOWN, provider or UNKNOWN, caller or UNKNOWN, name or UNKNOWN, status)
        known = self._numbers.get(full)
        if known is None:
            known = self._counted_as(full)
            self._note(full, self.series[known])
        if key not in self._numbers and len(self._cached) < 3 * (self._most or MAX_SERIES):
            self._cached[key] = known
        return known

    def _counted_as(self, full: Dimensions) -> int:
        """Return the number of the series under which *full* is counted; add the series if it is new."""
        full = self._limited(full)
        no_name = full._replace(name=OTHER)
        for candidate in (full, no_name):
            known = self._numbers.get(candidate)
            if known is None and self._has_room(candidate):
                known = self._add(candidate)
            if known is not None:
                return known
        return self._find_or_add(self._plain_limited(no_name._replace(caller=OTHER)))

    def _has_room(self, new: Dimensions) -> bool:
        """Return whether *new* may become a series with its name and caller."""
        separate, most = self._separate, self._most or MAX_SERIES
        known = new.caller in separate["caller"]
        if new.name != OTHER:
            known = known and new.name in separate["name"]
            return self._named < most * (_KNOWN_NAMED if known else _NAMED) // _ALL
        return new.caller != OTHER and self._callers < most * (_KNOWN_CALLERS if known else _CALLERS) // _ALL

    def _limited(self, full: Dimensions) -> Dimensions:
        """Return *full* with ``other`` in place of a model or a provider that is not kept apart."""
        separate = self._separate
        if full.model not in separate["model"] and len(separate["model"]) >= MAX_MODELS:
            full = full._replace(model=OTHER)
        if full.provider not in separate["provider"] and len(separate["provider"]) >= MAX_PROVIDERS:
            full = full._replace(provider=OTHER)
        return full

    def _plain_limited(self, plain: Dimensions) -> Dimensions:
        """Return *plain*, whose name and caller are ``other``, under the provider ``other`` if there are too many."""
        known = plain in self._numbers or self._plain < MAX_PLAIN
        return plain if known else plain._replace(provider=OTHER)

    def _find_or_add(self, dimensions: Dimensions) -> int:
        known = self._numbers.get(dimensions)
        return self._add(dimensions) if known is None else known

    def _note(self, full: Dimensions, counted: Dimensions) -> None:
        """Note which values of *full* are counted under ``other``, because its series is *counted*."""
        for dimension in FOLDABLE:
            value = getattr(full, dimension)
            if value != getattr(counted, dimension):
                folded = self._folded.get(dimension)
                if folded is None:
                    folded = self._folded[dimension] = FoldedValues()
                folded.add(value, is_separate=value in self._separate[dimension])

    def number_of(self, span: Span) -> int:
        """Return the number of the series for *span*; add the series if it is new."""
        return self.number((span.kind, span.model, span.provider, span.caller, span.name, span.status))

    def number_of_group(self, span: Span, group: str) -> int:
        """Return the number of the series for *group* with the kind and status of *span*; add it if it is new."""
        return self.number((span.kind, "", "", "", group, span.status))

    def _add(self, dimensions: Dimensions) -> int:
        number = self._numbers[dimensions] = len(self.series)
        self.series.append(dimensions)
        if dimensions.name != OTHER:
            self._named += 1
        elif dimensions.caller != OTHER:
            self._callers += 1
        elif dimensions.provider != OTHER:
            self._plain += 1
        for dimension, values in self._separate.items():
            value = getattr(dimensions, dimension)
            if value != OTHER and value not in values:
                values[value] = None
                # A combination of known values has more room, so one that had none may have some now. A table that was
                # restored remembers no keys, and must decide the same.
                self._cached.clear()
                if self._noting and dimension in self._folded:
                    # Spans with this value may be under ``other`` already.
                    self._folded[dimension].partial.add(value)
        return number

    def folded(self, names: Collection[str]) -> tuple[SeriesTable, Ints]:
        """Return (a table in which every name that is not in *names* is ``other``, the new number of each series)."""
        table = SeriesTable(most=self._most)
        keys = [key if key.name in names else key._replace(name=OTHER) for key in self.series]
        return table, np.array([table.number(key) for key in keys], np.int64)

    @property
    def is_over_limits(self) -> bool:
        """Whether an earlier version kept more models, providers or series apart than the limits allow."""
        separate = self._separate
        too_many = len(separate["model"]) > MAX_MODELS or len(separate["provider"]) > MAX_PROVIDERS
        return too_many or self._plain > MAX_PLAIN

    def within_limits(self) -> tuple[SeriesTable, Ints]:
        """Return (a table with these series that keeps the limits, the new number of each series)."""
        table, numbers = SeriesTable(most=self._most), []
        for key in self.series:
            counted = table._limited(key)
            if counted.name == OTHER and counted.caller == OTHER:
                counted = table._plain_limited(counted)
            numbers.append(table._find_or_add(counted))
            table._note(key, counted)
        # Callers and names stay as they are.
        table._folded = {**restore_folded(self.folded_snapshot()), **table._folded}
        return table, np.array(numbers, np.int64)

    def forget_before(self, until_s: int) -> None:
        """
        Note that it is not known which callers and names were counted under ``other`` before *until_s*, Unix seconds.

        For series of an earlier version, which did not note it.
        """
        for dimension in ("caller", "name"):
            if any(getattr(key, dimension) == OTHER for key in self.series):
                self._folded.setdefault(dimension, FoldedValues()).unknown_before_s = until_s

    def column(self, dimension: str) -> tuple[Ints, dict[str, int]]:
        """Return (code of each series' value of *dimension*, value -> code); values are numbered as they appear."""
        codes, known = self._columns.get(dimension, (np.empty(0, np.int64), {}))
        if len(codes) < len(self.series):
            new = [known.setdefault(getattr(key, dimension), len(known)) for key in self.series[len(codes) :]]
            codes = np.concatenate([codes, np.array(new, np.int64)])
            self._columns[dimension] = (codes, known)
        return codes, known

    def separate(self, dimension: str) -> int:
        """Return the number of values of *dimension* that have series of their own."""
        return len(self._separate[dimension])

    def folded_count(self, dimension: str) -> bytes:
        """Return the count of the values of *dimension* under ``other``, for ``distinct``; b"" = none."""
        folded = self._folded.get(dimension)
        return folded.registers if folded is not None else b""

    def exact(self, dimension: str) -> list[str] | None:
        """Return the values of *dimension* none of whose spans are under ``other``; None = those are all values."""
        folded = self._folded.get(dimension)
        if folded is None:
            return None
        return [value for value in self._separate[dimension] if value not in folded.partial]

    def inexact(self, filters: Mapping[str, str], from_s: int) -> list[str]:
        """
        Return the dimensions in *filters* whose value may have spans under ``other``.

        Args:
            filters: Dimension -> value. The value ``other`` means what is counted there.
            from_s: Start of the interval, Unix seconds.
        """
        return [
            dimension
            for dimension, value in filters.items()
            if value != OTHER and dimension in self._folded and not self._is_exact(dimension, value, from_s)
        ]

    def _is_exact(self, dimension: str, value: str, from_s: int) -> bool:
        folded = self._folded[dimension]
        known = value in self._separate[dimension] and value not in folded.partial
        return known and from_s >= folded.unknown_before_s

    def folded_snapshot(self) -> dict[str, list[Any]]:
        """Return dimension -> what is counted under ``other``, as plain data."""
        return {dimension: folded.snapshot() for dimension, folded in self._folded.items()}
