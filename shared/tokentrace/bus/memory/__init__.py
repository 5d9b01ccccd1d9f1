"""
The bus in memory: the second implementation of the contract, for tests and for services in one process.

It passes the tests of the contract. Unlike JetStream, it enforces no maximum age, and its messages are lost when the
process ends.
"""

from tokentrace.bus.memory.broker import MemoryBroker, matches
from tokentrace.bus.memory.client import MAX_PAYLOAD, MemoryBus

__all__ = ["MAX_PAYLOAD", "MemoryBroker", "MemoryBus", "matches"]
