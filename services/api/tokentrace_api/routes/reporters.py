"""``GET /reporters``: the reporters that send spans, with their counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_instant
from tokentrace_api.rejected_history import RejectedHistory
from tokentrace_api.reporter_states import MAX_NAMES, ReporterStates
from tokentrace_api.routes.answers import InstantText, Natural


class ReporterRow(msgspec.Struct, kw_only=True):
    """
    A reporter: all processes that report under one name. The counters are in spans, since each process started.

    Attributes:
        source: Its name, which is the caller of spans that name none.
        last_seen: When its last batch was stored in the log.
        processes: Number of processes that have sent a batch.
        sent: Taken from a queue to be sent.
        acked: Accepted by the pipeline.
        failed: In batches that the pipeline refused for good.
        dropped: Discarded because a queue was full, or because the reporter was closed before they were accepted.
        queue_depth: Waiting behind the last batch of each process that has sent one in the last 30 seconds.
        rejected: Refused spans of this name, of all projects, as `GET /rejected` counts them; absent for a name that is
            not among the 1,000 whose spans were refused last.
    """

    project: str
    source: str
    last_seen: InstantText
    processes: Natural
    sent: Natural
    acked: Natural
    failed: Natural
    dropped: Natural
    queue_depth: Natural
    rejected: Natural | UnsetType = UNSET


class ReporterList(msgspec.Struct):
    """
    The reporters, the one that sent last first; at most 1,000.

    Attributes:
        since: When this api started. A reporter whose last batch was stored before is not listed.
    """

    reporters: list[ReporterRow]
    count: Natural
    since: InstantText


_EXAMPLE: dict[str, Any] = {
    "reporters": [
        {
            "project": "default",
            "source": "checkout",
            "last_seen": "2026-03-15T14:23:01.441Z",
            "processes": 2,
            "sent": 8950,
            "acked": 8941,
            "failed": 0,
            "dropped": 9,
            "queue_depth": 0,
            "rejected": 3,
        }
    ],
    "count": 1,
    "since": "2026-03-15T13:22:49.000Z",
}
_REPORTERS = operation(
    "listReporters",
    "List reporters",
    "Who sends spans: the counters that each reporter sent with its last batch, added up for its processes.",
    Answer(ReporterList, "The reporters.", _EXAMPLE),
    errors={400: "limit: unknown parameter; allowed are none"},
)


def router(
    states: ReporterStates, refused: RejectedHistory, now_ns: Callable[[], int], started_ns: Callable[[], int]
) -> Router:
    """
    Return the route.

    Args:
        now_ns, started_ns: Return the broker's time now, and that of the start of the api, Unix nanoseconds.
    """
    routes = Router("spans")

    @routes.get("/reporters", **_REPORTERS)
    async def reporters() -> Response:
        rejected = refused.by_reporter
        rows = [
            ReporterRow(
                project=sums.project,
                source=sums.name,
                last_seen=render_instant(sums.last_ns),
                processes=sums.processes,
                sent=sums.sent,
                acked=sums.acked,
                failed=sums.failed,
                dropped=sums.dropped,
                queue_depth=sums.queue_depth,
                rejected=rejected.get(sums.name, UNSET if len(rejected) >= MAX_NAMES else 0),
            )
            for sums in states.sums(now_ns())
        ]
        return reply(ReporterList(rows, len(rows), render_instant(started_ns())))

    return routes
