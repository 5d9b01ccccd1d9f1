"""``retention``: how long the span store keeps spans, and how many."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tokentrace.config.section import LARGEST, Duration, Section, without_effect
from tokentrace.errors import ConfigError


class Retention(Section, frozen=True, kw_only=True):
    """How long the span store keeps spans, and how many."""

    memory_window: Annotated[Duration, Meta(description="How long spans are shown; must be over 0.")] = Duration(
        7 * 86_400_000_000_000
    )
    disk_days: Annotated[
        int,
        without_effect(
            "Client programs only: days for which a file transport keeps rotated files.",
            "memory_window and max_bytes limit its store",
        ),
    ] = 30
    max_spans: Annotated[
        int, Meta(ge=0, le=LARGEST, description="Number of newest spans that are shown; 0 = no limit.")
    ] = 0
    max_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=LARGEST,
            description="Maximum size of the span store, in bytes; its oldest files are deleted; 0 = no limit.",
        ),
    ] = 16 * 1024 * 1024 * 1024

    def check(self) -> None:
        """
        Check that ``memory_window`` is over 0.

        Raises:
            ConfigError: ``memory_window`` is 0.
        """
        if self.memory_window == 0:
            raise ConfigError("retention.memory_window: must be over 0, or no span is ever shown")
