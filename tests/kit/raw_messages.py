"""Messages of the raw stream ``TT_RAW``, and functions that clean them as ingest does."""

from __future__ import annotations

from typing import Any

from kit.builders import make_batch
from tokentrace.bus import Message
from tokentrace.pricing import Pricer
from tokentrace.records import (
    Span,
    encode_batches,
)
from tokentrace.redact import Redactor
from tokentrace_ingest.cleaning import Cleaned, Cleaner, is_json
from tokentrace_ingest.dead_letters import DeadLetter

ARRIVED_NS = 1_773_600_000_000_000_000


CREATED_NS = 1_773_500_000_000_000_000


def make_cleaner() -> Cleaner:
    """Return a cleaner with the default settings."""
    return Cleaner(Redactor(), Pricer())


def raw_message(payload: bytes, *, sequence: int = 7, id: str = "") -> Message:
    """Return *payload* as a message of ``TT_RAW``; *id* becomes its ``Nats-Msg-Id``."""
    headers = {"Nats-Msg-Id": id} if id else {}
    return Message("tokentrace.raw.default.0", payload, sequence, ARRIVED_NS, headers)


def clean_message(cleaner: Cleaner, message: Message) -> tuple[list[Cleaned], list[DeadLetter]]:
    """Decode and clean *message* as ingest does; return the results and all dead letters."""
    batches, dead_letters = cleaner.read(message, CREATED_NS)
    size, checked = len(message.payload), is_json(message.payload)
    results = [cleaner.clean(batch, message.time_ns, size, checked=checked) for batch in batches]
    return results, [*dead_letters, *(dead_letter for result in results for dead_letter in result.dead_letters)]


def written(results: list[Cleaned], dead_letters: list[DeadLetter]) -> bytes:
    """Return all bytes that ingest would store: the batches and the dead letters."""
    parts = b"".join(encode_batches([part]) for result in results for part in result.parts)
    return parts + b"".join(dead_letter.id.encode() + dead_letter.body for dead_letter in dead_letters)


def stored_spans(results: list[Cleaned]) -> list[Span]:
    """Return the spans of all parts of *results*, in order."""
    return [span for result in results for part in result.parts for span in part.spans]


def bare_span(**fields: Any) -> Span:
    """Return a span without the fields that ingest fills in."""
    return Span(**{"model": "gpt-4o", "provider": "openai", "prompt_tokens": 10, "completion_tokens": 5, **fields})


MESSAGES = {
    "whole": encode_batches([make_batch()]),
    "bare": encode_batches([make_batch(*[bare_span(name=f"n{index}") for index in range(300)])]),
    "two batches": encode_batches([make_batch(bare_span(), id="a.b.1"), make_batch(bare_span(), id="a.b.2")]),
    "bad neighbours": encode_batches([make_batch(bare_span(), bare_span(model=""), bare_span(prompt_tokens=-1))]),
    "secrets": encode_batches([make_batch(bare_span(attributes={"password": "hunter2"}, error="jane@example.com"))]),
    "json": b'[{"model": "gpt-4o", "prompt_tokens": 1}, {"kind": "tool", "name": "x"}]',
    "bad json": b'[{"model": "gpt-4o", "prompt_tokens": 1}, {"prompt_tokens": -1}, 5]',
    "rubbish": b"\xc1\xff\x00rubbish",
    "empty": b"",
}
