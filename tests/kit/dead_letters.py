"""The dead letters of a running pipeline."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kit.nats_client import message_count, on_nats
from kit.pipeline import Pipeline


def dead_letter_count(pipeline: Pipeline) -> int:
    """Return how many dead letters there are."""
    return message_count(pipeline, "TT_REJECTED")


def read_dead_letters(pipeline: Pipeline, before: int) -> list[dict[str, Any]]:
    """Return the dead letters after the first *before*, in order."""

    async def read(client: Any) -> list[bytes]:
        stream = client.jetstream()
        state = (await stream.stream_info("TT_REJECTED")).state
        if not state.messages:
            return []
        sequences = range(state.first_seq + before, state.last_seq + 1)
        return [(await stream.get_msg("TT_REJECTED", sequence)).data for sequence in sequences]

    return [json.loads(data) for data in on_nats(pipeline, read)]


def await_empty_queue(pipeline: Pipeline) -> None:
    """Wait until ingest has handled every message of the raw stream."""
    pipeline.until(lambda: message_count(pipeline, "TT_RAW") == 0, "an empty raw stream", 20)


def await_dead_letters(pipeline: Pipeline, before: int, count: int) -> list[dict[str, Any]]:
    """Wait for *count* dead letters after the first *before*; check that there are no more and each has a reason."""
    pipeline.until(lambda: dead_letter_count(pipeline) >= before + count, f"{count} dead letters", 20)
    await_empty_queue(pipeline)
    letters = read_dead_letters(pipeline, before)
    assert len(letters) == count, letters
    for letter in letters:
        assert 0 < len(letter["reason"]) < 1000
    return letters


def fingerprint(payload: bytes) -> tuple[int, str]:
    """Return the size and the SHA-256 of *payload*, by which a dead letter names a message."""
    return len(payload), hashlib.sha256(payload).hexdigest()
