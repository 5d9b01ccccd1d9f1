"""
The bus on NATS JetStream: the only package that imports nats-py. ``client`` explains how it works.
"""

from tokentrace.bus.jetstream.client import JetStream, connect
from tokentrace.bus.urls import parse_urls, shown_urls

__all__ = ["JetStream", "connect", "parse_urls", "shown_urls"]
