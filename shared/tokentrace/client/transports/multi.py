"""The transport that hands spans to several others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from tokentrace.client.reporter import Stats
from tokentrace.client.transports.contract import Transport
from tokentrace.errors import ConfigError, Rejected, Unavailable, shorten
from tokentrace.records import Span


class MultiTransport:
    """
    Hands every span to each of several transports. A fault of one does not keep spans from the others.

    Args:
        children: The transports, at least one.

    Attributes:
        children: The transports.

    Raises:
        ConfigError: There is no transport, or one lacks a method of ``Transport``.
    """

    def __init__(self, *children: Transport) -> None:
        if not children:
            raise ConfigError("transport: a MultiTransport needs at least one transport")
        for child in children:
            if not isinstance(child, Transport):
                raise ConfigError(f"transport: {type(child).__name__} is not a transport: it lacks a method of one")
        self.children = children

    def send(self, spans: Sequence[Span]) -> None:
        """
        Hand *spans* to every transport.

        Args:
            spans: Finished calls.

        Raises:
            Unavailable: At least one transport failed; the text names those and why. The others have the spans.
            Rejected: The same, if each that failed says that it always will.
        """
        calls = [partial(child.send, spans) for child in self.children]
        _raise([failed for index, call in enumerate(calls) for failed in self._one(index, call, "send")])

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Flush every transport, all within the same time.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first for one of them.

        Raises:
            Unavailable: At least one transport failed; the text names those and why.
        """
        done = [False] * len(self.children)
        until = None if timeout is None else time.monotonic() + timeout

        def flush(index: int) -> None:
            rest = None if until is None else max(until - time.monotonic(), 0.0)
            done[index] = self.children[index].flush(rest)

        _raise(self._at_once([partial(flush, index) for index in range(len(done))], "flush"))
        return all(done)

    def close(self, timeout: float = 5.0) -> None:
        """
        Close every transport, all within the same time.

        Args:
            timeout: Seconds; spans that are not delivered by then are dropped and counted.

        Raises:
            Unavailable: At least one transport failed; the text names those and why.
        """
        until = time.monotonic() + timeout

        def close(child: Transport) -> None:
            child.close(max(until - time.monotonic(), 0.0))

        _raise(self._at_once([partial(close, child) for child in self.children], "close"))

    def stats(self) -> Stats:
        """
        Return the sums of the counters of all transports.

        Returns:
            Counts of spans; one that two transports have delivered counts twice.
        """
        return Stats(*map(sum, zip(*(child.stats() for child in self.children), strict=True)))

    def _one(self, index: int, call: Callable[[], None], what: str) -> list[tuple[str, Exception]]:
        """Call and return (which, what it raised), or nothing."""
        try:
            call()
        except Exception as exc:  # noqa: BLE001 - a transport of the application, with any behaviour
            return [(f"{what} of {type(self.children[index]).__name__} ({index})", exc)]
        return []

    def _at_once(self, calls: Sequence[Callable[[], None]], what: str) -> list[tuple[str, Exception]]:
        """Call with a thread for each but the last, as far as threads can be started; return what ``_one`` does."""
        failed: list[tuple[int, tuple[str, Exception]]] = []

        def run(index: int) -> None:
            failed.extend((index, one) for one in self._one(index, calls[index], what))

        threads = []
        here = [len(calls) - 1]
        for index in range(len(calls) - 1):
            thread = threading.Thread(target=run, args=(index,), name=f"tokentrace-{what}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                here.append(index)
            else:
                threads.append(thread)
        for index in sorted(here):
            run(index)
        for thread in threads:
            thread.join()
        return [one for _, one in sorted(failed, key=lambda pair: pair[0])]


def _raise(failed: Sequence[tuple[str, Exception]]) -> None:
    """Raise one error that names all that *failed*, if any did."""
    if not failed:
        return
    text = "; ".join(f"{which}: {shorten(str(exc) or type(exc).__name__, 200)}" for which, exc in failed)
    final = all(isinstance(exc, Rejected) for _, exc in failed)
    raise (Rejected(text) if final else Unavailable(text)) from failed[0][1]
