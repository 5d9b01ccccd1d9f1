"""Encoding and decoding of JetStream's JSON and headers, and of replies that are sent in parts; no I/O."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from nats.aio.msg import Msg

from tokentrace.bad_data import reading
from tokentrace.bus.contract import Stream, StreamState
from tokentrace.units import parse_instant

_PART = "Tokentrace-Part"


def stream_config(stream: Stream) -> dict[str, Any]:
    """Return the settings of *stream* as the configuration that JetStream's API takes."""
    config: dict[str, Any] = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "workqueue" if stream.work_queue else "limits",
        "discard": "new" if stream.refuses else "old",
        "storage": "file",
        "num_replicas": 1,
        "max_bytes": stream.max_bytes,
        "max_age": stream.max_age_ns,
        "max_msgs_per_subject": stream.per_subject,
        "duplicate_window": min(stream.duplicate_window_ns, stream.max_age_ns or stream.duplicate_window_ns),
    }
    if stream.kind != "log":
        config |= {"allow_rollup_hdrs": True, "allow_direct": True}
    if stream.kind == "kv":
        config |= {"deny_delete": True, "allow_msg_ttl": True}
    if not stream.durable:
        config["persist_mode"] = "async"
    return config


def state_of(info: Mapping[str, Any]) -> StreamState:
    """Return the state in *info*, the answer to ``STREAM.INFO``."""
    state = info["state"]
    return StreamState(
        created_ns=parse_instant(info["created"]),
        first_sequence=int(state["first_seq"]),
        last_sequence=int(state["last_seq"]),
        messages=int(state["messages"]),
        bytes=int(state["bytes"]),
        max_bytes=int(info["config"].get("max_bytes", -1)),
        first_time_ns=parse_instant(state["first_ts"]) if state["messages"] else 0,
    )


def split(payload: bytes, part_bytes: int) -> list[tuple[dict[str, str] | None, bytes]]:
    """Cut *payload* into (headers, part), parts of at most *part_bytes*; without headers if one part is enough."""
    if len(payload) <= part_bytes:
        return [(None, payload)]
    name = uuid.uuid4().hex
    count = -(-len(payload) // part_bytes)
    return [({_PART: f"{name} {i} {count}"}, payload[i * part_bytes : (i + 1) * part_bytes]) for i in range(count)]


def join_parts(msg: Msg, parts: dict[str, dict[int, bytes]]) -> bytes | None:
    """
    Return the whole reply if *msg* is all of it or its last missing part, else None.

    Args:
        parts: Name of a reply -> its parts so far, by index; *msg* is added to them.

    Raises:
        ValueError: The part header is not a name and two whole numbers.
    """
    label = (msg.headers or {}).get(_PART)
    if label is None:
        return bytes(msg.data)
    name, index, count = label.split()
    arrived = parts.setdefault(name, {})
    arrived[int(index)] = msg.data
    if len(arrived) < int(count):
        return None
    return b"".join(arrived[i] for i in sorted(parts.pop(name)))


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers in a NATS header block; bytes that are not UTF-8 are replaced by U+FFFD."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines if line)}


def decode_answer(payload: bytes) -> dict[str, Any]:
    """
    Decode an answer of JetStream: to an API call (has ``type`` or ``error``) or to a publish (has ``stream``, ``seq``).

    Raises:
        Rejected: *payload* is not JSON or is neither of these, so another client sent it.
    """
    with reading("answer"):
        answer = msgspec.json.decode(payload, type=dict[str, Any])
        error = answer.get("error")
        if isinstance(error, dict) or isinstance(answer.get("type"), str):
            return answer
        if isinstance(answer.get("stream"), str) and type(answer.get("seq")) is int:
            return answer
        raise ValueError("neither an acknowledgement nor an answer of JetStream")
