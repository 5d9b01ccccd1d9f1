"""The names of tokentrace's subjects, streams and buckets, how to parse them, and the settings of the streams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tokentrace.bus.contract import Stream
from tokentrace.errors import Rejected, quoted
from tokentrace.units import DAY, MINUTE

RAW = "TT_RAW"
SPANS = "TT_SPANS"
REJECTED = "TT_REJECTED"
ALERTS = "TT_ALERTS"
DELIVERIES = "TT_DELIVERIES"
#: How the name of the stream of each target begins to which ingest sends on what it accepted.
FORWARD = "TT_FORWARD"
META = "tt_meta"
RULES = "tt_rules"
OPEN_SPANS = "tt_open_spans"
SCORES = "tt_scores"
REQUESTS = "tt_requests"
BUDGETS = "tt_budgets"
KEYS = "tt_keys"
SNAPSHOTS = "tt_snapshots"

#: The durable consumer of ``TT_RAW``, which all ingest processes share.
INGEST = "ingest"
#: The durable consumer of ``TT_ALERTS``, which all alerters share.
DELIVERY = "delivery"
#: The durable consumer of a target's stream, which all ingest processes share.
FORWARDER = "forwarder"
#: The maximum length of a project's name in a subject, after escaping, characters.
MAX_PROJECT = 400
QUERY_METRICS = "tokentrace.query.metrics"
QUERY_ALERTS = "tokentrace.query.alerts"
#: Every process answers on the subject of each service that it runs.
QUERY_ALIVE = "tokentrace.query.alive"
ALL_SPANS = "tokentrace.spans.>"
#: How the subject of deletions ends.
DELETED = ".deleted"
ALL_TOMBSTONES = f"tokentrace.spans.*{DELETED}"
ALL_ALERTS = "tokentrace.alerts.>"
ALL_DELIVERIES = "tokentrace.deliveries.>"
ALL_REJECTED = "tokentrace.rejected.>"

DEFAULT_PROJECT = "default"
#: How long dead letters are kept, nanoseconds.
REJECTED_AGE_NS = 7 * DAY
#: How long the events of rules and their deliveries are kept, nanoseconds.
ALERTS_AGE_NS = 30 * DAY
#: How long a span stays open, nanoseconds; the start of one that has not ended by then is forgotten.
OPEN_SPANS_AGE_NS = DAY
MIB = 1024 * 1024

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = re.compile(r"=([0-9A-F]{2})")


def escape(token: str) -> str:
    """Return *token* as one token of a subject: bytes outside [A-Za-z0-9_-] become ``=XX``, "" becomes ``=``."""
    if _PLAIN.fullmatch(token):
        return token
    if not token:
        return "="
    return "".join(chr(b) if _PLAIN.fullmatch(chr(b)) and b < 128 else f"={b:02X}" for b in token.encode())


def unescape(token: str) -> str:
    """Return the text that ``escape`` turned into *token*."""
    if token == "=":
        return ""
    data = bytearray()
    at = 0
    for match in _ESCAPED.finditer(token):
        data += token[at : match.start()].encode()
        data.append(int(match[1], 16))
        at = match.end()
    data += token[at:].encode()
    return data.decode(errors="replace")


def raw(project: str, shard: int) -> str:
    """Return the raw subject on which a reporter publishes batches; ingest chooses the shard of a batch anew."""
    return f"tokentrace.raw.{escape(project)}.{shard}"


def spans(project: str, shard: int) -> str:
    """Return the subject of the log on which ingest publishes the batches of *shard*."""
    return f"tokentrace.spans.{escape(project)}.{shard}"


def shard_spans(shard: int) -> str:
    """Return the pattern that a reader of one shard follows; it matches every project."""
    return f"tokentrace.spans.*.{shard}"


def tombstones(project: str) -> str:
    """Return the subject of deletions: in the log but on no shard, so that they can be read without the spans."""
    return f"tokentrace.spans.{escape(project)}{DELETED}"


def open_span_key(span_id: str) -> str:
    """Return the key of a span in ``tt_open_spans``: a hash, because ids may contain characters that keys may not."""
    return _digest(span_id)


def place_key(span_id: str) -> str:
    """Return the key, in ``tt_open_spans``, of the trace and session of a span that is not open."""
    return f"place.{_digest(span_id)}"


def budget_key(project: str, name: str, period: str = "") -> str:
    """Return the key, in ``tt_budgets``, of a shared budget; *period* is the start of its period, "" = it has none."""
    return ".".join([escape(project), escape(name), *([period] if period else [])])


def rejected(project: str) -> str:
    """Return the subject of dead letters."""
    return f"tokentrace.rejected.{escape(project)}"


def refused(project: str, batch_id: str) -> str:
    """
    Return the subject on which a reporter is told which of its spans ingest refused; nothing stores these messages.

    Args:
        batch_id: The id of the reporter's batches, of which only the last part stands in the subject.
    """
    return f"tokentrace.refused.{escape(project)}.{escape(batch_id.rpartition('.')[2])}"


def alerts(project: str, rule: str) -> str:
    """Return the subject of the events of *rule*."""
    return f"tokentrace.alerts.{escape(project)}.{escape(rule)}"


def deliveries(project: str, rule: str) -> str:
    """Return the subject of the delivery records of *rule*."""
    return f"tokentrace.deliveries.{escape(project)}.{escape(rule)}"


def forward(target: str, signal: str) -> str:
    """Return the subject of the requests of OTLP that wait to be sent to *target*; *signal* is its last token."""
    return f"tokentrace.forward.{escape(target)}.{escape(signal)}"


def parse_signal(subject: str) -> str:
    """Return the signal of a subject that ``forward`` built."""
    return unescape(subject.rpartition(".")[2])


def forward_stream(target: str) -> str:
    """Return the name of the stream that holds the requests for *target*."""
    return f"{FORWARD}_{target}"


def alive(service: str) -> str:
    """Return the subject on which every process of *service* says that it is alive."""
    return f"{QUERY_ALIVE}.{escape(service)}"


def parse_project(subject: str) -> str:
    """
    Return the project in a subject of tokentrace, such as a raw, spans, rejected or alerts subject.

    Raises:
        Rejected: *subject* is not of the form ``tokentrace.<what>.<project>…``.
    """
    parts = subject.split(".")
    if len(parts) < 3 or parts[0] != "tokentrace":
        raise Rejected(f"subject: {quoted(subject)} is not tokentrace.<what>.<project>…")
    return unescape(parts[2])


def parse_shard(subject: str) -> int:
    """
    Return the shard of a raw or spans subject.

    Raises:
        Rejected: *subject* does not end with a number.
    """
    last = subject.rpartition(".")[2]
    if not (last.isascii() and last.isdigit()):
        raise Rejected(f"subject: {quoted(subject)} does not end with a shard number")
    return int(last)


def shard_of_spans(subject: str) -> int | None:
    """Return the shard of a subject of the log; None for the subject of deletions, which belongs to no shard."""
    return None if subject.endswith(DELETED) else parse_shard(subject)


class ForwardQueue(NamedTuple):
    """The limits of the stream of a target; *target* is its name, of letters, digits and "-"."""

    target: str
    max_bytes: int
    max_age_ns: int


def streams(
    *,
    raw_bytes: int = 1024 * MIB,
    spans_bytes: int = 8192 * MIB,
    spans_age_ns: int = 7 * DAY,
    duplicate_window_ns: int = 2 * MINUTE,
    forward: Sequence[ForwardQueue] = (),
) -> list[Stream]:
    """
    Return the settings of every stream and bucket of tokentrace.

    Args:
        forward: The targets to which ingest sends on what it accepted; each has a stream.
    """
    window = duplicate_window_ns
    return [
        Stream(
            name=RAW, subjects=("tokentrace.raw.>",), work_queue=True, max_bytes=raw_bytes, duplicate_window_ns=window
        ),
        Stream(
            name=SPANS,
            subjects=(ALL_SPANS,),
            max_bytes=spans_bytes,
            max_age_ns=spans_age_ns,
            duplicate_window_ns=window,
        ),
        Stream(
            name=REJECTED,
            subjects=(ALL_REJECTED,),
            max_bytes=256 * MIB,
            max_age_ns=REJECTED_AGE_NS,
            duplicate_window_ns=window,
            durable=False,
        ),
        Stream(
            name=ALERTS,
            subjects=(ALL_ALERTS,),
            max_bytes=256 * MIB,
            max_age_ns=ALERTS_AGE_NS,
            duplicate_window_ns=window,
        ),
        Stream(
            name=DELIVERIES,
            subjects=(ALL_DELIVERIES,),
            max_bytes=64 * MIB,
            max_age_ns=ALERTS_AGE_NS,
            duplicate_window_ns=window,
            durable=False,
        ),
        bucket(META),
        bucket(RULES),
        bucket(OPEN_SPANS, max_bytes=256 * MIB, max_age_ns=OPEN_SPANS_AGE_NS, evicts=True),
        bucket(SCORES, max_bytes=256 * MIB, max_age_ns=8 * DAY),
        bucket(REQUESTS, max_bytes=256 * MIB, max_age_ns=DAY, evicts=True),
        bucket(BUDGETS),
        bucket(KEYS, max_bytes=16 * MIB),
        Stream(
            name=f"OBJ_{SNAPSHOTS}",
            subjects=(f"$O.{SNAPSHOTS}.C.>", f"$O.{SNAPSHOTS}.M.>"),
            max_bytes=2048 * MIB,
            durable=False,
            kind="objects",
        ),
        *(
            Stream(
                name=forward_stream(queue.target),
                subjects=(f"tokentrace.forward.{escape(queue.target)}.*",),
                work_queue=True,
                max_bytes=queue.max_bytes,
                max_age_ns=queue.max_age_ns,
                duplicate_window_ns=window,
                evicts=True,
            )
            for queue in forward
        ),
    ]


def bucket(name: str, *, max_bytes: int = 64 * MIB, max_age_ns: int = 0, evicts: bool = False) -> Stream:
    """Return the settings of the stream that holds the key-value bucket *name*."""
    return Stream(
        name=f"KV_{name}",
        subjects=(f"$KV.{name}.>",),
        max_bytes=max_bytes,
        max_age_ns=max_age_ns,
        per_subject=1,
        kind="kv",
        evicts=evicts,
    )


def _digest(span_id: str) -> str:
    import hashlib  # here, because it is slow to load and no reporter needs it for its subjects

    return hashlib.sha256(span_id.encode()).hexdigest()
