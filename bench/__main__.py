"""``python -m bench [NAME …]``: measure rows, print each as it is measured, exit 1 where a budget is missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import alerts, bus, core, freshness, history, http, reference, results, store, throughput
from bench.row import Group
from bench.run import Run
from bench.table import Table, listing

GROUPS = (
    Group("reference", reference.PLANS, reference.run),
    Group("core", core.PLANS, core.run),
    Group("bus", bus.PLANS, bus.run),
    Group("store", store.PLANS, store.run),
    Group("http", http.PLANS, http.run),
    Group("history", history.PLANS, history.run),
    Group("freshness", freshness.PLANS, freshness.run),
    Group("alerts", alerts.PLANS, alerts.run),
    Group("throughput", throughput.PLANS, throughput.run),
)


def main(words: Sequence[str] | None = None, groups: Sequence[Group] = GROUPS) -> int:
    """
    The program.

    Returns:
        0; 1 if a row failed or missed its budget, or with ``--strict`` became worse; 2 if the command line is wrong.
    """
    given = _parse(words, groups)
    if isinstance(given, str):
        print(f"bench: {given}", file=sys.stderr)
        return 2
    wanted = [*given.names, *given.only]
    chosen = [group for group in groups if not wanted or group.name in wanted]
    if given.list:
        print(listing(chosen))
        return 0
    try:
        old = results.read(given.against) if given.against else None
    except (OSError, msgspec.DecodeError) as exc:
        print(f"bench: --against {given.against}: no results can be read from it: {exc}", file=sys.stderr)
        return 2
    table = Table(chosen, sys.stdout)
    run = Run(table)
    table.head()
    try:
        for group in chosen:
            print(f"… {group.name}", file=sys.stderr, flush=True)
            run.group(group)
    finally:
        # Also when it is interrupted: what was measured until then took its time.
        if given.json:
            results.write(given.json, run.rows)
    failed = run.failed or any(row.verdict in ("MISSED", "FAILED") for row in run.rows)
    if old is not None:
        comparison = results.compare(old.rows, run.rows)
        print(f"\nAgainst {given.against}, taken {old.taken_at}:\n\n{comparison.text}")
        if old.sizes != results.sizes():
            print(f"\nOther sizes: {old.sizes or 'the usual'} then, {results.sizes() or 'the usual'} now.")
        failed = failed or (given.strict and bool(comparison.worse))
    return 1 if failed else 0


def _parse(words: Sequence[str] | None, groups: Sequence[Group]) -> argparse.Namespace | str:
    """The command line, or what is wrong with it."""
    known = [group.name for group in groups]
    parser = argparse.ArgumentParser(prog="bench", description="Measure the budgets.", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"groups to measure; default all: {', '.join(known)}")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="the same; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the rows and their budgets; measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the results in FILE")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit 1 where a row is worse than in FILE by {results.WORSE:.0%} or more"
    )
    given = parser.parse_args(words)
    unknown = [name for name in [*given.names, *given.only] if name not in known]
    if unknown:
        return f"there is no group {', '.join(unknown)}; there are {', '.join(known)}"
    if given.strict and not given.against:
        return "--strict needs --against FILE"
    if given.json and not given.json.absolute().parent.is_dir():
        return f"--json {given.json}: its directory does not exist"
    return given


if __name__ == "__main__":
    sys.exit(main())
