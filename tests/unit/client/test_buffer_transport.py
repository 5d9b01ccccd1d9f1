"""The transport for tests of an application: it keeps what it was sent."""

from __future__ import annotations

import os
import threading

from kit.builders import make_span
from tokentrace import Stats
from tokentrace.client.transports import BufferTransport, NoopTransport


def test_spans_are_kept_in_order_as_they_were_sent() -> None:
    buffer = BufferTransport()
    assert (buffer.last, len(buffer), bool(buffer)) == (None, 0, True)
    first, second = make_span(name="a"), make_span(name="b", attributes={"password": "kept"})
    buffer.send([first])
    buffer.send([second])
    assert buffer.spans == [first, second]
    assert (buffer.last, len(buffer)) == (second, 2)
    assert buffer.find(lambda span: span.name == "a") == first
    assert buffer.find(lambda span: span.name == "c") is None


def test_a_change_of_attributes_after_sending_does_not_change_the_kept_span() -> None:
    buffer = BufferTransport()
    attributes = {"step": 1}
    buffer.send([make_span(attributes=attributes)])
    attributes["step"] = 2
    assert buffer.spans[0].attributes == {"step": 1}


def test_reset_forgets_spans_and_keeps_counters() -> None:
    buffer = BufferTransport()
    buffer.send([make_span(), make_span()])
    buffer.reset()
    assert buffer.spans == []
    assert buffer.stats() == Stats(sent=2, acked=2, dropped=0, failed=0, queue_depth=0)


def test_after_close_spans_stay_readable_and_further_ones_are_dropped() -> None:
    buffer = BufferTransport()
    buffer.send([make_span(name="before")])
    buffer.close()
    buffer.close()
    buffer.send([make_span(name="after")])
    assert [span.name for span in buffer.spans] == ["before"]
    assert buffer.stats().dropped == 1
    assert buffer.flush()


def test_no_span_of_many_threads_is_lost() -> None:
    buffer = BufferTransport()

    def work() -> None:
        for _ in range(200):
            buffer.send([make_span(), make_span()])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(buffer) == len({span.span_id for span in buffer.spans}) == buffer.stats().acked == 8 * 400


def test_a_forked_child_starts_empty() -> None:
    buffer = BufferTransport()
    buffer.send([make_span()])
    child = os.fork()
    if child == 0:
        os._exit(0 if (len(buffer), buffer.stats().acked) == (0, 0) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(buffer) == 1


def test_a_noop_transport_discards_spans() -> None:
    noop = NoopTransport()
    noop.send([make_span()])
    assert noop.flush(0)
    noop.close()
    assert not any(noop.stats())
