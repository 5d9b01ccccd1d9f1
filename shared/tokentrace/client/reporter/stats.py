"""The counters of a reporter."""

from __future__ import annotations

from typing import NamedTuple


class Stats(NamedTuple):
    """
    The counters of a reporter, in spans, since it was created or, in a forked child, since the fork.

    Attributes:
        sent: Taken from the queue to be sent.
        acked: Accepted by the pipeline.
        dropped: Discarded because the queue was full, or because the reporter was closed before they were accepted.
        failed: In a batch that the pipeline refused for good.
        queue_depth: Waiting in the queue or being sent.
        rejected: Not valid, as the reporter or ingest found; the reasons are logged, and the pipeline shows them.
        spooled: On disk, in the spool, until the pipeline accepts them.
        adopted: Of processes that died: sent from the spool by this reporter and accepted. In no other counter.
        truncated: Stored, with values that were cut or corrected; ``Span.adjusted`` names them. Counted in acked too.
    """

    sent: int
    acked: int
    dropped: int
    failed: int
    queue_depth: int
    rejected: int = 0
    truncated: int = 0
    spooled: int = 0
    adopted: int = 0
