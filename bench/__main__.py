"""``python -m bench [NAME …]``: run the rows, print the table, exit 1 where a budget is missed."""

from __future__ import annotations

import sys

from bench import alerts, bus, core, freshness, history, http, store, throughput
from bench.table import Row, render

GROUPS = {
    "core": core.rows,
    "bus": bus.rows,
    "store": store.rows,
    "http": http.rows,
    "history": history.rows,
    "freshness": freshness.rows,
    "alerts": alerts.rows,
    "throughput": throughput.rows,
}


def main() -> int:
    """The program; returns its exit code."""
    names = sys.argv[1:] or list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in names:
        print(f"… {name}", file=sys.stderr, flush=True)
        rows += GROUPS[name]()
    print(render(rows))
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
