"""The command ``python -m bench [NAME …]``: measures rows and prints each as soon as it is measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import (
    alerts,
    bodies,
    bus,
    cardinality,
    core,
    freshness,
    history,
    http,
    imports,
    large_trace,
    otlp,
    pricing,
    reference,
    reporting,
    results,
    store,
    throughput,
    tracking,
)
from bench.row import Group
from bench.run import Run
from bench.table import Table, listing

GROUPS = (
    Group("reference", reference.PLANS, reference.run),
    Group("core", core.PLANS, core.run),
    Group("pricing", pricing.PLANS, pricing.run),
    Group("bus", bus.PLANS, bus.run),
    Group("store", store.PLANS, store.run),
    Group("bodies", bodies.PLANS, bodies.run),
    Group("large_trace", large_trace.PLANS, large_trace.run),
    Group("http", http.PLANS, http.run),
    Group("otlp", otlp.PLANS, otlp.run),
    Group("history", history.PLANS, history.run),
    Group("cardinality", cardinality.PLANS, cardinality.run),
    Group("freshness", freshness.PLANS, freshness.run),
    Group("alerts", alerts.PLANS, alerts.run),
    Group("reporting", reporting.PLANS, reporting.run),
    Group("tracking", tracking.PLANS, tracking.run),
    Group("import", imports.PLANS, imports.run),
    Group("throughput", throughput.PLANS, throughput.run),
)


def main(words: Sequence[str] | None = None, groups: Sequence[Group] = GROUPS) -> int:
    """
    Run the command.

    Args:
        words: Arguments of the command; None = those of this process.
        groups: The groups that can be chosen.

    Returns:
        The exit code. 0 = success, and all budgets are met; 1 = a row failed or missed its budget, or became worse with
        ``--strict``; 2 = an argument is wrong, or the file of ``--against`` cannot be read.

    Raises:
        SystemExit: The arguments have a wrong form, or ask for help.
        OSError: The file of ``--json`` cannot be written.
    """
    options = _parse(words, groups)
    if isinstance(options, str):
        print(f"bench: {options}", file=sys.stderr)
        return 2
    wanted = [*options.names, *options.only]
    chosen = [group for group in groups if not wanted or group.name in wanted]
    if options.list:
        print(listing(chosen))
        return 0
    try:
        old = results.read(options.against) if options.against else None
    except (OSError, msgspec.DecodeError) as exc:
        print(f"bench: --against {options.against}: cannot read results from this file: {exc}", file=sys.stderr)
        return 2
    table = Table(chosen, sys.stdout)
    run = Run(table)
    table.head()
    try:
        for group in chosen:
            print(f"… {group.name}", file=sys.stderr, flush=True)
            run.group(group)
    finally:
        # Write the file after an interruption too, so that the rows measured so far are not lost.
        if options.json:
            results.write(options.json, run.rows)
    failed = run.failed or any(row.verdict in ("MISSED", "FAILED") for row in run.rows)
    if old is not None:
        comparison = results.compare(old.rows, run.rows)
        print(f"\nAgainst {options.against}, taken {old.taken_at}:\n\n{comparison.text}")
        if old.sizes != results.sizes():
            print(f"\nOther sizes: {old.sizes or 'the usual'} then, {results.sizes() or 'the usual'} now.")
        failed = failed or (options.strict and bool(comparison.worse))
    return 1 if failed else 0


def _parse(words: Sequence[str] | None, groups: Sequence[Group]) -> argparse.Namespace | str:
    """Return the parsed arguments, or a text that says what is wrong with them."""
    known = [group.name for group in groups]
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure the rows of a table and check their budgets.", allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"groups to measure; default all: {', '.join(known)}")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="group to measure, like NAME; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and their budgets; measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with the results in FILE, which --json wrote"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"exit 1 if a row is worse than in the FILE of --against by more than {results.WORSE:.0%}%",
    )
    options = parser.parse_args(words)
    unknown = [name for name in [*options.names, *options.only] if name not in known]
    if unknown:
        return f"there is no group {', '.join(unknown)}; there are {', '.join(known)}"
    if options.strict and not options.against:
        return "--strict needs --against FILE"
    if options.json and not options.json.absolute().parent.is_dir():
        return f"--json {options.json}: the directory of the file does not exist"
    return options


if __name__ == "__main__":
    sys.exit(main())
