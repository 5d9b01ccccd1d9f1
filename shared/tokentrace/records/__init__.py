"""What travels between the services: frozen msgspec structs, array-like on the wire, fields only ever appended."""

from tokentrace.records.alert import AlertEvent, DeliveryRecord, decode_delivery, decode_event
from tokentrace.records.batch import Batch, ReporterStats, decode_batches, encode_batches
from tokentrace.records.session import Annotation, ChatMessage, Score, SessionEnd, Started, Tombstone
from tokentrace.records.span import KINDS, ROLLUP_KINDS, Span, attribute, check_span, counts_as_cost, event_time

__all__ = [
    "KINDS",
    "ROLLUP_KINDS",
    "AlertEvent",
    "Annotation",
    "Batch",
    "ChatMessage",
    "DeliveryRecord",
    "ReporterStats",
    "Score",
    "SessionEnd",
    "Span",
    "Started",
    "Tombstone",
    "attribute",
    "check_span",
    "counts_as_cost",
    "decode_batches",
    "decode_delivery",
    "decode_event",
    "encode_batches",
    "event_time",
]
