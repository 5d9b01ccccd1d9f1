"""What a reporter and ingest tell each other besides spans: counters, and which spans are invalid."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ReporterStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The counters of a reporter, in spans; all but the last three count since the reporter was created.

    Attributes:
        sent: Taken from the queue to be sent.
        acked: Accepted by the pipeline.
        dropped: Discarded because the queue was full, or because the reporter was closed before they were accepted.
        failed: In a batch that the pipeline refused for good.
        queue_depth: Waiting in the queue when the batch was made, without those in the batch or on their way.
        newly_dropped, newly_failed: The part of dropped and failed that no other batch reports. Their sum over all
            batches, in any order and on any number of shards, is the total that was reported.
    """

    sent: Count = 0
    acked: Count = 0
    dropped: Count = 0
    failed: Count = 0
    queue_depth: Count = 0
    newly_dropped: Count = 0
    newly_failed: Count = 0


class SpanError(msgspec.Struct, frozen=True):
    """
    Why ingest did not take a span.

    Attributes:
        index: Its place in the request or batch, from 0.
        error: What is wrong with it; names the field.
    """

    index: Count
    error: str


class RefusalNotice(msgspec.Struct, frozen=True, kw_only=True):
    """
    What ingest tells a reporter whose batch held invalid spans.

    Attributes:
        id, sequence: Those of the batch.
        rejected: Number of spans that became dead letters.
        errors: The first of them.
    """

    id: str
    sequence: Count
    rejected: Count
    errors: list[SpanError] = []
