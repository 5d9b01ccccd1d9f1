"""Answers that are made in the background: their calls end when the application fetches the finished answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial

from tokentrace.client import lifecycle
from tokentrace.client.track.call import Call
from tokentrace.client.usage.access import get, text

#: With more calls under way, the oldest ends without its usage.
MAX_WAITING = 10_000
_RUNNING = ("queued", "in_progress")


class Background:
    """The calls whose answers are not finished, by the id of the response."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls: OrderedDict[str, Call] = OrderedDict()
        lifecycle.register(self, is_source=True)

    def keep(self, call: Call, response: object) -> bool:
        """Keep *call* if *response* says that the answer is still being made; return whether it does."""
        response_id = text(response, "id")
        if not response_id or text(response, "status") not in _RUNNING:
            return False
        call.set(response_id=response_id, attributes={"background": True})
        call.finish = partial(call.end, usage_state="missing")
        oldest = None
        with self._lock:
            self._calls[response_id] = call
            if len(self._calls) > MAX_WAITING:
                _, oldest = self._calls.popitem(last=False)
        if oldest is not None:
            oldest.end(usage_state="missing")
        return True

    def waits_for(self, response_id: str) -> bool:
        """Return True if the call that made *response_id* has not ended."""
        return response_id in self._calls

    def fetched(self, response: object) -> None:
        """End the call of *response* if the answer is finished; once, however often it is fetched."""
        if text(response, "status") in ("", *_RUNNING):
            return
        with self._lock:
            call = self._calls.pop(text(response, "id"), None)
        if call is None:
            return
        error = get(response, "error")
        if text(response, "status") == "failed" or error is not None:
            message = text(error, "message") or "the response failed"
            call.end(response, status="error", error=message, attributes={"error_type": text(error, "code")})
        else:
            call.end(response)

    def begin_close(self, timeout: float) -> None:
        """End the calls at the end of the program, without their usage."""
        with self._lock:
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            call.end(usage_state="missing")

    def finish_close(self) -> None:
        """Do nothing: the spans were handed over."""

    def reset(self) -> None:
        """Forget the calls of the parent, in a forked child."""
        self._lock = threading.RLock()
        self._calls.clear()
