"""
Handling data that cannot be decoded: a stream, bucket, object or file may contain bytes that another program wrote.

Decode inside ``reading``, which turns every error of a decoder into ``Rejected``. Record what was rejected in the
``SetAside`` of the bus and continue with the next message. ``/health`` shows the records and the counts,
``/internal/metrics`` the counts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from tokentrace.errors import Rejected, cut_quoted, shorten

log = logging.getLogger(__name__)

#: What decoders raise for unexpected bytes; ``UnicodeDecodeError`` and ``binascii.Error`` are ValueErrors.
UNREADABLE: tuple[type[Exception], ...] = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
#: ``UNREADABLE``, and MemoryError: a decoder refuses to allocate the size that corrupt data claims.
_UNDECODABLE: tuple[type[Exception], ...] = (*UNREADABLE, MemoryError)
#: ``UNREADABLE``, and ``Rejected`` for data that was decoded but is not valid.
BAD_DATA: tuple[type[Exception], ...] = (Rejected, *UNREADABLE)
#: How many records a ``SetAside`` keeps.
MAX_KEPT = 100
#: Maximum lengths of ``Record.reason`` and ``Record.which``, characters.
_MAX_REASON, _MAX_WHICH = 300, 120


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """
    Turn the errors of decoders inside the block into ``Rejected``; its message begins with *what*.

    Raises:
        Rejected: The data cannot be decoded; the message quotes no value longer than 40 characters.
    """
    try:
        yield
    except _UNDECODABLE as exc:
        raise Rejected(f"{what}: {reason_of(exc)}") from exc


def reason_of(error: Exception) -> str:
    """Return the message of *error*, short and without long quoted values, so that it may be logged and shown."""
    text = cut_quoted(str(error)) or "no reason given"
    known = isinstance(error, Rejected | msgspec.MsgspecError | ValueError | RecursionError)
    return shorten(text if known else f"{type(error).__name__}: {text}", _MAX_REASON)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    One piece of data that could not be decoded.

    Attributes:
        place: The stream, bucket or request subject, such as ``TT_ALERTS``.
        which: Which part of the place, such as ``message 17``, ``key shards revision 3`` or ``object aggregator.0.1``.
        reason: Why it cannot be decoded.
        count: How often it was read.
        last_ns: When it was last read, Unix nanoseconds.
    """

    place: str
    which: str
    reason: str
    count: int = 1
    last_ns: int = 0


class SetAside:
    """
    The data that one bus or store could not decode: the ``MAX_KEPT`` records read last, and a count for each place.

    Args:
        now_ns: Returns the time of a record, Unix nanoseconds.

    Attributes:
        totals: Place -> number of pieces of data set aside since the start; a piece that is read again counts again
            only if its record is no longer kept.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        # The span store calls ``note`` from its writer thread.
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], Record] = {}
        self.totals: Counter[str] = Counter()

    def note(self, place: str, which: str, reason: Exception | str) -> None:
        """Record one piece of data and log it; if its record is still kept, only increase the record's count."""
        # Plain texts, because msgspec encodes no subclass of str.
        text = reason_of(reason) if isinstance(reason, Exception) else shorten(reason, _MAX_REASON)
        key = place, shorten(which, _MAX_WHICH)
        with self._lock:
            known = self._records.pop(key, None)
            count = known.count + 1 if known is not None else 1
            self._records[key] = Record(place=place, which=key[1], reason=text, count=count, last_ns=self._now_ns())
            if known is None:
                self.totals[place] += 1
            while len(self._records) > MAX_KEPT:
                del self._records[next(iter(self._records))]
        if known is None:
            log.warning("%s: %s was set aside: %s", *key, text)

    @property
    def records(self) -> list[Record]:
        """Return the records, the one read last at the end."""
        with self._lock:
            return list(self._records.values())

    @contextlib.contextmanager
    def guard(self, place: str, which: str) -> Iterator[None]:
        """Catch an error of ``BAD_DATA`` in the block, record the data, and continue after the block."""
        try:
            yield
        except BAD_DATA as exc:
            self.note(place, which, exc)
