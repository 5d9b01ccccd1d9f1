"""Translates every error of JetStream and nats-py into an error of ``tokentrace.errors``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import nats.errors

from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable

NO_STREAM = 10059
_NO_SPACE = (10047, 10002)
#: Lack of space is also reported with other codes: no server of a cluster has space, or a disk is full.
_NO_SPACE_TEXTS = ("insufficient storage", "no space left on device")
NO_MESSAGE = 10037
DELETE_FAILED = 10043
_WRONG_LAST = (10071, 10164)
_IS_FULL = 10077
#: Refusals that are worth another try: no leader, no disk space, too many consumers (10026).
_TEMPORARY = (10023, 10008, 10026, 10074, 503)


class Full(Unavailable):
    """A stream has reached its size limit; the broker itself is healthy."""


class ApiError(TokentraceError):
    """
    An error answer of JetStream; ``translate_errors`` turns it into a public error.

    Attributes:
        code: JetStream's error code, such as 10059.
        status: The HTTP-like status, such as 404.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code") or error.get("code") or 0)
        self.status = int(error.get("code") or 0)
        super().__init__(str(error.get("description") or error))

    @property
    def lacks_space(self) -> bool:
        """True if the request was refused because storage is short."""
        return self.code in _NO_SPACE or any(text in str(self) for text in _NO_SPACE_TEXTS)

    def translated(self) -> TokentraceError:
        """Return the public error that says the same."""
        if self.code in _WRONG_LAST:
            return Conflict(str(self))
        if self.code == _IS_FULL:
            return Full(f"JetStream: {self} ({self.code})")
        if self.code in _TEMPORARY or self.status >= 500 or self.lacks_space:
            return Unavailable(f"JetStream: {self} ({self.code})")
        return Rejected(f"JetStream: {self} ({self.code})")


@contextlib.contextmanager
def translate_errors(what: str) -> Any:
    """Translate the errors of JetStream and nats-py that the block raises; *what* begins their messages."""
    try:
        yield
    except ApiError as exc:
        raise exc.translated() from exc
    except nats.errors.MaxPayloadError as exc:
        raise Rejected(f"{what}: the message is larger than the broker accepts", status=413) from exc
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"{what}: no answer") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"{what}: {type(exc).__name__}") from exc


@contextlib.contextmanager
def translate_request_errors(call: str) -> Any:
    """Translate the errors of nats-py only; the answer to *call* may still contain an error of JetStream."""
    try:
        yield
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"JetStream {call}: no answer") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"JetStream {call}: {type(exc).__name__}") from exc
