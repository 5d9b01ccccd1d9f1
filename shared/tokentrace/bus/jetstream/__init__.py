"""
The bus on NATS JetStream: the only package that imports nats.

It speaks the JetStream API in JSON itself and leaves to nats-py what it does well, the connection. What that avoids,
each seen to happen: futures of ``publish_async`` that never end, fetch loops that lose messages on a dropped
connection without a word, key-value watches that are deaf for 16 s after a restart, reads of an overwritten object
that hang for ever.
"""

from tokentrace.bus.jetstream.client import JetStream, connect
from tokentrace.bus.jetstream.connection import parse_urls

__all__ = ["JetStream", "connect", "parse_urls"]
