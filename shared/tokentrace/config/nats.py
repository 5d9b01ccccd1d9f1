"""``nats``: the broker, the shards, and the sizes of the streams."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from tokentrace.bus import subjects
from tokentrace.bus.urls import parse_urls
from tokentrace.config.section import LARGEST, Duration, Section
from tokentrace.errors import ConfigError, quoted

#: Smallest size of the queue and of the log, bytes: less would hold no more than a few messages.
MIN_BYTES = 1_000_000


class Nats(Section, frozen=True, kw_only=True):
    """The broker, the shards, and the sizes of the streams."""

    url: Annotated[
        str, Meta(description="URL of the NATS server; the servers of a cluster are separated by commas.")
    ] = "nats://127.0.0.1:4222"
    project: Annotated[str, Meta(description="Project of the spans, which is a part of each subject.")] = "default"
    shards: Annotated[
        int,
        Meta(ge=1, le=256, description="The shard count: how many shards the log has. It is fixed at the first start."),
    ] = 1
    own_shards: Annotated[
        str, Meta(description="The shards that this aggregator holds, such as 0-1 or 0,3; empty = all.")
    ] = ""
    raw_max_bytes: Annotated[
        int, Meta(ge=MIN_BYTES, le=LARGEST, description="Maximum size of the work queue TT_RAW, in bytes.")
    ] = 1024 * 1024 * 1024
    spans_max_bytes: Annotated[
        int, Meta(ge=MIN_BYTES, le=LARGEST, description="Maximum size of the log TT_SPANS, in bytes.")
    ] = 8 * 1024 * 1024 * 1024
    spans_max_age: Annotated[
        Duration, Meta(description="How long the log TT_SPANS keeps a message; must be over 0.")
    ] = Duration(7 * 86_400_000_000_000)
    duplicate_window: Annotated[
        Duration,
        Meta(
            description="How long the broker recognises a repeated message id; must be over 0. A short time costs work "
            "but no correctness, because readers remember the batches that they have folded."
        ),
    ] = Duration(120_000_000_000)

    def check(self) -> None:
        """
        Check the URL, the project, the times and that ``own_shards`` names existing shards.

        Raises:
            ConfigError: One of them cannot work; the message names the key.
        """
        try:
            parse_urls(self.url)
        except ConfigError as exc:
            raise ConfigError(f"nats.url: {exc}") from exc
        if not self.project or len(subjects.escape(self.project)) > subjects.MAX_PROJECT:
            raise ConfigError("nats.project: must not be empty, nor too long for a subject")
        for key in ("spans_max_age", "duplicate_window"):
            if getattr(self, key) == 0:
                raise ConfigError(f"nats.{key}: must be over 0")
        own_shards(self)


def own_shards(nats: Nats) -> list[int]:
    """
    Return the shards that this aggregator holds, in ascending order; all shards if ``nats.own_shards`` is empty.

    Raises:
        ConfigError: ``nats.own_shards`` is neither like ``0-1`` nor like ``0,3``, or names a shard that does not exist.
    """
    if not nats.own_shards:
        return list(range(nats.shards))
    shards: set[int] = set()
    for part in nats.own_shards.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"nats.own_shards: {quoted(nats.own_shards)} is not of the form 0-1 or 0,3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= nats.shards:
            raise ConfigError(
                f"nats.own_shards: {quoted(nats.own_shards)} names a shard beyond the last one, {nats.shards - 1}"
            )
        shards.update(range(first, last + 1))
    return sorted(shards)
