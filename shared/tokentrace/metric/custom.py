"""Metrics of one's own (SPEC C.3): a sum, count, average or p95 of a field or attribute, over the spans that match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from tokentrace.cell import DIMENSIONS, UNKNOWN
from tokentrace.errors import ConfigError, shorten
from tokentrace.metric.registry import ALIASES, METRICS
from tokentrace.quantile import RAW_LIMIT, Summary, bins_of, tally
from tokentrace.records import Span, counts_as_cost, event_time
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE, SECOND, is_number, score_to_int
from tokentrace.window import Stretch, Tier

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Field as written -> (field of a span, what a unit of it is divided by, whether 0 means unset).
_FIELDS = {
    "cost": ("cost_nusd", NUSD_PER_USD, False),
    "prompt_tokens": ("prompt_tokens", 1, False),
    "comp_tokens": ("completion_tokens", 1, False),
    "total_tokens": ("total_tokens", 1, False),
    "latency_ms": ("latency_ns", MS, True),
    "ttft_ms": ("ttft_ns", MS, True),
}


class CustomMetric(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is measured.

    Attributes:
        field: A key of ``_FIELDS``, or ``attr.<key>``; "" for a count.
        filter_key: Dimension or attribute a span must have; "" = every span.
        filter_val: The value it must have; None = any.
    """

    name: str
    type: Literal["sum", "count", "avg", "p95"]
    field: str = ""
    filter_key: str = ""
    filter_val: str | None = None

    @property
    def divisor(self) -> int:
        """Integers kept for one unit shown: nano-dollars for a dollar, nanoseconds for a millisecond."""
        if self.type == "count":
            return 1
        return _FIELDS[self.field][1] if self.field in _FIELDS else SCORE_ONE

    def measure(self, span: Span) -> int | None:
        """What *span* adds, as an integer; None when it does not match or has no such value."""
        if self.filter_key:
            found = value_text(span, self.filter_key)
            if found is None or (self.filter_val is not None and found != self.filter_val):
                return None
        if self.type == "count" and not self.field:
            return 0
        if self.field in _FIELDS:
            name, _, zero_is_unset = _FIELDS[self.field]
            value: int | None = getattr(span, name)
            if self.field == "cost" and not counts_as_cost(span.kind):
                return None
            return None if value is None or (value == 0 and zero_is_unset) else value
        given = span.attributes.get(self.field.removeprefix("attr."))
        # A score of 1e9 and more has no meaning, and sums stay within what an int64 holds.
        return score_to_int(given) if is_number(given) and abs(given) < 1e9 else None

    def value(self, tally: Tally) -> float | None:
        """The metric in the unit of its field; None without data."""
        if tally.size == 0:
            return None
        if self.type == "count":
            return float(tally.size)
        if self.type == "sum":
            return tally.total / self.divisor
        if self.type == "avg":
            return tally.total / tally.size / self.divisor
        found = tally.summary.quantile(0.95)
        return None if found is None else found / self.divisor


def value_text(span: Span, key: str) -> str | None:
    """A dimension or attribute of *span* as text: what filters compare with; None when it has none."""
    if key in DIMENSIONS:
        return str(getattr(span, key) or UNKNOWN)
    value = span.attributes.get(key.removeprefix("attr."), span.attributes.get(key))
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_custom(given: Mapping[str, Any], where: str) -> CustomMetric:
    """
    A metric from its documented form, checked.

    Raises:
        ConfigError: Names the key and what is allowed.
    """
    metric = CustomMetric(
        name=given["name"],
        type=given["type"],
        field=given.get("field") or "",
        filter_key=given.get("filter_key") or "",
        filter_val=given.get("filter_val"),
    )
    if not _NAME.fullmatch(metric.name):
        raise ConfigError(f"{where}.name: {shorten(metric.name)!r} is not letters, digits and _")
    if metric.name in METRICS or metric.name in ALIASES:
        raise ConfigError(f"{where}.name: {metric.name!r} is a metric already")
    known = metric.field in _FIELDS or (metric.field.startswith("attr.") and len(metric.field) > len("attr."))
    if not known and not (metric.type == "count" and not metric.field):
        raise ConfigError(f"{where}.field: {shorten(metric.field)!r} is none of {', '.join(_FIELDS)}, attr.<key>")
    return metric


class Tally(NamedTuple):
    """How many values, their sum and their distribution."""

    size: int
    total: int
    summary: Summary


class _Bucket(msgspec.Struct, array_like=True):
    count: int = 0
    total: int = 0
    raw: list[int] = []
    bins: dict[int, int] = {}

    def add(self, value: int) -> None:
        self.count += 1
        self.total += value
        self.raw.append(value)
        if len(self.raw) > 4 * RAW_LIMIT:
            bins, counts = tally(bins_of(np.array(self.raw, np.int64)))
            for found, count in zip(bins.tolist(), counts.tolist(), strict=True):
                self.bins[found] = self.bins.get(found, 0) + count
            self.raw = []


class Ring:
    """
    The values of one metric in buckets of event time.

    Args:
        tiers: Widths, and how long each is kept.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tuple(tiers)
        self._buckets: list[dict[int, _Bucket]] = [{} for _ in tiers]

    def fold(self, span: Span, value: int, arrived_ns: int) -> None:
        """Take in one value, unless its bucket is no longer kept when it arrives."""
        second = event_time(span) // SECOND
        for tier, buckets in zip(self._tiers, self._buckets, strict=True):
            at = second // tier.width_s * tier.width_s
            if at + tier.width_s > arrived_ns // SECOND - tier.keep_s:
                buckets.setdefault(at, _Bucket()).add(value)

    def evict(self, now_ns: int) -> None:
        """Forget the buckets that lie behind what their tier keeps."""
        for tier, buckets in zip(self._tiers, self._buckets, strict=True):
            floor = now_ns // SECOND - tier.keep_s - tier.width_s
            for at in [at for at in buckets if at <= floor]:
                del buckets[at]

    def read(self, stretches: Sequence[Stretch]) -> Tally:
        """What the buckets of *stretches* come to."""
        found = [
            bucket
            for stretch in stretches
            for at, bucket in self._buckets[stretch.tier].items()
            if stretch.start_s <= at < stretch.end_s
        ]
        raw = [np.array(bucket.raw, np.int64) for bucket in found]
        bins = [
            (np.array(list(bucket.bins), np.int64), np.array(list(bucket.bins.values()), np.int64)) for bucket in found
        ]
        return Tally(sum(b.count for b in found), sum(b.total for b in found), Summary.merged(raw, bins))

    def snapshot(self) -> list[dict[int, _Bucket]]:
        """Everything as plain data for ``restore``."""
        return self._buckets

    def restore(self, saved: Any) -> None:
        """Become what ``snapshot`` saw."""
        self._buckets = msgspec.convert(saved, list[dict[int, _Bucket]])
