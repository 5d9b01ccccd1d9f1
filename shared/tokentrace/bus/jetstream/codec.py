"""JetStream's JSON and headers, and answers too long for one message: pure."""

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


def split(payload: bytes, room: int) -> list[tuple[dict[str, str] | None, bytes]]:
    if len(payload) <= room:
        return [(None, payload)]
    name = uuid.uuid4().hex
    count = -(-len(payload) // room)
    return [({_PART: f"{name} {i} {count}"}, payload[i * room : (i + 1) * room]) for i in range(count)]


def join_parts(msg: Msg, parts: dict[str, dict[int, bytes]]) -> bytes | None:
    """
    The whole answer once its last part is there.

    Raises:
        ValueError: Its header is none of ours.
    """
    label = (msg.headers or {}).get(_PART)
    if label is None:
        return bytes(msg.data)
    name, index, count = label.split()
    have = parts.setdefault(name, {})
    have[int(index)] = msg.data
    if len(have) < int(count):
        return None
    return b"".join(have[i] for i in sorted(parts.pop(name)))


def parse_headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines if line)}


def decode_answer(payload: bytes) -> dict[str, Any]:
    """
    The broker's answer: that of an API call names its type, an acknowledgement its stream and sequence.

    Raises:
        Rejected: Written by somebody else.
    """
    with reading("answer"):
        answer = msgspec.json.decode(payload, type=dict[str, Any])
        error = answer.get("error")
        if isinstance(error, dict) or isinstance(answer.get("type"), str):
            return answer
        if isinstance(answer.get("stream"), str) and type(answer.get("seq")) is int:
            return answer
        raise ValueError("neither an acknowledgement nor an answer of JetStream")
