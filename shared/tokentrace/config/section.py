"""The base class of the sections of ``tokentrace.yml``, the type of durations, and a mark for keys without effect."""

from __future__ import annotations

import msgspec

#: Largest whole number of a setting: all programs that read JSON hold it exactly.
LARGEST = 2**53 - 1


class Duration(int):
    """A number of nanoseconds; the file writes it as ``30s``, ``2h30m`` or ``7d``."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base class of a map in the file; an unknown key is an error."""

    def check(self) -> None:
        """
        Check the rules that the types of the keys cannot express.

        Raises:
            ConfigError: A value breaks a rule; the message names its key.
        """


def without_effect(description: str, reason: str) -> msgspec.Meta:
    """
    Return the metadata of a key that is validated but has no effect in the server.

    If the file sets the key, ``load`` logs a warning with the key and the *reason*.
    """
    return msgspec.Meta(description=f"{description} No effect in the server: {reason}.", extra={"reason": reason})
