"""Making streams, and changing those that are there, with as much room as the broker has."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tokentrace.bus.contract import MIN_STREAM_BYTES, Stream
from tokentrace.bus.jetstream.codec import stream_config
from tokentrace.bus.jetstream.errors import NO_STREAM, ApiError
from tokentrace.errors import Unavailable

log = logging.getLogger("tokentrace.bus")

#: One request of JetStream's API: call, body -> answer; ApiError when it is refused.
Api = Callable[[str, Any], Awaitable[dict[str, Any]]]


async def ensure(api: Api, stream: Stream, *, resize: bool) -> str:
    """
    As ``Bus.ensure``.

    Raises:
        ApiError: Refused for another reason than want of room.
    """
    config = stream_config(stream)
    try:
        info = await api(f"STREAM.INFO.{stream.name}", {})
    except ApiError as exc:
        if exc.code != NO_STREAM:
            raise
        return await _create(api, config)
    return await _update(api, config, info, resize=resize)


async def _create(api: Api, config: dict[str, Any]) -> str:
    wanted = config["max_bytes"]
    while True:
        try:
            await api(f"STREAM.CREATE.{config['name']}", config)
            break
        except ApiError as exc:
            if not exc.lacks_space:
                raise
            if config["max_bytes"] <= MIN_STREAM_BYTES:
                raise Unavailable(f"stream {config['name']} cannot be made: {exc} ({exc.code})") from exc
            config["max_bytes"] = max(config["max_bytes"] // 2, MIN_STREAM_BYTES)
    made = config["max_bytes"]
    return "" if made == wanted else f"made with {made >> 20} MiB instead of {wanted >> 20}"


async def _update(api: Api, config: dict[str, Any], info: dict[str, Any], *, resize: bool) -> str:
    current, held = info["config"], info["state"]["bytes"]
    size = current["max_bytes"]
    # How often a stream is replicated is the operator's decision.
    wanted = {**current, **config, "num_replicas": current.get("num_replicas", 1)}
    # It cannot be changed, and its default is not said.
    wanted.pop("persist_mode", None)
    if current.get("persist_mode", "default") != "default":
        wanted["persist_mode"] = current["persist_mode"]
    # A stream cut to a small disk stays cut, unless it is known that there is room.
    if 0 < size < wanted["max_bytes"] and held > 0 and not resize:
        wanted["max_bytes"] = size
    # Nor is a stream cut below what it holds: that would throw away what somebody has not read.
    if wanted["max_bytes"] < held:
        wanted["max_bytes"] = size
    # A broker with too little room refuses every change together with a new size; without one some may pass.
    for max_bytes in (wanted["max_bytes"], size):
        wanted["max_bytes"] = max_bytes
        if all(current.get(key) == value for key, value in wanted.items()):
            return ""
        try:
            await api(f"STREAM.UPDATE.{config['name']}", wanted)
        except ApiError as exc:
            if not exc.lacks_space:
                raise
            log.debug("stream %s: %s", config["name"], exc)
        else:
            return ""
    return f"left as it is, {size >> 20} MiB"
