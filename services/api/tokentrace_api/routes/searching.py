"""The filters that lists, exports and tails of spans share."""

from __future__ import annotations

from tokentrace.errors import Rejected, shorten
from tokentrace.records import KINDS
from tokentrace.units import ms_to_ns, usd_to_nusd
from tokentrace_api.parameters import Parameters, parse_moment, parse_number
from tokentrace_api.reads import Search

#: Parameter -> column.
_COLUMNS = {
    "model": "model",
    "caller": "caller",
    "status": "status",
    "provider": "provider",
    "name": "name",
    "kind": "kind",
    "session": "session_id",
    "user": "user_id",
}
#: Every parameter that says which spans, those that begin with ``attr.`` aside.
SEARCHED = (*_COLUMNS, "min_cost", "min_latency", "q", "since", "until")
_STATUSES = ("ok", "error", "timeout")


def parse_search(given: Parameters) -> Search:
    """
    Which spans the parameters ask for.

    Raises:
        Rejected: Names the parameter.
    """
    for name, allowed in (("status", _STATUSES), ("kind", KINDS)):
        if name in given and given[name] not in allowed:
            raise Rejected(f"{name}: {shorten(given[name])!r} is none of {', '.join(allowed)}")
    least = {}
    for name, column, scale in (("min_cost", "cost_nusd", usd_to_nusd), ("min_latency", "latency_ns", ms_to_ns)):
        if name in given:
            least[column] = scale(parse_number(given, name))
    return Search(
        columns={column: given[name] for name, column in _COLUMNS.items() if name in given},
        attributes={name.removeprefix("attr."): value for name, value in given.items() if name.startswith("attr.")},
        least=least,
        text=given.get("q", ""),
        since_ns=parse_moment(given, "since"),
        until_ns=parse_moment(given, "until"),
    )
