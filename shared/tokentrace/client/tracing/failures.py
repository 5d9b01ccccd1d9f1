"""What a span tells of an exception, and which exceptions the spans of a trace have recorded."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

from tokentrace.client.fields import SpanFields

#: How much of a stack trace is kept, characters from its end.
_MAX_STACK = 16_000
#: How many exceptions of a trace are remembered; more can fail at once only in as many tasks.
_REMEMBERED = 64
#: Reads ``__dict__`` past what the class of an exception makes of that name.
_dict_of = BaseException.__dict__["__dict__"].__get__


class Failures:
    """
    The exceptions that spans of a trace have recorded, so that the trace does not record them again.

    An exception takes no weak reference. A strong one would keep the variables of the functions that it passed, and an
    identity is given to another object later. So the dictionary of its attributes stands for it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._recorded: deque[Any] = deque(maxlen=_REMEMBERED)

    def note(self, error: BaseException) -> bool:
        """
        Take note that a span recorded *error*; of a group, its exceptions.

        Returns:
            True if *error*, or each exception of the group, had been recorded before.
        """
        with self._lock:
            new = [one for one in _leaves(error) if not any(one is kept for kept in tuple(self._recorded))]
            self._recorded.extend(new)
        return not new


def _leaves(error: BaseException) -> Iterator[Any]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield _dict_of(error)


def failure(error: BaseException | str) -> SpanFields:
    """Return the fields of a span that failed with *error*; an exception that fails at its own text has none."""
    if isinstance(error, str):
        return {"status": "error", "error": error}
    name = type(error).__name__
    timed_out = isinstance(error, TimeoutError) or "Timeout" in name
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception of the application may fail at its own text
        text = ""
    try:
        stack = "".join(traceback.format_exception(error))[-_MAX_STACK:] if error.__traceback__ else ""
    except Exception:  # noqa: BLE001 - as above, at its cause, its notes or its attributes
        stack = ""
    return {
        "status": "timeout" if timed_out else "error",
        "error": f"{name}: {text}" if text else name,
        "error_stack": stack,
    }
