"""The agreement with the readers on how batches are placed: by their id, or by the identity of their calls."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import structlog

from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import Conflict
from tokentrace.service import call_readers
from tokentrace.service.reader_positions import read_positions
from tokentrace_ingest.group_commit import GroupCommit

log = structlog.stdlib.get_logger(__name__)


class Layout:
    """
    Keeps ``GroupCommit.by_call_from_ns`` as ``tt_meta`` says.

    Until every reader has published that it understands layout 1, batches are placed by their id, as before. Then one
    ingest writes an instant half a minute ahead, and every ingest uses layout 1 for what arrives from that instant on.
    So a message that is delivered to several ingests in turn is placed alike by all of them.

    Attributes:
        waiting_for: Readers that do not understand layout 1 yet.
    """

    def __init__(self, bus: Bus, group_commit: GroupCommit) -> None:
        self._bus, self._group_commit = bus, group_commit
        self._meta = bus.kv(subjects.META)
        self._was_read = False
        self.waiting_for: list[str] = []

    async def known(self) -> None:
        """Read the agreement, unless it was read before; raises ``Unavailable`` if the broker cannot be reached."""
        if not self._was_read:
            await self.read()

    async def read(self) -> None:
        """Read the agreement; raises ``Unavailable`` if the broker cannot be reached."""
        self._read(await self._meta.get(call_readers.LAYOUT))

    def _read(self, entry: Entry | None) -> None:
        self._group_commit.by_call_from_ns = call_readers.read_layout(entry, self._bus.set_aside)
        self._was_read = True

    async def agree(self, entries: Mapping[str, Entry]) -> None:
        """
        Read the agreement, or make it if all readers are ready.

        Args:
            entries: The entries of ``tt_meta``.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        self._read(entries.get(call_readers.LAYOUT))
        if self._group_commit.by_call_from_ns is not None:
            self.waiting_for = []
            return
        now_ns = self._bus.clock.now_ns()
        positions = read_positions(entries, self._bus.set_aside)
        calls = call_readers.read_calls(entries, self._bus.set_aside)
        self.waiting_for = call_readers.waits_for(positions, calls, now_ns)
        if positions and not self.waiting_for:
            with contextlib.suppress(Conflict):
                await self._meta.create(
                    call_readers.LAYOUT, call_readers.encode_layout(now_ns + call_readers.NOTICE_NS)
                )
                log.info("batches are placed by call from half a minute from now on")
            await self.read()
