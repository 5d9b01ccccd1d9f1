"""Several transports as one: every span goes to all, and what one raises is its own affair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from kit.builders import make_span
from tokentrace import Span, Stats
from tokentrace.client.transports import BufferTransport, MultiTransport, Transport
from tokentrace.errors import ConfigError, Rejected, Unavailable


class Faulty:
    """A transport of an application that raises whatever it is asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def send(self, spans: Sequence[Span]) -> None:
        raise self.error

    def flush(self, timeout: float | None = 5.0) -> bool:
        raise self.error

    def close(self, timeout: float = 5.0) -> None:
        raise self.error

    def stats(self) -> Stats:
        return Stats(sent=7, acked=0, dropped=0, failed=7, queue_depth=0)


class Slow(BufferTransport):
    """A transport whose ``flush`` and ``close`` wait for another one's, as long as there is time."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier = barrier

    def flush(self, timeout: float | None = 5.0) -> bool:
        self.barrier.wait(timeout)
        return True

    def close(self, timeout: float = 5.0) -> None:
        self.barrier.wait(timeout)


def test_every_span_goes_to_every_transport() -> None:
    first, second = BufferTransport(), BufferTransport()
    multi = MultiTransport(first, second)
    assert isinstance(multi, Transport)
    spans = [make_span(), make_span()]
    multi.send(spans)
    assert first.spans == second.spans == spans
    assert multi.flush()
    assert multi.stats() == Stats(sent=4, acked=4, dropped=0, failed=0, queue_depth=0)


METHODS: dict[str, Callable[[MultiTransport], object]] = {
    "send": lambda multi: multi.send([make_span()]),
    "flush": lambda multi: multi.flush(),
    "close": lambda multi: multi.close(),
}


@pytest.mark.parametrize("method", METHODS)
def test_one_error_names_every_transport_that_failed_after_all_were_called(method: str) -> None:
    first, last = BufferTransport(), BufferTransport()
    multi = MultiTransport(first, Faulty(OSError("no disk")), Faulty(RuntimeError()), last)
    with pytest.raises(Unavailable) as raised:
        METHODS[method](multi)
    assert str(raised.value) == f"{method} of Faulty (1): no disk; {method} of Faulty (2): RuntimeError"
    if method == "send":
        assert len(first) == len(last) == 1
    if method == "close":
        first.send([make_span()])
        last.send([make_span()])
        assert (first.stats().dropped, last.stats().dropped) == (1, 1)


def test_the_error_is_final_only_if_every_failed_transport_says_so() -> None:
    with pytest.raises(Rejected):
        MultiTransport(Faulty(Rejected("never")), BufferTransport()).send([make_span()])
    with pytest.raises(Unavailable):
        MultiTransport(Faulty(Rejected("never")), Faulty(Unavailable("not now"))).send([make_span()])


@pytest.mark.parametrize("method", ["flush", "close"])
def test_transports_are_flushed_and_closed_at_the_same_time(method: str) -> None:
    barrier = threading.Barrier(3)  # which only opens if all three wait at once
    METHODS[method](MultiTransport(Slow(barrier), Slow(barrier), Slow(barrier)))
    assert not barrier.broken


def test_a_multi_transport_needs_transports() -> None:
    with pytest.raises(ConfigError, match="needs at least one transport"):
        MultiTransport()
    with pytest.raises(ConfigError, match="str is not a transport"):
        MultiTransport("stdout:")  # type: ignore[arg-type]  # what a caller without a type checker may pass
