"""The rows of the table: a value, a limit measured in the same run, their ratio, and the budget of the ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

#: Times are kept in seconds ("s") and shown in µs, ms or s. Units that end in "/s" are rates, for which more is better.
Unit = Literal["s", "spans/s", "requests/s", "rows/s", "MiB", "spans", "models", "x"]
Verdict = Literal["met", "MISSED", "FAILED", ""]


class Failed(RuntimeError):
    """A row cannot be measured; the text gives the reason."""


class Limit(msgspec.Struct, frozen=True):
    """The value of reference work that was measured in the same run."""

    name: str
    value: float
    unit: Unit


class Budget(msgspec.Struct, frozen=True):
    """
    The bound that a row must keep.

    Attributes:
        sense: "<=" = upper bound, ">=" = lower bound.
        ratio: Bound of the ratio of value to limit; for a row without a limit, bound of the value.
        waits_s: Seconds of waiting by design, for example while a batch is held. They do not depend on the speed of the
            machine, so they are subtracted from the value before the ratio is computed.
    """

    sense: Literal["<=", ">="]
    ratio: float
    waits_s: float = 0.0

    def kept(self, ratio: float) -> bool:
        """Return True if *ratio* is within the bound."""
        return ratio <= self.ratio if self.sense == "<=" else ratio >= self.ratio


class Reference(msgspec.Struct, frozen=True):
    """
    Work whose value is the limit of rows.

    Attributes:
        set_on: Value on the machine the budgets were set on.
        measure: Measures and returns the value on this machine.
        again: True = measured again for each group, because it is cheap; False = measured once in a run.
    """

    name: str
    unit: Unit
    set_on: float
    measure: Callable[[], float]
    again: bool = False


class Plan(msgspec.Struct, frozen=True):
    """
    A row before it is measured.

    Attributes:
        name: Unique within the group; rows of two runs are matched by group and name.
        limit: A reference, or the name of a limit that is measured together with the value; "" = no limit.
        budget: None = no budget.
    """

    name: str
    unit: Unit
    limit: Reference | str = ""
    budget: Budget | None = None

    @property
    def limit_name(self) -> str:
        """Name of the limit; "" = no limit."""
        return self.limit.name if isinstance(self.limit, Reference) else self.limit


class Measured(msgspec.Struct, frozen=True):
    """
    The result of a measurement.

    Attributes:
        value: In the unit of the row.
        limit: Value of a limit that was measured together with the value, in the unit of the row; otherwise None.
        note: Circumstances of the measurement: the rate offered, the time of an fsync, percentiles.
    """

    value: float
    limit: float | None = None
    note: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """
    A row after it was measured, as it is printed, written and compared.

    Attributes:
        value: None if the row failed.
        ratio: (value - waits of the budget) / limit, at least 0; None without a limit.
        verdict: Whether the budget is met; "" = no budget.
        reason: Why the row failed.
    """

    group: str
    name: str
    unit: Unit
    value: float | None = None
    limit: Limit | None = None
    ratio: float | None = None
    budget: Budget | None = None
    verdict: Verdict = ""
    note: str = ""
    reason: str = ""

    @property
    def more_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.budget.sense == ">=" if self.budget else self.unit.endswith("/s")


class Group(msgspec.Struct, frozen=True):
    """
    Rows that are measured by one function.

    Attributes:
        plans: All rows of the group.
        run: Measures the rows with the methods of the ``Runner`` that it gets.
    """

    name: str
    plans: tuple[Plan, ...]
    run: Callable[[Runner], None]


class Runner(Protocol):
    """The interface of a run for its groups; ``bench.run.Run`` implements it."""

    def row(self, plan: Plan, measure: Callable[[], Measured]) -> None:
        """Measure one row; it is FAILED if *measure* raises."""

    def share(self, plans: Sequence[Plan], work: Callable[[], None]) -> None:
        """Do *work*, which sets up and measures *plans*; rows that are not measured because it raises are FAILED."""

    def limit(self, reference: Reference) -> Limit:
        """Return the value of *reference* on this machine; raise Failed if it could not be measured."""

    def offered(self, rate: float) -> int:
        """Return *rate*, which is for the machine the budgets were set on, scaled to the speed of this machine."""


def evaluate(group: str, plan: Plan, measured: Measured, limit: Limit | None) -> Row:
    """
    Return the row for a measurement.

    Raises:
        Failed: The value is negative or not finite, or the limit is not positive or not finite.
    """
    value, budget, ratio = measured.value, plan.budget, None
    if not 0 <= value < float("inf"):
        raise Failed(f"{plan.name}: the value measured is {value}")
    if limit is not None:
        if not 0 < limit.value < float("inf"):
            raise Failed(f"{plan.name}: the limit measured, {limit.name}, is {limit.value}")
        ratio = max(value - (budget.waits_s if budget else 0.0), 0.0) / limit.value
    verdict: Verdict = ""
    if budget is not None:
        verdict = "met" if budget.kept(value if ratio is None else ratio) else "MISSED"
    return Row(
        group=group,
        name=plan.name,
        unit=plan.unit,
        value=value,
        limit=limit,
        ratio=ratio,
        budget=budget,
        verdict=verdict,
        note=measured.note,
    )
