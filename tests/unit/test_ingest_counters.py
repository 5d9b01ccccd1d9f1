"""Ingest counts what it accepts, rejects and redacts, by the source of the input."""

from __future__ import annotations

from kit.builders import make_batch, make_span
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace_ingest.service import Config, Ingest


async def make_ingest() -> Ingest:
    bus = MemoryBus(MemoryBroker())
    for stream in subjects.streams():
        await bus.ensure(stream)
    return Ingest(bus, Config.of(Settings()))


async def test_every_counter_names_its_source_and_repeats_it_in_the_deprecated_label_way() -> None:
    ingest = await make_ingest()
    await ingest.accept(make_batch(make_span(error="mail a@b.io")), "spans")
    ingest.count_refused("mist", 2)
    samples = list(ingest.samples())
    assert {(sample.name, sample.value): sample.labels for sample in samples if sample.value} == {
        ("tokentrace_ingest_spans_total", 1): {"source": "spans", "way": "spans"},
        ("tokentrace_ingest_rejected_total", 2): {"source": "mist", "way": "mist"},
        ("tokentrace_ingest_redactions_total", 1): {"kind": "email", "source": "spans", "way": "spans"},
    }
    assert all("way is deprecated" in sample.help for sample in samples)
