"""``storage``: where a service keeps its files."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import LARGEST, Duration, Section
from tokentrace.errors import ConfigError


class Storage(Section, frozen=True, kw_only=True):
    """Where a service keeps its files, and how much memory the span store may use."""

    dir: Annotated[
        str, Meta(description="Directory of the span store, and of the NATS server of `tokentrace serve`.")
    ] = "./tokentrace-data"
    memory_limit_mb: Annotated[
        int, Meta(ge=32, le=LARGEST, description="Memory limit of the span store's database, in MB.")
    ] = 256
    snapshot_interval: Annotated[
        Duration, Meta(description="Time between two snapshots of a reader; must be over 0.")
    ] = Duration(60_000_000_000)

    def check(self) -> None:
        """
        Check the directory and the time between snapshots.

        Raises:
            ConfigError: The directory has no name, or the time is 0; the message names the key.
        """
        if not self.dir:
            raise ConfigError("storage.dir: must not be empty")
        if self.snapshot_interval == 0:
            raise ConfigError("storage.snapshot_interval: must be over 0")
