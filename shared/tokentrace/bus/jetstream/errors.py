"""The error codes of JetStream, and the translation of its errors and nats-py's into ``tokentrace.errors``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import nats.errors

from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable

NO_STREAM, NO_CONSUMER = 10059, 10014
_NO_SPACE = (10047, 10002)
#: Lack of space is also reported with other codes: no server of a cluster has space, or a disk is full.
_NO_SPACE_TEXTS = ("insufficient storage", "no space left on device")
NO_MESSAGE = 10037
NO_SEQUENCE = 10043
_WRONG_LAST = (10071, 10164)
_IS_FULL = 10077
#: Refusals that are worth another try: insufficient resources, no leader, too many consumers, too few servers.
_TEMPORARY = (10023, 10008, 10026, 10074, 503)


class Full(Unavailable):
    """JetStream could not store a message (error 10077), usually because the stream has reached its size limit."""


class ApiError(TokentraceError):
    """
    An error answer of JetStream; ``translate_errors`` turns it into a public error.

    Attributes:
        code: JetStream's error code, such as 10059; the status if the answer has no code.
        status: The HTTP-like status, such as 404.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code") or error.get("code") or 0)
        self.status = int(error.get("code") or 0)
        super().__init__(str(error.get("description") or error))

    @property
    def lacks_space(self) -> bool:
        """True if the request was refused because there is too little storage."""
        return self.code in _NO_SPACE or any(text in str(self) for text in _NO_SPACE_TEXTS)

    def translated(self) -> TokentraceError:
        """Return the error of ``tokentrace.errors`` that corresponds to this one."""
        if self.code in _WRONG_LAST:
            return Conflict(str(self))
        if self.code == _IS_FULL:
            return Full(f"JetStream: {self} ({self.code})")
        if self.code in _TEMPORARY or self.status >= 500 or self.lacks_space:
            return Unavailable(f"JetStream: {self} ({self.code})")
        return Rejected(f"JetStream: {self} ({self.code})")


@contextlib.contextmanager
def translate_errors(what: str) -> Any:
    """
    Translate the errors of JetStream and nats-py that the block raises.

    Args:
        what: What was attempted; the message begins with it if the error is one of nats-py.

    Raises:
        Conflict: A compare-and-set lost.
        Rejected: The broker refuses the request for good, or the message is too large.
        Unavailable: Any other error of JetStream or nats-py, or no answer.
    """
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
    """Translate errors of nats-py into ``Unavailable``; the answer to *call* may still hold an error of JetStream."""
    try:
        yield
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"JetStream {call}: no answer") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"JetStream {call}: {type(exc).__name__}") from exc
