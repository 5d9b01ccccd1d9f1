"""Creating and changing streams, within the space that the broker has."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tokentrace.bus.contract import MIN_STREAM_BYTES, Stream
from tokentrace.bus.jetstream.codec import stream_config
from tokentrace.bus.jetstream.errors import NO_STREAM, ApiError
from tokentrace.errors import Unavailable

log = logging.getLogger("tokentrace.bus")

#: Sends one call of JetStream's API: (call, body) -> answer; raises ApiError if it is refused.
Api = Callable[[str, Any], Awaitable[dict[str, Any]]]


async def ensure(api: Api, stream: Stream, *, resize: bool) -> str:
    """
    Create or change *stream*, as ``Bus.ensure``.

    Raises:
        ApiError: JetStream refused a call for another reason than lack of space.
        Unavailable: The broker does not answer, or has no space for the smallest stream.
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
                raise Unavailable(f"stream {config['name']} cannot be created: {exc} ({exc.code})") from exc
            config["max_bytes"] = max(config["max_bytes"] // 2, MIN_STREAM_BYTES)
    created = config["max_bytes"]
    return "" if created == wanted else f"created with {created >> 20} MiB instead of {wanted >> 20}"


async def _update(api: Api, config: dict[str, Any], info: dict[str, Any], *, resize: bool) -> str:
    current, held = info["config"], info["state"]["bytes"]
    size = current["max_bytes"]
    # The operator decides on the number of replicas.
    wanted = {**current, **config, "num_replicas": current.get("num_replicas", 1)}
    # The persist mode cannot be changed, and JetStream does not report its default.
    wanted.pop("persist_mode", None)
    if current.get("persist_mode", "default") != "default":
        wanted["persist_mode"] = current["persist_mode"]
    # A stream that was cut to fit a small disk stays cut, unless the caller knows that there is space.
    if 0 < size < wanted["max_bytes"] and held > 0 and not resize:
        wanted["max_bytes"] = size
    # Never cut a stream below what it holds: that would discard messages that a reader has not read.
    if wanted["max_bytes"] < held:
        wanted["max_bytes"] = size
    # A broker with too little space refuses every update that changes the size, so try again with the old size.
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
    return f"left unchanged, {size >> 20} MiB"
