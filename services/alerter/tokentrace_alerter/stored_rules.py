"""The entries of ``tt_rules``, and the changes of rules that they make."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from tokentrace.records import Instant
from tokentrace_alerter.kept_channels import KeptChannel
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule
from tokentrace_alerter.silences import Silence


class StoredRule(msgspec.Struct):
    """
    An entry of ``tt_rules``; JSON.

    Attributes:
        rule: The rule as it was posted; None = the rule of the configuration.
        silenced_until_ns: End of the silence, Unix nanoseconds; 0 = there is none.
        silenced_at_ns: When the present or last silence was made, Unix nanoseconds; 0 = there was none, or an earlier
            version made it.
        silenced_by, silence_comment: Who made the present silence, and why; "" = it was not said.
        since_ns: Events up to this instant belong to an earlier rule of this name, Unix nanoseconds.
        past_silences: The silences before the present or last one, oldest first, each with the instant of its end.
        kept: Where episodes are delivered that began earlier; it outlives the rule.
    """

    name: str
    rule: dict[str, Any] | None = None
    deleted: bool = False
    silenced_until_ns: Instant = 0
    since_ns: Instant = 0
    kept: list[KeptChannel] = []
    silenced_at_ns: Instant = 0
    silenced_by: str = ""
    silence_comment: str = ""
    past_silences: list[Silence] = []

    @property
    def silence(self) -> Silence:
        """The present or last silence."""
        return Silence(self.silenced_until_ns, self.silenced_at_ns, self.silenced_by, self.silence_comment)


class RuleChange(NamedTuple):
    """
    A change of one rule.

    Attributes:
        rule: The new rule; None = the rule was deleted, or only its silence has changed.
        removed: True = the rule was deleted.
        silenced_until_ns: End of the silence, Unix nanoseconds; 0 = there is none.
        since_ns: Events up to this instant belong to an earlier rule of this name, Unix nanoseconds.
        continues: True = the new rule continues the state of the one before.
        silenced_at_ns: When the present or last silence was made, Unix nanoseconds; 0 = unknown.
    """

    name: str
    rule: Rule | None
    removed: bool
    silenced_until_ns: int
    since_ns: int = 0
    continues: bool = False
    silenced_at_ns: int = 0

    def apply_to(self, machine: AlerterMachine) -> None:
        """Make this change in *machine*."""
        if (self.rule is not None or self.removed) and not self.continues:
            machine.remove_rule(self.name, self.since_ns or None)
        if self.rule is not None and self.continues:
            machine.change_rule(self.rule)
        elif self.rule is not None:
            machine.add_rule(self.rule)
        machine.silence(self.name, self.silenced_until_ns, self.silenced_at_ns)


def key_of(name: str) -> str:
    """Return the key of the entry of the rule *name*: a hash, because keys allow fewer characters than names."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]
