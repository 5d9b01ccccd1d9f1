"""
All rules: those of the configuration and those created at run time, with silences and deletions.

Changes at run time are kept in the bucket ``tt_rules``: one entry for each rule, written with compare-and-set. Every
alerter follows the bucket as a stream. Entries survive restarts, except that a deleted rule of the configuration comes
back for all alerters when one of them restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tokentrace.bad_data import BAD_DATA, UNREADABLE, reading, reason_of
from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, quoted
from tokentrace.metrics import CustomMetric
from tokentrace.records import (
    AlertAnswer,
    AlertRequest,
    CreateRule,
    DeleteRule,
    Instant,
    ListRules,
    decode_alert_request,
    encode_alert_answer,
)
from tokentrace.service.follow import Follower
from tokentrace.units import DAY, parse_duration, render_instant
from tokentrace_alerter.delivery import AllowedHosts, Channel
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule, parse_rule

MAX_RULES = 10_000
MAX_SILENCE_NS = 366 * DAY
#: Attempts to write an entry before compare-and-set gives up.
_MAX_TRIES = 8
#: The errors of parsing a stored rule that this alerter cannot use.
_UNUSABLE: tuple[type[Exception], ...] = (ConfigError, *BAD_DATA)
#: Longest time that an answer waits for an entry of the bucket to be applied here, seconds.
_APPLY_WAIT_S = 2.0
_STREAM, _PREFIX = f"KV_{subjects.RULES}", f"$KV.{subjects.RULES}."


class _StoredRule(msgspec.Struct):
    """
    An entry of ``tt_rules``; JSON.

    Attributes:
        rule: The rule as it was posted; None = the rule of the configuration.
        silenced_until_ns: End of the silence, Unix nanoseconds; 0 = there is none.
        since_ns: Events up to this instant belong to an earlier rule of this name, Unix nanoseconds.
    """

    name: str
    rule: dict[str, Any] | None = None
    deleted: bool = False
    silenced_until_ns: Instant = 0
    since_ns: Instant = 0


class RuleChange(NamedTuple):
    """
    A change of one rule.

    Attributes:
        rule: The new rule; None = the rule was deleted, or only its silence has changed.
        removed: True = the rule was deleted.
        silenced_until_ns: End of the silence, Unix nanoseconds; 0 = there is none.
        since_ns: Events up to this instant belong to an earlier rule of this name, Unix nanoseconds.
    """

    name: str
    rule: Rule | None
    removed: bool
    silenced_until_ns: int
    since_ns: int = 0

    def apply_to(self, machine: AlerterMachine) -> None:
        """Make this change in *machine*."""
        if self.rule is not None or self.removed:
            machine.remove_rule(self.name, self.since_ns or None)
        if self.rule is not None:
            machine.add_rule(self.rule)
        machine.silence(self.name, self.silenced_until_ns)


class RuleStore:
    """
    All rules, by name.

    Args:
        configured: The rules of the configuration.
        customs: Custom metrics by name.
        cooldown_ns: Cooldown of the rules that name none, nanoseconds; None = the length of their window.
        allowed: The hosts to which the events of a created rule may be delivered.
    """

    def __init__(
        self,
        bus: Bus,
        configured: Sequence[Rule],
        customs: Mapping[str, CustomMetric],
        cooldown_ns: int | None,
        allowed: AllowedHosts,
    ) -> None:
        self._bus, self._kv = bus, bus.kv(subjects.RULES)
        self._configured = {rule.name: rule for rule in configured}
        self._customs, self._cooldown_ns, self._allowed = customs, cooldown_ns, allowed
        self._rules = dict(self._configured)
        self._silences: dict[str, int] = {}
        self._since_ns: dict[str, int] = {}
        self._following = False
        #: Sequence of the last entry of the bucket that was applied here.
        self._applied = 0
        self._new_entry = asyncio.Event()

    def rule(self, name: str) -> Rule | None:
        """Return the rule called *name*; None = there is none."""
        return self._rules.get(name)

    def channel(self, name: str) -> Channel | None:
        """Return the channel for the events of the rule *name*; None = they are not delivered."""
        rule = self._rules.get(name)
        return rule.delivery if rule is not None else None

    async def open(self) -> list[RuleChange]:
        """
        Read the bucket and return how it changes the rules of the configuration.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        changes = []
        for key, entry in (await self._kv.items()).items():
            stored = self._decode(key, entry.value)
            if stored is None:
                continue
            if stored.deleted and stored.name in self._configured:
                # A restart brings a deleted rule of the configuration back. Other alerters learn it from the entry.
                stored = _StoredRule(stored.name, since_ns=stored.since_ns)
                with contextlib.suppress(Conflict):
                    await self._kv.update(key, msgspec.json.encode(stored), entry.revision)
            change = self._apply(stored)
            if change is not None:
                changes.append(change)
        return changes

    def apply_to(self, machine: AlerterMachine, changes: Sequence[RuleChange]) -> None:
        """Set the rules of a *machine* that has not folded any message; *changes* is the result of ``open``."""
        for change in changes:
            machine.ignore_events(change.name, change.since_ns)
            machine.silence(change.name, change.silenced_until_ns)
        machine.set_rules(list(self._rules.values()))

    async def changes(self) -> AsyncIterator[RuleChange]:
        """Yield the changes since ``open``, without end. The caller must apply a change before it asks for the next."""
        self._following = True
        async with Follower(self._bus, _STREAM, [f"{_PREFIX}>"], None, reader="alerter.rules") as chunks:
            async for chunk in chunks:
                for message in chunk.messages:
                    key = message.subject.removeprefix(_PREFIX)
                    stored = self._decode(key, message.payload) if message.payload else None
                    change = self._apply(stored) if stored is not None else None
                    if change is not None:
                        yield change
                    # The caller has asked for the next change, so it has applied this one.
                    self._applied = message.sequence
                    self._new_entry.set()
                    self._new_entry = asyncio.Event()

    async def _wait_until_applied(self, sequence: int) -> None:
        """Wait until the entry of the bucket with this *sequence* is applied here, for at most two seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_APPLY_WAIT_S):
                while self._following and self._applied < sequence:
                    await self._new_entry.wait()

    def _decode(self, key: str, value: bytes) -> _StoredRule | None:
        """Return the decoded entry; None if it cannot be decoded, which is recorded."""
        with self._bus.set_aside.guard(subjects.RULES, f"key {key}"), reading("rule"):
            stored = msgspec.json.decode(value, type=_StoredRule)
            if key != _key(stored.name):
                raise ValueError("it stands under the key of another name")
            return stored
        return None

    def _apply(self, stored: _StoredRule) -> RuleChange | None:
        """Apply an entry and return the change; None if there is none, or if this alerter cannot use its rule."""
        name = stored.name
        rule_before, silenced_before = self._rules.get(name), self._silences.get(name, 0)
        is_new = stored.since_ns != self._since_ns.get(name, 0)
        rule = None if stored.deleted else self._configured.get(name)
        if stored.rule is not None and not stored.deleted:
            try:
                rule = parse_rule(stored.rule, name, self._cooldown_ns, self._customs)
                if rule.name != name:
                    raise ValueError(f"its rule is called {quoted(rule.name)}")
            except _UNUSABLE as exc:
                self._bus.set_aside.note(subjects.RULES, f"key {_key(name)}", exc)
                return None
        self._silences[name], self._since_ns[name] = stored.silenced_until_ns, stored.since_ns
        if rule is None:
            self._rules.pop(name, None)
            return RuleChange(name, None, rule_before is not None, 0, stored.since_ns)
        self._rules[name] = rule
        if rule != rule_before or is_new:
            return RuleChange(name, rule, False, stored.silenced_until_ns, stored.since_ns)
        if silenced_before == stored.silenced_until_ns:
            return None
        return RuleChange(name, None, False, stored.silenced_until_ns)

    # -- requests

    async def answer(self, payload: bytes, machine: AlerterMachine, now_ns: int) -> bytes:
        """Return the encoded ``AlertAnswer`` to the ``AlertRequest`` in *payload*; an error also becomes an answer."""
        try:
            request = decode_alert_request(payload)
            # Another alerter may have confirmed a change a moment ago. It must be applied here before this answer.
            await self._wait_until_applied((await self._bus.state(_STREAM)).last_sequence)
            answer = await self._execute(request, machine, now_ns)
        except TokentraceError as exc:
            answer = AlertAnswer(_status_of(exc), {"error": str(exc)})
        except UNREADABLE as exc:
            answer = AlertAnswer(400, {"error": f"request: {reason_of(exc)}"})
        return encode_alert_answer(answer)

    async def _execute(self, request: AlertRequest, machine: AlerterMachine, now_ns: int) -> AlertAnswer:
        if isinstance(request, ListRules):
            return AlertAnswer(200, machine.render(now_ns))
        if isinstance(request, CreateRule):
            return AlertAnswer(201, await self._create(request.rule, now_ns))
        name = request.name
        if name not in self._rules and not await self._is_stored(name):
            raise _unknown(name)
        if isinstance(request, DeleteRule):
            await self._write(name, lambda stored: _StoredRule(name, None, deleted=True, since_ns=now_ns))
            return AlertAnswer(204, None)
        until_ns = now_ns + _silence_duration(request.duration)

        def silenced(stored: _StoredRule) -> _StoredRule:
            if stored.deleted:
                raise _unknown(name)
            return _StoredRule(name, stored.rule, silenced_until_ns=until_ns, since_ns=stored.since_ns)

        await self._write(name, silenced)
        return AlertAnswer(200, {"silenced_until": render_instant(until_ns)})

    async def _is_stored(self, name: str) -> bool:
        """Return whether the bucket holds a created rule called *name*, although it may not be applied here yet."""
        entry = await self._kv.get(_key(name))
        stored = None if entry is None else self._decode(_key(name), entry.value)
        return stored is not None and stored.rule is not None and not stored.deleted

    async def _create(self, written: object, now_ns: int) -> dict[str, Any]:
        if not isinstance(written, dict):
            raise Rejected("rule: not an object")
        try:
            rule = parse_rule(written, "rule", self._cooldown_ns, self._customs)
        except ConfigError as exc:
            raise Rejected(str(exc)) from exc
        if rule.delivery is not None and rule.delivery.type == "custom":
            raise Rejected("rule.delivery.type: custom is allowed in the configuration only")
        if rule.delivery is not None and rule.delivery.url:
            try:
                self._allowed.check_url(rule.delivery.url)
            except Rejected as exc:
                raise Rejected(f"rule.delivery.url: {exc}") from exc
        if rule.name in self._rules:
            raise _exists(rule.name)
        if len(self._rules) >= MAX_RULES:
            raise Rejected(f"rule: there are {MAX_RULES} rules already, which is the limit")
        stored = _StoredRule(rule.name, written, since_ns=now_ns)
        await self._write(rule.name, lambda before: stored, fresh=True)
        return {"rule_id": rule.rule_id, "name": rule.name}

    async def _write(self, name: str, change: Callable[[_StoredRule], _StoredRule], *, fresh: bool = False) -> None:
        """
        Replace the entry of *name* by the result of *change*, and wait until that is applied here.

        Args:
            change: Returns the new entry for the present one.
            fresh: True = a rule created under that name must not exist.

        Raises:
            Conflict: Such a rule exists, or other alerters kept changing the entry.
            Rejected: *change* raised it.
            Unavailable: The broker cannot be reached.
        """
        key = _key(name)
        for _ in range(_MAX_TRIES):
            entry: Entry | None = await self._kv.get(key)
            before = self._decode(key, entry.value) if entry is not None else None
            if fresh and before is not None and not before.deleted and before.rule is not None:
                raise _exists(name)
            stored = msgspec.json.encode(change(before or _StoredRule(name)))
            try:
                if entry is None:
                    revision = await self._kv.create(key, stored)
                else:
                    revision = await self._kv.update(key, stored, entry.revision)
            except Conflict:
                continue
            await self._wait_until_applied(revision)
            return
        raise Conflict(f"rule {quoted(name)}: other changes came first {_MAX_TRIES} times; try again")


def _key(name: str) -> str:
    """Return the key of the entry of the rule *name*: a hash, because keys allow fewer characters than names."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _unknown(name: str) -> Rejected:
    return Rejected(f"no rule is called {quoted(name)}", status=404)


def _exists(name: str) -> Conflict:
    return Conflict(f"a rule is called {quoted(name)} already")


def _status_of(error: TokentraceError) -> int:
    """Return the HTTP status for *error*."""
    if isinstance(error, Rejected):
        return error.status
    if isinstance(error, ConfigError):
        return 400
    return 409 if isinstance(error, Conflict) else 503


def _silence_duration(text: str) -> int:
    try:
        duration_ns = parse_duration(text)
    except Rejected as exc:
        raise Rejected(f"duration: {exc}") from exc
    if not 0 < duration_ns <= MAX_SILENCE_NS:
        raise Rejected(f"duration: {quoted(text)} is not between 1ns and 366d")
    return duration_ns
