"""The end of a program: open traces end, and every transport gets the spans, those of the application included."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kit.environment import PATIENCE

PROGRAM = """
import sys
from tokentrace import MultiTransport, NoopTransport, StdoutTransport, Tracer, traced, set_default_tracer

class Mine:
    def __init__(self): self.spans = []
    def send(self, spans): self.spans += spans
    def flush(self, timeout=5.0): return True
    def close(self, timeout=5.0): print("closed with", [span.name for span in self.spans], flush=True)
    def stats(self): raise NotImplementedError

tracer = Tracer({transport})
kept = tracer.start("open at exit")
kept.record(kind="custom")
{last}
"""


@pytest.mark.parametrize("transport", ["Mine()", "MultiTransport(NoopTransport(), Mine())"])
@pytest.mark.parametrize("last", ["", "sys.exit(3)", "raise ValueError('x')"])
def test_the_transport_of_an_application_is_closed_after_the_open_traces_ended(transport: str, last: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(transport=transport, last=last)],
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
        env={key: value for key, value in os.environ.items() if not key.startswith("TOKENTRACE_")},
    )
    assert ran.stdout == "closed with ['open at exit']\n", ran.stderr
