"""``storage``: where a service keeps its files."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import Duration, Section


class Storage(Section, frozen=True, kw_only=True):
    """Where a service keeps its files, and how much memory the span store may use."""

    dir: Annotated[
        str, Meta(description="Directory of the span store, and of the NATS server of `tokentrace serve`.")
    ] = "./tokentrace-data"
    memory_limit_mb: Annotated[int, Meta(description="Memory limit of the span store's database, in MB.")] = 256
    snapshot_interval: Annotated[Duration, Meta(description="Time between two snapshots of a reader.")] = Duration(
        60_000_000_000
    )
