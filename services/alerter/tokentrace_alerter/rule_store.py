"""
All rules: those of the configuration and those created at run time, with silences and deletions.

Changes at run time are kept in the bucket ``tt_rules``: one entry for each rule, written with compare-and-set. Every
alerter follows the bucket as a stream. Entries survive restarts, except that a deleted rule of the configuration comes
back for all alerters when one of them restarts.

An entry also keeps where the episodes of its rule are delivered; see ``kept_channels``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import BAD_DATA, UNREADABLE, reading, reason_of
from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, Unavailable, quoted
from tokentrace.metrics import CustomMetric
from tokentrace.records import (
    AlertAnswer,
    AlertEvent,
    AlertRequest,
    CreateRule,
    DeleteRule,
    LiftSilence,
    ListRules,
    PreviewRule,
    PutRule,
    RuleDefinition,
    RuleNames,
    RuleSeries,
    RuleSilences,
    SilenceRule,
    decode_alert_request,
    encode_alert_answer,
)
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.follow import Follower
from tokentrace.units import DAY, MS, render_instant
from tokentrace_alerter.definitions import as_written, completed, shown
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.event_memory import EventMemory
from tokentrace_alerter.kept_channels import KeptChannel, channel_of, keep, needed
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.replay import Replays
from tokentrace_alerter.rule_errors import exists, status_of, unknown
from tokentrace_alerter.rules import Rule, parse_rule, rule_id_of
from tokentrace_alerter.silences import Silence, ended, parse_silence, render_silences
from tokentrace_alerter.stored_rules import RuleChange, StoredRule, key_of

log = logging.getLogger("tokentrace.alerter")

MAX_RULES = 10_000
#: Attempts to write an entry before compare-and-set gives up.
_MAX_TRIES = 8
#: The errors of parsing a stored rule that this alerter cannot use.
_UNUSABLE: tuple[type[Exception], ...] = (ConfigError, *BAD_DATA)
#: Longest time that an answer waits for an entry of the bucket to be applied here, seconds.
_APPLY_WAIT_S = 2.0
#: How long a channel is kept after its last episode, nanoseconds. A receiver may ask to wait for a day.
_CHANNELS_KEPT_NS = 2 * DAY
_STREAM, _PREFIX = f"KV_{subjects.RULES}", f"$KV.{subjects.RULES}."


class RuleStore:
    """
    All rules, by name.

    Args:
        configured: The rules of the configuration.
        customs: Custom metrics by name.
        cooldown_ns: Cooldown of the rules that name none, nanoseconds; None = the length of their window.
        allowed: The hosts to which the events of a created rule may be delivered.
        shards: Shard count.
    """

    def __init__(
        self,
        bus: Bus,
        configured: Sequence[Rule],
        customs: Mapping[str, CustomMetric],
        cooldown_ns: int | None,
        allowed: AllowedHosts,
        shards: int = 1,
    ) -> None:
        self._replays = Replays(bus, shards=shards)
        self._bus, self._kv = bus, bus.kv(subjects.RULES)
        self._configured = {rule.name: rule for rule in configured}
        self._customs, self._cooldown_ns, self._allowed = customs, cooldown_ns, allowed
        self._rules = dict(self._configured)
        self._silences: dict[str, Silence] = {}
        self._past_silences: dict[str, list[Silence]] = {}
        self._since_ns: dict[str, int] = {}
        self._kept: dict[str, list[KeptChannel]] = {}
        #: The only targets that a kept channel may name: who can write to the bucket must not choose what is called.
        self._targets = {rule.delivery.target for rule in configured if rule.delivery is not None}
        self._created: set[str] = set()
        self._following = False
        #: Sequence of the last entry of the bucket that was applied here.
        self._applied = 0
        self._new_entry = asyncio.Event()
        #: The reading of changes that has begun last, and the one that begins after it.
        self._reading: asyncio.Task[bool] | None = None
        self._next_reading: asyncio.Task[bool] | None = None

    def rule(self, name: str) -> Rule | None:
        """Return the rule called *name*; None = there is none."""
        return self._rules.get(name)

    @property
    def hidden(self) -> list[str]:
        """Names of the rules of the configuration that are not evaluated: a rule of that name was made at run time."""
        return sorted(self._created & self._configured.keys())

    def channel(self, event: AlertEvent) -> Channel | None:
        """Return the channel for *event*, that of the firing that began its episode; None = it is not delivered."""
        rule = self._rules.get(event.alert)
        current = rule.delivery if rule is not None else None
        channel = channel_of(self._kept.get(event.alert, ()), event, current)
        if channel is not None and channel != current and channel.target and channel.target not in self._targets:
            log.warning(
                "rule %s: %s is not delivered: the file names %s no more", event.alert, event.fired_at, channel.target
            )
            return None
        return channel

    async def keep_channel(self, firing: AlertEvent) -> None:
        """
        Keep where the episode of *firing* is delivered; call this before *firing* is published.

        Raises:
            Unavailable: The broker cannot be reached, or other alerters kept changing the entry.
        """
        name = firing.alert
        rule = self._rules.get(name)
        current = rule.delivery if rule is not None else None
        kept = self._kept.get(name, [])
        if rule is None or keep(kept, firing, current) == kept:
            return
        try:
            await self._write(name, lambda stored: replace(stored, kept=keep(stored.kept, firing, current)))
        except Conflict as exc:
            raise Unavailable(str(exc)) from exc

    async def forget_channels(self, events: EventMemory, now_ns: int) -> None:
        """
        Drop the kept channels that no delivery needs any more at *now_ns*, Unix nanoseconds.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        for name, kept in list(self._kept.items()):
            after_ns = now_ns - _CHANNELS_KEPT_NS
            exists = name in self._rules or self._since_ns.get(name, 0) > after_ns
            used = needed(kept, events, name, exists=exists, after_ns=after_ns)
            outdated = [one for one in kept if one not in used]
            if outdated:
                log.info("rule %s: a channel that its episodes used is forgotten", name)
                with contextlib.suppress(Conflict):
                    await self._write(name, partial(_without, outdated))

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
                stored = StoredRule(stored.name, since_ns=stored.since_ns, kept=stored.kept)
                with contextlib.suppress(Conflict):
                    await self._kv.update(key, msgspec.json.encode(stored), entry.revision)
            change = self._apply(stored)
            if change is not None:
                changes.append(change)
        for name in self.hidden:
            log.warning(
                "rule %s: the one in the file is not evaluated, because a rule of that name was created at run time; "
                "after DELETE /alerts/%s and a restart it is",
                name,
                name,
            )
        return changes

    def apply_to(self, machine: AlerterMachine, changes: Sequence[RuleChange]) -> None:
        """Set the rules of a *machine* that has not folded any message; *changes* is the result of ``open``."""
        for change in changes:
            machine.ignore_events(change.name, change.since_ns)
            machine.silence(change.name, change.silenced_until_ns, change.silenced_at_ns)
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

    async def read_changes(self) -> bool:
        """
        Wait until the changes before this call are applied here.

        Returns:
            False if the broker does not say what they are, or they do not arrive within two seconds.
        """
        # Many deliveries ask at the same time: those that come before a request has begun share it.
        if self._next_reading is None:
            self._next_reading = asyncio.create_task(self._read_after(self._reading))
        return await asyncio.shield(self._next_reading)

    async def _read_after(self, before: asyncio.Task[bool] | None) -> bool:
        if before is not None:
            await asyncio.wait([before])
        self._reading, self._next_reading = self._next_reading, None
        try:
            last = (await self._bus.state(_STREAM)).last_sequence
        except TokentraceError:
            return False
        await self._wait_until_applied(last)
        return self._applied >= last

    async def _wait_until_applied(self, sequence: int) -> None:
        """Wait until the entry of the bucket with this *sequence* is applied here, for at most two seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_APPLY_WAIT_S):
                while self._following and self._applied < sequence:
                    await self._new_entry.wait()

    def _decode(self, key: str, value: bytes) -> StoredRule | None:
        """Return the decoded entry; None if it cannot be decoded, which is recorded."""
        with self._bus.set_aside.guard(subjects.RULES, f"key {key}"), reading("rule"):
            stored = msgspec.json.decode(value, type=StoredRule)
            if key != key_of(stored.name):
                raise ValueError("it stands under the key of another name")
            return stored
        return None

    def _apply(self, stored: StoredRule) -> RuleChange | None:
        """Apply an entry and return the change; None if there is none, or if this alerter cannot use its rule."""
        name = stored.name
        rule_before, silenced_before = self._rules.get(name), self._silences.get(name, Silence())
        is_new = stored.since_ns != self._since_ns.get(name, 0)
        rule = None if stored.deleted else self._configured.get(name)
        if stored.rule is not None and not stored.deleted:
            try:
                rule = parse_rule(stored.rule, name, self._cooldown_ns, self._customs)
                if rule.name != name:
                    raise ValueError(f"its rule is called {quoted(rule.name)}")
                if rule.delivery is not None and rule.delivery.type == "custom":
                    raise ValueError("its delivery is of type custom, which only the configuration may have")
            except _UNUSABLE as exc:
                self._bus.set_aside.note(subjects.RULES, f"key {key_of(name)}", exc)
                return None
        self._silences[name], self._since_ns[name] = stored.silence, stored.since_ns
        self._kept[name], self._past_silences[name] = stored.kept, stored.past_silences
        is_created = stored.rule is not None and not stored.deleted
        (self._created.add if is_created else self._created.discard)(name)
        if rule is None:
            self._rules.pop(name, None)
            return RuleChange(name, None, rule_before is not None, 0, stored.since_ns)
        self._rules[name] = rule
        if rule != rule_before or is_new:
            continues = rule_before is not None and not is_new
            return RuleChange(
                name, rule, False, stored.silenced_until_ns, stored.since_ns, continues, stored.silenced_at_ns
            )
        if silenced_before == stored.silence:
            return None
        return RuleChange(name, None, False, stored.silenced_until_ns, silenced_at_ns=stored.silenced_at_ns)

    # -- requests

    async def answer(self, payload: bytes, machine: AlerterMachine, now_ns: int) -> bytes:
        """Return the encoded ``AlertAnswer`` to the ``AlertRequest`` in *payload*; an error also becomes an answer."""
        try:
            request = decode_alert_request(payload)
            # Another alerter may have confirmed a change a moment ago. It must be applied here before this answer.
            await self._wait_until_applied((await self._bus.state(_STREAM)).last_sequence)
            answer = await self._execute(request, machine, now_ns)
        except TokentraceError as exc:
            answer = AlertAnswer(status_of(exc), {"error": str(exc)})
        except UNREADABLE as exc:
            answer = AlertAnswer(400, {"error": f"request: {reason_of(exc)}"})
        return encode_alert_answer(answer)

    async def _execute(self, request: AlertRequest, machine: AlerterMachine, now_ns: int) -> AlertAnswer:
        if isinstance(request, ListRules):
            return AlertAnswer(200, [rule | self._origin(rule["name"], now_ns) for rule in machine.render(now_ns)])
        if isinstance(request, RuleNames):
            return AlertAnswer(200, list(machine.evaluators))
        if isinstance(request, CreateRule):
            return AlertAnswer(201, await self._create(request.rule, machine, now_ns))
        if isinstance(request, PutRule):
            return await self._put(request.name, request.rule, machine, now_ns)
        if isinstance(request, PreviewRule):
            posted, _ = self._checked(request.rule)
            return AlertAnswer(200, await self._replays.replay(posted, request.window_ns, now_ns, request.to_ns))
        name = request.name
        if name not in self._rules and not await self._is_stored(name):
            raise unknown(name)
        if isinstance(request, RuleSilences):
            return AlertAnswer(200, render_silences(self._silences.get(name), self._past_silences.get(name, ())))
        if isinstance(request, RuleSeries | RuleDefinition):
            rule = self._rules.get(name)
            if rule is None:
                raise unknown(name)
            if isinstance(request, RuleDefinition):
                return AlertAnswer(200, await self._definition(rule))
            return AlertAnswer(200, await self._replays.replay(rule, request.window_ns, now_ns, request.to_ns))
        if isinstance(request, DeleteRule):
            since_ns = _since(machine, name, now_ns)
            await self._write(
                name, lambda stored: StoredRule(name, None, deleted=True, since_ns=since_ns, kept=stored.kept)
            )
            return AlertAnswer(204, None)
        return await self._silence(request, now_ns)

    async def _silence(self, request: SilenceRule | LiftSilence, now_ns: int) -> AlertAnswer:
        """Make or end a silence."""
        name, rule = request.name, self._rules.get(request.name)
        if isinstance(request, LiftSilence):
            if rule is not None and rule.silenced:
                raise Conflict(f"rule {quoted(name)} is silenced by its key silenced, not by a silence")
            silence = Silence()
        else:
            silence = parse_silence(request, now_ns)

        def silenced(stored: StoredRule) -> StoredRule:
            if stored.deleted:
                raise unknown(name)
            return replace(
                stored,
                silenced_until_ns=silence.until_ns,
                # What the silence has held back is still shown after its end.
                silenced_at_ns=silence.at_ns or stored.silenced_at_ns,
                silenced_by=silence.by,
                silence_comment=silence.comment,
                past_silences=ended(stored.silence, stored.past_silences, now_ns),
            )

        await self._write(name, silenced)
        if not silence.until_ns:
            return AlertAnswer(204, None)
        return AlertAnswer(200, {"silenced_until": render_instant(silence.until_ns)})

    def _origin(self, name: str, now_ns: int) -> dict[str, Any]:
        """Return what ``GET /alerts`` shows of where the rule *name* comes from, and of its silence."""
        is_created = name in self._created
        return {
            "source": "created" if is_created else "file",
            "hides_rule_of_file": is_created and name in self._configured,
            **self._silences.get(name, Silence()).render(now_ns, self._past_silences.get(name, ())),
        }

    async def _definition(self, rule: Rule) -> dict[str, Any]:
        """Return the definition of *rule* without secrets: as it was sent, or as the configuration could have it."""
        entry = await self._kv.get(key_of(rule.name)) if rule.name in self._created else None
        stored = None if entry is None else self._decode(key_of(rule.name), entry.value)
        sent = stored.rule if stored is not None and not stored.deleted else None
        definition, hidden = shown(sent or as_written(rule))
        return {"source": "created" if sent else "file", "rule": definition, "hidden": hidden}

    async def _is_stored(self, name: str) -> bool:
        """Return whether the bucket holds a created rule called *name*, although it may not be applied here yet."""
        entry = await self._kv.get(key_of(name))
        stored = None if entry is None else self._decode(key_of(name), entry.value)
        return stored is not None and stored.rule is not None and not stored.deleted

    def _checked(self, written: object) -> tuple[Rule, dict[str, Any]]:
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
        return rule, written

    def _check_room(self) -> None:
        if len(self._rules) >= MAX_RULES:
            raise Rejected(f"rule: there are {MAX_RULES} rules already, which is the limit")

    async def _create(self, written: object, machine: AlerterMachine, now_ns: int) -> dict[str, Any]:
        rule, kept = self._checked(completed(written, None))
        if rule.name in self._rules:
            raise exists(rule.name)
        self._check_room()
        since_ns = _since(machine, rule.name, now_ns)
        await self._write(
            rule.name,
            lambda before: StoredRule(rule.name, kept, since_ns=since_ns, kept=before.kept),
            fresh=True,
        )
        return {"rule_id": rule.rule_id, "name": rule.name}

    async def _put(self, name: str, written: object, machine: AlerterMachine, now_ns: int) -> AlertAnswer:
        """Replace the rule *name*, which keeps its state if its condition stays the same, or create it."""
        if isinstance(written, dict) and written.get("name", name) != name:
            raise Rejected(f"rule.name: {quoted(written['name'])} is not {quoted(name)}, the name in the path")
        since_ns, is_new = _since(machine, name, now_ns), False

        def put(before: StoredRule) -> StoredRule:
            nonlocal is_new
            is_new = before.rule is None or before.deleted
            sent = {**written, "name": name} if isinstance(written, dict) else written
            rule, posted = self._checked(completed(sent, None if is_new else before.rule))
            if is_new and not before.deleted and name in self._configured:
                raise Conflict(f"rule {quoted(name)} is in the configuration; change it there, or delete it first")
            if is_new:
                self._check_room()
                return StoredRule(name, posted, since_ns=since_ns, kept=before.kept)
            continues = self._has_condition(before, rule)
            return replace(before, rule=posted, since_ns=before.since_ns if continues else since_ns)

        await self._write(name, put)
        return AlertAnswer(201 if is_new else 200, {"rule_id": rule_id_of(name), "name": name})

    def _has_condition(self, stored: StoredRule, rule: Rule) -> bool:
        try:
            before = parse_rule(stored.rule or {}, stored.name, self._cooldown_ns, self._customs)
        except _UNUSABLE:
            return False
        return before.condition == rule.condition

    async def _write(self, name: str, change: Callable[[StoredRule], StoredRule], *, fresh: bool = False) -> None:
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
        key = key_of(name)
        for _ in range(_MAX_TRIES):
            entry: Entry | None = await self._kv.get(key)
            before = self._decode(key, entry.value) if entry is not None else None
            if fresh and before is not None and not before.deleted and before.rule is not None:
                raise exists(name)
            stored = msgspec.json.encode(change(before or StoredRule(name)))
            if entry is not None and stored == entry.value:
                return
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


def _since(machine: AlerterMachine, name: str, now_ns: int) -> int:
    """Return the instant of a change of the rule *name* at *now_ns*: whole milliseconds, after all its known events."""
    return (max(now_ns, machine.events.newest_ns(name)) // MS + 1) * MS


def _without(outdated: Sequence[KeptChannel], stored: StoredRule) -> StoredRule:
    return replace(stored, kept=[one for one in stored.kept if one not in outdated])
