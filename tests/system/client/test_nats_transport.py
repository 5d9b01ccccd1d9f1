"""The transport over NATS: what it is sent is stored, through a real broker."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from kit.broker import Broker
from kit.builders import make_span
from kit.environment import PATIENCE
from kit.raw_stream import create_streams, read_raw, span_names
from tokentrace.client.transports import open_transport


def test_spans_sent_over_nats_are_stored_under_the_programs_name(broker: Broker) -> None:
    create_streams(broker.url)
    transport = open_transport(broker.url, source="shop")
    transport.send([make_span(name="a"), make_span(name="b")])
    transport.send([make_span(name="c")])
    assert transport.flush(20)
    assert transport.stats().acked == 3
    transport.close()
    stored = read_raw(broker.url)
    assert span_names(stored) == Counter("abc")
    assert {message.batch.source for message in stored} == {"shop"}


SEEDED = """
import random, sys
from tokentrace import Reporter, Span
random.seed(7)
with Reporter("shop", sys.argv[1]) as reporter:
    for name in ("before", "after"):
        reporter.report(Span(kind="llm", model="m", provider="p", name=name, prompt_tokens=1))
        assert reporter.flush(30), reporter.stats()
        print(random.getstate() == random.Random(7).getstate(), flush=True)
        input()
"""


def test_a_reporter_leaves_the_random_numbers_of_an_application_alone(broker: Broker) -> None:
    create_streams(broker.url)
    servers = f"{broker.url},127.0.0.1:1,127.0.0.1:2"
    program = subprocess.Popen(
        [sys.executable, "-c", SEEDED, servers], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        told = program.stdout.readline()
        broker.kill()
        broker.start()
        program.stdin.write("\n")
        program.stdin.flush()
        told += program.stdout.readline()
        program.communicate("\n", 20 * PATIENCE)
    assert (told, program.returncode) == ("True\nTrue\n", 0)
    assert span_names(read_raw(broker.url)) == Counter(["before", "after"])
