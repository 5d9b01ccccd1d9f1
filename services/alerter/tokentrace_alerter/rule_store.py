"""
The rules there are: those of the configuration, those made at run time, and what is silenced or deleted.

What people change stands in ``tt_rules``, one entry for each rule, written with compare-and-set and followed as a
stream by every alerter. An entry survives restarts; a deleted rule of the configuration comes back with one.
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
from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, shorten
from tokentrace.metrics import CustomMetric
from tokentrace.records import Instant
from tokentrace.service.follow import Follower
from tokentrace.units import DAY, parse_duration, render_instant
from tokentrace_alerter.delivery import AllowedHosts, Channel
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule, parse_rule

MAX_RULES = 10_000
MAX_SILENCE_NS = 366 * DAY
_TRIES = 8
#: Why an entry of the bucket is no rule here.
_UNFIT: tuple[type[Exception], ...] = (ConfigError, *BAD_DATA)
#: How long an answer waits until what somebody has written is heard of here.
_HEAR_S = 2.0
_STREAM, _PREFIX = f"KV_{subjects.RULES}", f"$KV.{subjects.RULES}."


class _Kept(msgspec.Struct):
    """
    An entry of ``tt_rules``.

    Attributes:
        rule: As it was posted; None = that of the configuration.
        since_ns: What was said up to then was said by another rule of that name.
    """

    name: str
    rule: dict[str, Any] | None = None
    deleted: bool = False
    silenced_until_ns: Instant = 0
    since_ns: Instant = 0


class RuleChange(NamedTuple):
    """
    What became of a rule.

    Attributes:
        rule: Watch this from now on; None = no other than before.
        removed: It is gone.
        since_ns: What was said up to then was said by another rule of that name.
    """

    name: str
    rule: Rule | None
    removed: bool
    silenced_until_ns: int
    since_ns: int = 0

    def apply_to(self, machine: AlerterMachine) -> None:
        """Have *machine* watch what there is now."""
        if self.rule is not None or self.removed:
            machine.remove(self.name, self.since_ns or None)
        if self.rule is not None:
            machine.add(self.rule)
        machine.silence(self.name, self.silenced_until_ns)


class RuleStore:
    """
    All rules, by name.

    Args:
        configured: Those of the configuration.
        customs: Metrics of one's own, by name.
        cooldown_ns: Of rules that name none; None = their window.
        allowed: The hosts that a rule may have its events delivered to.
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
        #: Sequence of the last entry that is applied here.
        self._heard = 0
        self._news = asyncio.Event()

    def rule(self, name: str) -> Rule | None:
        """The rule called *name*, if there is one now."""
        return self._rules.get(name)

    def channel(self, name: str) -> Channel | None:
        """Where events of the rule called *name* are delivered now; None if nowhere."""
        rule = self._rules.get(name)
        return rule.delivery if rule is not None else None

    async def open(self) -> list[RuleChange]:
        """
        Read what people changed before.

        Raises:
            Unavailable: The broker is away.
        """
        changes = []
        for key, entry in (await self._kv.items()).items():
            kept = self._decode(key, entry.value)
            if kept is None:
                continue
            if kept.deleted and kept.name in self._configured:
                # A restart brings back what the configuration says, and everybody hears of it.
                kept = _Kept(kept.name, since_ns=kept.since_ns)
                with contextlib.suppress(Conflict):
                    await self._kv.update(key, msgspec.json.encode(kept), entry.revision)
            change = self._apply(kept)
            if change is not None:
                changes.append(change)
        return changes

    def apply_to(self, machine: AlerterMachine, changes: Sequence[RuleChange]) -> None:
        """Have a machine that has not read anything watch what there is."""
        for change in changes:
            machine.forget(change.name, change.since_ns)
            machine.silence(change.name, change.silenced_until_ns)
        machine.begin(list(self._rules.values()))

    async def changes(self) -> AsyncIterator[RuleChange]:
        """What people change from now on, and in between."""
        self._following = True
        async with Follower(self._bus, _STREAM, [f"{_PREFIX}>"], None, reader="alerter.rules") as chunks:
            async for chunk in chunks:
                for message in chunk.messages:
                    key = message.subject.removeprefix(_PREFIX)
                    kept = self._decode(key, message.payload) if message.payload else None
                    change = self._apply(kept) if kept is not None else None
                    if change is not None:
                        yield change
                    # By now whoever follows has made it hold.
                    self._heard = message.sequence
                    self._news.set()
                    self._news = asyncio.Event()

    async def _hear(self, sequence: int) -> None:
        """Wait a while until the entry *sequence* holds here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_S):
                while self._following and self._heard < sequence:
                    await self._news.wait()

    def _decode(self, key: str, value: bytes) -> _Kept | None:
        with self._bus.set_aside.guard(subjects.RULES, f"key {key}"), reading("rule"):
            kept = msgspec.json.decode(value, type=_Kept)
            if key != _key(kept.name):
                raise ValueError("stands under the key of another name")
            return kept
        return None

    def _apply(self, kept: _Kept) -> RuleChange | None:
        """Make *kept* hold; None when it holds already."""
        before, silenced = self._rules.get(kept.name), self._silences.get(kept.name, 0)
        same = kept.since_ns == self._since_ns.get(kept.name, 0)
        rule = None if kept.deleted else self._configured.get(kept.name)
        if kept.rule is not None and not kept.deleted:
            try:
                rule = parse_rule(kept.rule, kept.name, self._cooldown_ns, self._customs)
                if rule.name != kept.name:
                    raise ValueError(f"its rule is called {shorten(rule.name)!r}")
            except _UNFIT as exc:
                self._bus.set_aside.note(subjects.RULES, f"key {_key(kept.name)}", exc)
                return None
        self._silences[kept.name], self._since_ns[kept.name] = kept.silenced_until_ns, kept.since_ns
        if rule is None:
            self._rules.pop(kept.name, None)
            return RuleChange(kept.name, None, before is not None, 0, kept.since_ns)
        self._rules[kept.name] = rule
        if rule != before or not same:
            return RuleChange(kept.name, rule, False, kept.silenced_until_ns, kept.since_ns)
        return (
            None if silenced == kept.silenced_until_ns else RuleChange(kept.name, None, False, kept.silenced_until_ns)
        )

    # -- what people ask for

    async def answer(self, payload: bytes, machine: AlerterMachine, now_ns: int) -> bytes:
        """The answer to a question on ``tokentrace.query.alerts``: JSON with the HTTP status it would have."""
        try:
            with reading("question"):
                asked = msgspec.json.decode(payload, type=dict[str, Any]) if payload else {"ask": "list"}
            # Somebody else may have written a moment ago, and have been told that it holds.
            await self._hear((await self._bus.state(_STREAM)).last_sequence)
            status, body = await self._do(asked, machine, now_ns)
        except TokentraceError as exc:
            status = exc.status if isinstance(exc, Rejected) else 409 if isinstance(exc, Conflict) else 503
            status = 400 if isinstance(exc, ConfigError) else status
            body = {"error": str(exc)}
        except UNREADABLE as exc:
            status, body = 400, {"error": f"question: {reason_of(exc)}"}
        return msgspec.json.encode({"status": status, "body": body})

    async def _do(self, asked: Mapping[str, Any], machine: AlerterMachine, now_ns: int) -> tuple[int, Any]:
        ask, name = asked.get("ask"), str(asked.get("name", ""))
        if ask == "list":
            return 200, machine.render(now_ns)
        if ask == "create":
            return 201, await self._create(asked.get("rule"), now_ns)
        if name not in self._rules and not await self._is_kept(name):
            raise Rejected(f"no rule is called {shorten(name)!r}", status=404)
        if ask == "delete":
            await self._write(name, lambda kept: _Kept(name, None, deleted=True, since_ns=now_ns))
            return 204, None
        if ask == "silence":
            until_ns = now_ns + _duration(asked.get("duration"))

            def silenced(kept: _Kept) -> _Kept:
                if kept.deleted:
                    raise Rejected(f"no rule is called {shorten(name)!r}", status=404)
                return _Kept(name, kept.rule, silenced_until_ns=until_ns, since_ns=kept.since_ns)

            await self._write(name, silenced)
            return 200, {"silenced_until": render_instant(until_ns)}
        raise Rejected(f"question: {shorten(ask)!r} is none of list, create, delete, silence")

    async def _is_kept(self, name: str) -> bool:
        """Somebody has made it a moment ago, and it has not been heard of here yet."""
        entry = await self._kv.get(_key(name))
        kept = None if entry is None else self._decode(_key(name), entry.value)
        return kept is not None and kept.rule is not None and not kept.deleted

    async def _create(self, given: object, now_ns: int) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise Rejected("rule: not an object")
        try:
            rule = parse_rule(given, "rule", self._cooldown_ns, self._customs)
        except ConfigError as exc:
            raise Rejected(str(exc)) from exc
        if rule.delivery is not None and rule.delivery.type == "custom":
            raise Rejected("rule.delivery.type: custom comes from the configuration only")
        if rule.delivery is not None and rule.delivery.url:
            try:
                self._allowed.check_url(rule.delivery.url)
            except Rejected as exc:
                raise Rejected(f"rule.delivery.url: {exc}") from exc
        if rule.name in self._rules:
            raise Conflict(f"a rule is called {shorten(rule.name)!r} already")
        if len(self._rules) >= MAX_RULES:
            raise Rejected(f"there are {MAX_RULES} rules already")
        kept = _Kept(rule.name, given, since_ns=now_ns)
        await self._write(rule.name, lambda held: kept, fresh=True)
        return {"rule_id": rule.rule_id, "name": rule.name}

    async def _write(self, name: str, change: Callable[[_Kept], _Kept], *, fresh: bool = False) -> None:
        """Make of the entry of *name* what *change* makes of it, and wait until that holds here."""
        key = _key(name)
        for _ in range(_TRIES):
            entry: Entry | None = await self._kv.get(key)
            held = self._decode(key, entry.value) if entry is not None else None
            if fresh and held is not None and not held.deleted and held.rule is not None:
                raise Conflict(f"a rule is called {shorten(name)!r} already")
            kept = change(held or _Kept(name))
            try:
                if entry is None:
                    revision = await self._kv.create(key, msgspec.json.encode(kept))
                else:
                    revision = await self._kv.update(key, msgspec.json.encode(kept), entry.revision)
            except Conflict:
                continue
            await self._hear(revision)
            return
        raise Conflict(f"rule {shorten(name)!r} is being changed by somebody else")


def _key(name: str) -> str:
    """A key that any bucket takes, whatever the name is."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _duration(text: object) -> int:
    try:
        found = parse_duration(str(text))
    except Rejected as exc:
        raise Rejected(f"duration: {exc}") from exc
    if not 0 < found <= MAX_SILENCE_NS:
        raise Rejected(f"duration: {shorten(text)!r} is not between 1ns and 366d")
    return found
