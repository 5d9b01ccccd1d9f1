"""Scores of spans that have ended, posted to the api in the background."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.background import Background
from tokentrace.client.transports.counted_queue import Delivered, Limits
from tokentrace.client.transports.notices import Notices
from tokentrace.client.transports.options import check_at_least
from tokentrace.client.transports.poster import Poster, Retries
from tokentrace.errors import ConfigError, Rejected, Unavailable, quoted, shorten
from tokentrace.records import MAX_KEY_BYTES, is_id
from tokentrace.redact import Redactor
from tokentrace.units import is_number

#: At most so many scores are sent in one request, after at most so many seconds.
_BATCH = 100
_AGE_S = 0.5
_MAX_WAITING = 10_000
_TIMEOUT_S = 10.0
#: The first and the longest pause before scores are sent again, seconds.
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 5.0
#: The queue repeats scores itself.
_ONCE = Retries(0, 0.0)


class _Score(msgspec.Struct):
    """A score as ``POST /scores`` takes it."""

    value: float | None
    trace_id: str
    span_id: str
    name: str


class _Waiting:
    """A score that waits; *missing_since* is when the api first did not know its span, monotonic seconds."""

    def __init__(self, score: _Score) -> None:
        self.key = (score.trace_id, score.span_id, score.name)
        self.json = msgspec.json.encode(score)
        self.missing_since: float | None = None


_Batch = Sequence[tuple[_Waiting, int]]


class ScoreQueue:
    """
    Posts scores to ``POST /scores`` of the api in the background.

    ``score`` never blocks and never raises. A score may be given before its span is stored: while the api does not know
    the span, and while it cannot be reached, the score is sent again. Scores of one span under one name keep their
    order.

    Args:
        api_url: The base URL of the api, such as ``http://127.0.0.1:9090``.
        token: Bearer token; "" sends none.
        patience: For so many seconds the api may not know a span; then its score counts as failed.
        redactor: Removes secrets from the names of scores; None uses the default rules.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self, api_url: str, token: str = "", *, patience: float = 60.0, redactor: Redactor | None = None
    ) -> None:
        check_at_least("patience", patience, 0)
        if "?" in api_url or "#" in api_url:
            raise ConfigError("api_url: must not contain a query or a fragment")
        headers = {"Content-Type": "application/json"}
        if token.strip():
            headers["Authorization"] = f"Bearer {token.strip()}"
        self._poster = Poster(f"{api_url.rstrip('/')}/scores", headers, _TIMEOUT_S)
        self._patience = patience
        self._redactor = redactor or Redactor()
        self._pause_s = _FIRST_PAUSE_S
        self._queue: Background[_Waiting] = Background(
            Limits(_BATCH, 512 * 1024, _AGE_S, _MAX_WAITING),
            self._deliver,
            Notices(f"scores {self._poster.shown}", "scores"),
            name="tokentrace-scores",
            on_fork=self._poster.forget,
            release=self._poster.close,
        )

    def score(
        self, value: float | None, *, trace_id: str = "", span_id: str | None = None, name: str = "eval.score"
    ) -> None:
        """
        Queue a score. This never blocks and never raises; one that is not valid is counted as rejected and logged.

        Args:
            value: 0 to 1; None removes the score.
            trace_id: The trace of the span; "" if the span id is unique.
            span_id: The span; None = the root of the trace.
            name: Name of the score; ``eval.`` is added in front if it is missing.
        """
        try:
            score = self._checked(value, trace_id, span_id or "", name)
        except Rejected as exc:
            self._queue.reject(str(exc))
            return
        waiting = _Waiting(score)
        self._queue.put(waiting, len(waiting.json))

    def _checked(self, value: object, trace_id: object, span_id: object, name: object) -> _Score:
        if value is not None and not (is_number(value) and 0 <= value <= 1):
            raise Rejected(f"score: {shorten(value)} is not between 0 and 1")
        for field, id in (("trace_id", trace_id), ("span_id", span_id)):
            if not isinstance(id, str) or (id and not is_id(id)):
                raise Rejected(f"{field}: {quoted(id)} is not 1-256 printable ASCII characters")
        if not trace_id and not span_id:
            raise Rejected("trace_id or span_id: one of them is required")
        if not isinstance(name, str) or name in ("", "eval."):
            raise Rejected(f"name: {quoted(name)} is empty")
        whole = self._redactor.text(name if name.startswith("eval.") else f"eval.{name}")
        if len(whole.encode(errors="replace")) > MAX_KEY_BYTES or not whole.isprintable():
            raise Rejected(f"name: {quoted(whole)} is longer than {MAX_KEY_BYTES} bytes or not printable")
        return _Score(None if value is None else float(value), str(trace_id), str(span_id), whole)

    # -- the background thread

    def _deliver(self, batch: list[tuple[_Waiting, int]]) -> Delivered[_Waiting]:
        try:
            done = self._together(batch)
        except Unavailable as exc:
            done = self._unavailable(exc, batch)
        self._pause_s = min(self._pause_s * 2, _MAX_PAUSE_S) if done.left else _FIRST_PAUSE_S
        return done

    def _together(self, batch: _Batch) -> Delivered[_Waiting]:
        """Send *batch* in one request or, as one wrong score refuses it whole, each score in a request of its own."""
        if len(batch) > 1 and all(item.missing_since is None for item, _ in batch):
            try:
                self._post(b"[" + b",".join(item.json for item, _ in batch) + b"]")
                return Delivered(acked=len(batch))
            except Rejected:
                pass  # one by one
        acked = failed = 0
        left: list[tuple[_Waiting, int]] = []
        for index, (item, size) in enumerate(batch):
            try:
                if any(item.key == earlier.key for earlier, _ in left):
                    left.append((item, size))  # behind the one that it replaces
                    continue
                self._post(item.json)
                acked += 1
            except Unavailable as exc:
                return self._unavailable(exc, [*left, *batch[index:]])._replace(acked=acked, failed=failed)
            except Rejected as exc:
                if exc.status == 404 and self._is_patient(item):
                    left.append((item, size))
                else:
                    failed += 1
                    self._queue.notices.failed(str(exc), 1)
        return Delivered(acked=acked, failed=failed, left=left, pause_s=self._pause_s)

    def _is_patient(self, item: _Waiting) -> bool:
        now = time.monotonic()
        if item.missing_since is None:
            item.missing_since = now
        return now - item.missing_since < self._patience

    def _unavailable(self, exc: Unavailable, left: _Batch) -> Delivered[_Waiting]:
        self._queue.notices.failing(str(exc))
        return Delivered(left=left, pause_s=max(self._pause_s, exc.retry_after_s))

    def _post(self, body: bytes) -> None:
        self._poster.post(body, {}, _ONCE, self._queue.pause, self._queue.remaining)

    # -- the end

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Wait until every score is accepted or counted as lost.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return self._queue.flush(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Send the waiting scores and end the background thread; closing twice is allowed.

        Args:
            timeout: Seconds; scores that are not accepted by then are dropped and counted.
        """
        self._queue.close(timeout)

    def stats(self) -> Stats:
        """
        Return the counters of this queue.

        Returns:
            Counts of scores since the queue was created, or since the fork in a forked child.
        """
        return self._queue.stats()
