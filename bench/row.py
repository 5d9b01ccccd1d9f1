"""What a row is: a value, the limit measured beside it, their ratio, and the budget that ratio has to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

#: Times are in seconds ("s") everywhere and shown as µs, ms or s. What ends in "/s" is a rate: more is better.
Unit = Literal["s", "spans/s", "requests/s", "rows/s", "MiB", "spans", "x"]
Verdict = Literal["met", "MISSED", "FAILED", ""]


class Failed(RuntimeError):
    """A row cannot be measured; the text says why."""


class Limit(msgspec.Struct, frozen=True):
    """Reference work, as it was measured in the same run."""

    name: str
    value: float
    unit: Unit


class Budget(msgspec.Struct, frozen=True):
    """
    What a ratio has to keep.

    Attributes:
        ratio: Of the value to its limit; where a row has no limit, the value itself.
        waits_s: Waiting that is part of the design (a batch is held, a rule is evaluated once a second). No machine
            shortens it, so it is subtracted from the value before the ratio is taken.
    """

    sense: Literal["<=", ">="]
    ratio: float
    waits_s: float = 0.0

    def kept(self, ratio: float) -> bool:
        """Whether *ratio* keeps this budget."""
        return ratio <= self.ratio if self.sense == "<=" else ratio >= self.ratio


class Reference(msgspec.Struct, frozen=True):
    """
    Work that other work is held against.

    Attributes:
        set_on: Its value on the machine the budgets were set on.
        measure: Returns its value on this machine.
        again: Measured anew for each group, because it is cheap; the others once a run.
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
        name: Unique within its group; results of two runs are matched by it.
        limit: A reference, or the name of a limit that the row measures itself, in turn with its own work; "" = none.
    """

    name: str
    unit: Unit
    limit: Reference | str = ""
    budget: Budget | None = None

    @property
    def limit_name(self) -> str:
        """The limit's name, "" where there is none."""
        return self.limit.name if isinstance(self.limit, Reference) else self.limit


class Measured(msgspec.Struct, frozen=True):
    """
    What a measurement returns.

    Attributes:
        limit: Of a row that measures its own limit, in the row's unit.
        note: What a reader needs to judge the value: the rate offered, fsync, percentiles.
    """

    value: float
    limit: float | None = None
    note: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """
    A row after it was measured: what is printed, written and compared.

    Attributes:
        value: None if the row failed.
        ratio: Of the value, less the budget's waits, to the limit; None without a limit.
        reason: Why it failed.
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
        """Whether a higher value is the better one."""
        return self.budget.sense == ">=" if self.budget else self.unit.endswith("/s")


class Group(msgspec.Struct, frozen=True):
    """
    Rows that share a set-up.

    Attributes:
        run: Measures *plans* through the ``Run`` it is given.
    """

    name: str
    plans: tuple[Plan, ...]
    run: Callable[[Runner], None]


class Runner(Protocol):
    """What a group sees of a run; ``bench.run.Run`` is the one there is."""

    def row(self, plan: Plan, measure: Callable[[], Measured]) -> None:
        """Measure one row."""

    def share(self, plans: Sequence[Plan], work: Callable[[], None]) -> None:
        """Do *work*, which measures *plans* after a set-up they share; those not reached are FAILED."""

    def limit(self, reference: Reference) -> Limit:
        """A reference on this machine."""

    def offered(self, rate: float) -> int:
        """*rate* of the machine the budgets were set on, scaled to the speed of this one."""


def evaluate(group: str, plan: Plan, measured: Measured, limit: Limit | None) -> Row:
    """
    The row that *measured* makes.

    Raises:
        Failed: Its value or its limit is no finite positive number.
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
