"""What JetStream and nats-py refuse and raise, in our own words: nothing else passes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import nats.errors

from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable

NO_STREAM = 10059
_NO_SPACE = (10047, 10002)
#: Said under other codes: of a cluster's servers none has room, or a disk is full.
_NO_SPACE_TEXTS = ("insufficient storage", "no space left on device")
NO_MESSAGE = 10037
DELETE_FAILED = 10043
_WRONG_LAST = (10071, 10164)
_IS_FULL = 10077
#: Refusals that pass: a leader is elected, a disk gets space again, others' consumers end (10026).
_PASSING = (10023, 10008, 10026, 10074, 503)


class Full(Unavailable):
    """A stream holds what it may hold: a healthy broker's answer."""


class ApiError(TokentraceError):
    """JetStream's own words; translated before anybody outside sees it."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code") or error.get("code") or 0)
        self.status = int(error.get("code") or 0)
        super().__init__(str(error.get("description") or error))

    @property
    def lacks_space(self) -> bool:
        """What was asked for is refused for want of storage."""
        return self.code in _NO_SPACE or any(text in str(self) for text in _NO_SPACE_TEXTS)

    def translated(self) -> TokentraceError:
        if self.code in _WRONG_LAST:
            return Conflict(str(self))
        if self.code == _IS_FULL:
            return Full(f"JetStream: {self} ({self.code})")
        if self.code in _PASSING or self.status >= 500 or self.lacks_space:
            return Unavailable(f"JetStream: {self} ({self.code})")
        return Rejected(f"JetStream: {self} ({self.code})")


@contextlib.contextmanager
def translate_errors(what: str) -> Any:
    """Translate everything nats-py raises on the way out."""
    try:
        yield
    except ApiError as exc:
        raise exc.translated() from exc
    except nats.errors.MaxPayloadError as exc:
        raise Rejected(f"{what}: message is larger than the broker takes", status=413) from exc
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"{what}: nobody answers") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"{what}: {type(exc).__name__}") from exc


@contextlib.contextmanager
def translate_request_errors(call: str) -> Any:
    """``border`` for a raw request, whose answer may still hold an error of JetStream."""
    try:
        yield
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"JetStream {call}: nobody answers") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"JetStream {call}: {type(exc).__name__}") from exc
