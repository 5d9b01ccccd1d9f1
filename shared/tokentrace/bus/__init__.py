"""The message bus: its contract, the subjects, and two implementations (`memory`, `jetstream`)."""

from tokentrace.bus.clock import BrokerClock
from tokentrace.bus.contract import (
    HEADROOM_BYTES,
    MIN_STREAM_BYTES,
    Bus,
    Chunk,
    Delivery,
    Entry,
    KeyValue,
    Message,
    Objects,
    PubAck,
    Stream,
    StreamState,
)

__all__ = [
    "HEADROOM_BYTES",
    "MIN_STREAM_BYTES",
    "BrokerClock",
    "Bus",
    "Chunk",
    "Delivery",
    "Entry",
    "KeyValue",
    "Message",
    "Objects",
    "PubAck",
    "Stream",
    "StreamState",
]
