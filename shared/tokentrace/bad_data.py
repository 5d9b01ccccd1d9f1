"""
Data that others may have written: whatever stands in a stream, a bucket, an object or a file is data.

Whoever decodes it uses ``reading``, which turns every way in which a decoder fails into ``Rejected``. What was rejected
is told to the process's ``SetAside``, which ``/health`` and ``/internal/metrics`` show, and the process goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator

import msgspec

from tokentrace.errors import Rejected, cut_quoted, shorten

log = logging.getLogger(__name__)

#: What decoders raise at bytes that nobody expected; ``UnicodeDecodeError`` and ``binascii.Error`` are ValueErrors.
UNREADABLE: tuple[type[Exception], ...] = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
#: ``UNREADABLE``, and a length that lies: more memory than there is, which is refused before any is taken.
_UNDECODABLE: tuple[type[Exception], ...] = (*UNREADABLE, MemoryError)
#: ``UNREADABLE``, and what was decoded and is out of bounds.
BAD_DATA: tuple[type[Exception], ...] = (Rejected, *UNREADABLE)
#: Records kept, and the length of what each says.
MAX_KEPT = 100
_MAX_REASON = 300
_MAX_WHICH = 120


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """
    Decode inside this; *what* begins the reason.

    Raises:
        Rejected: It cannot be read; no value longer than 40 characters is quoted.
    """
    try:
        yield
    except _UNDECODABLE as exc:
        raise Rejected(f"{what}: {why(exc)}") from exc


def why(error: Exception) -> str:
    """What *error* says, in a text that may be logged and shown."""
    text = cut_quoted(str(error)) or "no reason given"
    known = isinstance(error, Rejected | msgspec.MsgspecError | ValueError | RecursionError)
    return shorten(text if known else f"{type(error).__name__}: {text}", _MAX_REASON)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that could not be read.

    Attributes:
        place: The stream, bucket or request subject, such as ``TT_ALERTS``.
        which: Of it, such as ``message 17``, ``key alert_counts revision 3`` or ``object aggregator.0.001``.
        reason: Why it cannot be read.
        count: How often it was met.
        last_ns: When it was met last, Unix nanoseconds.
    """

    place: str
    which: str
    reason: str
    count: int = 1
    last_ns: int = 0


class SetAside:
    """
    What one process could not read: the newest ``MAX_KEPT`` records, and how many there were in each place.

    Attributes:
        totals: Place -> different things set aside since start.
    """

    def __init__(self) -> None:
        # The store is written by a thread of its own.
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], Record] = {}
        self.totals: Counter[str] = Counter()

    def note(self, place: str, which: str, reason: Exception | str) -> None:
        """Remember it; what is met again is counted in its record, and logged once."""
        text = why(reason) if isinstance(reason, Exception) else shorten(reason, _MAX_REASON)
        key = place, shorten(which, _MAX_WHICH)
        with self._lock:
            held = self._records.pop(key, None)
            count = held.count + 1 if held is not None else 1
            self._records[key] = Record(place=place, which=key[1], reason=text, count=count, last_ns=time.time_ns())
            if held is None:
                self.totals[place] += 1
            while len(self._records) > MAX_KEPT:
                del self._records[next(iter(self._records))]
        if held is None:
            log.warning("%s: %s is set aside: %s", *key, text)

    @property
    def records(self) -> list[Record]:
        """The one met last is the last."""
        with self._lock:
            return list(self._records.values())

    @contextlib.contextmanager
    def guard(self, place: str, which: str) -> Iterator[None]:
        """Decode inside this: what cannot be read is noted, and the block ends there."""
        try:
            yield
        except BAD_DATA as exc:
            self.note(place, which, exc)
