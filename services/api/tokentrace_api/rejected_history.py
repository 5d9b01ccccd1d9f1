"""
What ingest has refused: counts by reason, and pages of the dead letters.

The counts are made from the stream of dead letters and saved in a bucket together with the position, so that they
outlive the messages of the stream. The letters themselves are read from the stream, newest first.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Any, NamedTuple

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, Message, subjects
from tokentrace.errors import Rejected
from tokentrace.records import REFUSAL_REASONS, Natural, Position, reason_of
from tokentrace.service.follow import Follower
from tokentrace.units import MINUTE
from tokentrace_api.newest_first import Page, read_page
from tokentrace_api.reporter_states import MAX_NAMES
from tokentrace_api.saved_counts import SavedCounts

_KEY = "rejected_counts"
#: How many of the newest letters are remembered by their content. An ingest that ends before it has acknowledged a
#: message is followed by one that writes the same letters again.
_REMEMBERED = 10_000
#: Kind of a letter that is about a span.
SPAN = "span"
#: Kinds of the other letters: records of other types, and lists that senders must not fill.
_OTHER_KINDS = frozenset({"started", "message", "annotation", "session_end", "scores", "tombstones"})
#: How the text of a letter begins that is about an undecodable record of another type.
_OTHER_LIST = re.compile(r"(started|score|message|session_end|tombstone|annotation)s?\[")


class LetterHead(msgspec.Struct, kw_only=True):
    """
    What is counted of a dead letter.

    Attributes:
        reason: What is wrong, as text.
        kind: What the letter is about; letters of earlier versions do not say it.
        batch: Id and sequence of the batch.
        source: The name of the reporter that sent it; letters of earlier versions do not say it.
    """

    reason: str = ""
    kind: str = SPAN
    batch: str = ""
    source: str = ""

    @property
    def about(self) -> str:
        """What the letter is about: ``SPAN``, one of ``_OTHER_KINDS``, or ``other``."""
        if self.kind != SPAN:
            return self.kind if self.kind in _OTHER_KINDS else "other"
        listed = _OTHER_LIST.match(self.reason)
        return listed[1] if listed is not None else SPAN

    @property
    def reporter(self) -> str:
        """The name of the reporter that sent the batch; "" = no reporter did."""
        match = _REPORTER.fullmatch(self.batch)
        return self.source or (subjects.unescape(match[1]) if match is not None else "")


class Letter(LetterHead, kw_only=True):
    """
    A dead letter, as ingest writes it.

    Attributes:
        index: Index of the record in its list.
        size_bytes, sha256: Of a record that is not shown.
        span, started, message, annotation, session_end: The record, redacted.
    """

    index: Natural = 0
    size_bytes: Natural | None = None
    sha256: str = ""
    span: dict[str, Any] | None = None
    started: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    annotation: dict[str, Any] | None = None
    session_end: dict[str, Any] | None = None

    @property
    def record(self) -> dict[str, Any] | None:
        """The refused record; None = it is not shown."""
        return self.span or self.started or self.message or self.annotation or self.session_end


#: The id of a reporter's batch with its sequence: ``<project>.<name>.<128 random bits>:<sequence>``.
_REPORTER = re.compile(r"[^.]*\.([^.]*)\.[0-9a-f]{32}:[0-9]+")
_heads = msgspec.json.Decoder(LetterHead)
_letters = msgspec.json.Decoder(Letter)


class StoredLetter(NamedTuple):
    """A letter of the stream: its project, its sequence, and when it was stored, Unix nanoseconds."""

    letter: Letter
    project: str
    sequence: int
    at_ns: int


class _Saved(msgspec.Struct):
    position: Position | None = None
    #: When the last counted letter was stored, Unix nanoseconds; 0 = none was.
    last_ns: Natural = 0
    spans: dict[str, Natural] = {}
    others: dict[str, Natural] = {}
    #: Name of a reporter -> number of its refused spans; of 1,000 names, the ones whose spans were refused last.
    by_reporter: dict[str, Natural] = {}
    #: Number of letters that the stream discarded before they were counted.
    lost: Natural = 0


class RejectedHistory:
    """Counts of refused spans by reason, and pages of the dead letters."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._counts = SavedCounts(
            bus, _KEY, _Saved(), lambda data: _restored(data, bus.clock.now_ns()), "counts of refused spans"
        )
        self._newest: deque[int] = deque()
        self._known: Counter[int] = Counter()
        self.caught_up = False

    @property
    def spans(self) -> dict[str, int]:
        """Reason -> number of refused spans, the most frequent first."""
        return dict(sorted(self._counts.state.spans.items(), key=lambda item: (-item[1], item[0])))

    @property
    def others(self) -> dict[str, int]:
        """Kind -> number of refused records that are not spans."""
        return dict(sorted(self._counts.state.others.items()))

    @property
    def by_reporter(self) -> dict[str, int]:
        """Name of a reporter -> number of its refused spans; of 1,000 names, the ones whose spans came last."""
        return self._counts.state.by_reporter

    @property
    def total(self) -> int:
        """Number of refused spans."""
        return sum(self._counts.state.spans.values())

    @property
    def last_ns(self) -> int:
        """When the last letter was stored, Unix nanoseconds; 0 = there was none."""
        return self._counts.state.last_ns

    @property
    def lost(self) -> int:
        """Number of letters that the stream discarded before they were counted."""
        return self._counts.state.lost

    async def open_and_follow(self) -> None:
        """Load the saved counts and follow the letters until cancelled."""
        await self._counts.load()
        counted, counted_ns = self._counts.state.position, self._counts.state.last_ns
        # The last letters that were counted are read again, to remember them.
        after = counted and Position(counted.created_ns, max(counted.sequence - _REMEMBERED, 0))
        async with Follower(
            self._bus,
            subjects.REJECTED,
            [subjects.ALL_REJECTED],
            after,
            reader="api.rejected",
            on_caught_up=self._note_caught_up,
        ) as chunks:
            async for chunk in chunks:
                position = self._counts.state.position
                if chunk.missing is not None and position is not None:
                    self._counts.state.lost += max(chunk.missing[1] - max(position.sequence, chunk.missing[0] - 1), 0)
                for message in chunk.messages:
                    position = self._counts.state.position
                    is_new = (
                        position is None
                        or position.created_ns != chunk.created_ns
                        or message.sequence > position.sequence
                        # The stream may have lost its end, and then its numbers are used again.
                        or message.time_ns > counted_ns
                    )
                    self._count(message, is_new=is_new)
                    if is_new:
                        self._counts.state.position = Position(chunk.created_ns, message.sequence)

    def _note_caught_up(self) -> None:
        self.caught_up = True

    def _count(self, message: Message, *, is_new: bool) -> None:
        is_known = self._remember(hash(message.payload))
        if is_known or not is_new:
            return
        with self._bus.set_aside.guard(subjects.REJECTED, f"message {message.sequence}"), reading("dead letter"):
            head = _heads.decode(message.payload)
            self._counts.state.last_ns = max(self._counts.state.last_ns, message.time_ns)
            if head.about == SPAN:
                reason = reason_of(head.reason)
                self._counts.state.spans[reason] = self._counts.state.spans.get(reason, 0) + 1
                self._count_reporter(head.reporter)
            else:
                self._counts.state.others[head.about] = self._counts.state.others.get(head.about, 0) + 1

    def _count_reporter(self, name: str) -> None:
        if not name:
            return
        counts = self._counts.state.by_reporter
        counts[name] = counts.pop(name, 0) + 1
        if len(counts) > MAX_NAMES:
            del counts[next(iter(counts))]

    def _remember(self, content: int) -> bool:
        """Remember a letter; return True if it was remembered before."""
        is_known = content in self._known
        self._known[content] += 1
        self._newest.append(content)
        if len(self._newest) > _REMEMBERED:
            oldest = self._newest.popleft()
            self._known[oldest] -= 1
            if not self._known[oldest]:
                del self._known[oldest]
        return is_known

    async def save(self) -> None:
        """
        Save the counts if they changed and the stream has been read to the end.

        Raises:
            Unavailable: The broker cannot be reached. The counts stay in memory, and the next call saves them.
        """
        if self.caught_up:
            await self._counts.save()

    async def page(
        self, *, limit: int, cursor: str = "", reason: str = "", since_ns: int | None = None
    ) -> Page[StoredLetter]:
        """
        Return up to *limit* letters, newest first.

        A page may hold fewer letters although there are more: at most 10,000 letters are looked at for one.

        Args:
            cursor: ``Page.next`` of the page before; "" = begin with the newest letter.
            reason: Only letters with this reason; "" = with any.
            since_ns: Only letters stored at this instant or later, Unix nanoseconds; None = any.

        Raises:
            Rejected: *cursor* is not the cursor of a page of this stream.
            Unavailable: The broker cannot be reached.
        """
        return await read_page(
            self._bus,
            subjects.REJECTED,
            subjects.ALL_REJECTED,
            lambda message: self._stored(message, reason),
            reader="api.rejected_page",
            limit=limit,
            cursor=cursor,
            since_ns=since_ns,
        )

    def _stored(self, message: Message, reason: str) -> StoredLetter | None:
        """Return the letter in *message*; None if it cannot be read or has another reason."""
        with self._bus.set_aside.guard(subjects.REJECTED, f"message {message.sequence}"), reading("dead letter"):
            letter = _letters.decode(message.payload)
            if not reason or reason_of(letter.reason) == reason:
                project = subjects.parse_project(message.subject)
                return StoredLetter(letter, project, message.sequence, message.time_ns)
        return None


def _restored(data: bytes, now_ns: int) -> _Saved:
    """Return the saved counts in *data*; Rejected if they are of the future, from which no letter would be counted."""
    saved = msgspec.json.decode(data, type=_Saved)
    if saved.last_ns > now_ns + MINUTE:
        raise Rejected("last_ns: is in the future")
    spans: Counter[str] = Counter()
    for reason, count in saved.spans.items():
        spans[reason if reason in REFUSAL_REASONS else "other"] += count
    saved.spans = dict(spans)
    saved.others = {kind: count for kind, count in saved.others.items() if kind in (*_OTHER_KINDS, "other")}
    return saved
