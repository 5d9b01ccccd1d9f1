"""The run: measures rows one after another; a row that fails is reported, and the next rows are measured."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from bench.reference import LOOP
from bench.row import Failed, Group, Limit, Measured, Plan, Reference, Row, evaluate
from bench.table import Table

_REASON_LENGTH = 160


class Run:
    """
    A run of some groups.

    Attributes:
        rows: The rows so far, failed rows included.
        failed: Whether a measurement raised or a row was not measured.
    """

    def __init__(self, table: Table) -> None:
        self.rows: list[Row] = []
        self.failed = False
        self._table = table
        self._group = ""
        self._limits: dict[str, Limit | Failed] = {}
        self._again: set[str] = set()

    def group(self, group: Group) -> None:
        """Measure the references of *group* and then its rows; its services would disturb the references."""
        self._group = group.name
        self._limits = {name: limit for name, limit in self._limits.items() if name not in self._again}
        references = [plan.limit for plan in group.plans if isinstance(plan.limit, Reference)]
        for reference in references:
            if reference.name not in self._limits:
                self._refer(reference)
        self._attempt(group.plans, lambda: group.run(self))

    def row(self, plan: Plan, measure: Callable[[], Measured]) -> None:
        """Measure one row and print it; it is FAILED if *measure* raises."""

        def take() -> None:
            measured = measure()
            limit = None
            if isinstance(plan.limit, Reference):
                limit = self.limit(plan.limit)
            elif measured.limit is not None:
                limit = Limit(plan.limit, measured.limit, plan.unit)
            self._add(evaluate(self._group, plan, measured, limit))

        self._attempt([plan], take)

    def share(self, plans: Sequence[Plan], work: Callable[[], None]) -> None:
        """Do *work*, which sets up and measures *plans*; rows that are not measured because it raises are FAILED."""
        self._attempt(plans, work)

    def limit(self, reference: Reference) -> Limit:
        """
        Return the value of *reference* on this machine; measure it now if no row of the group has it as limit.

        Raises:
            Failed: The reference could not be measured.
        """
        if reference.name not in self._limits:
            self._refer(reference)
        limit = self._limits[reference.name]
        if isinstance(limit, Failed):
            raise limit
        return limit

    def offered(self, rate: float) -> int:
        """Return *rate*, which is for the machine the budgets were set on, scaled to the speed of this machine."""
        return max(int(rate * LOOP.set_on / self.limit(LOOP).value), 1)

    def _refer(self, reference: Reference) -> None:
        if reference.again:
            self._again.add(reference.name)

        def take() -> None:
            self._limits[reference.name] = Limit(reference.name, reference.measure(), reference.unit)

        reason = self._attempt([], take)
        if reason:
            self._limits[reference.name] = Failed(f"the reference could not be measured: {reason}")

    def _attempt(self, plans: Sequence[Plan], work: Callable[[], None]) -> str:
        """Do *work*, add a FAILED row for each of *plans* that has no row then, and return why *work* raised, or ""."""
        reason = ""
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - whatever a row raises, the other rows must be measured
            traceback.print_exc()
            self.failed = True
            reason = " ".join(f"{type(exc).__name__}: {exc}".removeprefix("Failed: ").split())[:_REASON_LENGTH]
        done = {(row.group, row.name) for row in self.rows}
        for plan in plans:
            if (self._group, plan.name) not in done:
                self.failed = True
                self._add(
                    Row(
                        group=self._group,
                        name=plan.name,
                        unit=plan.unit,
                        budget=plan.budget,
                        verdict="FAILED",
                        reason=reason or "the group ended without measuring it",
                    )
                )
        return reason

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._table.show(row)
        sys.stdout.flush()
