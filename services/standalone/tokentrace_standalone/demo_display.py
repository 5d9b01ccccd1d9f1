"""Shows on the terminal what the demo has sent."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table

from tokentrace import Reporter
from tokentrace.records import Span
from tokentrace_standalone.demo_history import JOB
from tokentrace_standalone.demo_services import SERVICES

_COLUMNS = ("requests", "spans", "tokens", "errors")
_REDRAW_S, _PRINT_S = 0.5, 10.0


class Display(contextlib.ExitStack):
    """Shows what was sent: on a terminal as a live table by service, elsewhere as a line every ten seconds."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in (*(each.name for each in SERVICES), JOB)}
        self._drawn = 0.0
        self._live = self.enter_context(Live(auto_refresh=False)) if sys.stdout.isatty() else None

    def add(self, service: str, spans: Sequence[Span]) -> None:
        """Count a request to *service*."""
        counts = self._counts[service]
        counts["requests"] += 1
        for span in spans:
            counts["spans"] += 1
            counts["tokens"] += span.total_tokens
            counts["errors"] += span.status != "ok" and bool(span.model)

    @property
    def spans(self) -> int:
        """Number of spans sent so far."""
        return sum(counts["spans"] for counts in self._counts.values())

    def draw(self, state: str, *, now: bool = False) -> None:
        """Show the condition *state* and the counts, unless they were shown a moment ago and *now* is False."""
        interval_s = _PRINT_S if self._live is None else _REDRAW_S
        if not now and time.monotonic() - self._drawn < interval_s:
            return
        self._drawn = time.monotonic()
        stats = self._reporter.stats()
        summary = f"{stats.acked} of {self.spans} spans accepted, {self._reporter.dropped} lost"
        if self._live is None:
            print(f"{state}: {summary}", flush=True)
            return
        table = Table("service", caption=f"{state}: {summary}; Ctrl-C ends the demo", caption_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right")
        for name, counts in self._counts.items():
            table.add_row(name, *(f"{counts[column]:,}" for column in _COLUMNS))
        self._live.update(table, refresh=True)
