"""The base class of the sections of ``tokentrace.yml``, the type of durations, and marks for keys without effect."""

from __future__ import annotations

import msgspec


class Duration(int):
    """A number of nanoseconds; the file writes it as ``30s``, ``2h30m`` or ``7d``."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file; a key that it does not have is an error."""

    def check(self) -> None:
        """
        Check what the types alone cannot say.

        Raises:
            ConfigError: Names the key.
        """


def without_effect(description: str, reason: str) -> msgspec.Meta:
    """
    Describe a key that is validated and that the server does not use.

    ``load`` logs a warning that names the key and gives the *reason* if the file sets it.
    """
    return msgspec.Meta(description=f"{description} No effect in the server: {reason}.", extra={"reason": reason})
