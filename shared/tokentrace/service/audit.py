"""
The audit log: one line for each request that changes something, with who asked and what the answer was.

The lines are those of the logger ``tokentrace.audit``, in the format of all logs, at the level info. Refused requests
are logged too. Input is not: spans, scores and messages say themselves where they come from.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.types import Scope, Send

from tokentrace.errors import shorten

log = structlog.stdlib.get_logger("tokentrace.audit")

#: Key of the scope of a request: the id of its key, "token" for the token of the configuration.
KEY_ID = "tokentrace.key"
_MOST_SHOWN = 300


def audited(scope: Scope, send: Send) -> Send:
    """Return *send*, which logs the status of the answer to the request of *scope*."""

    async def send_and_log(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            query = scope.get("query_string", b"").decode("latin-1")
            target = f"{scope['path']}?{query}" if query else scope["path"]
            log.info(
                "%s %s: %d",
                scope["method"],
                shorten(target, _MOST_SHOWN),
                message["status"],
                key=scope.get(KEY_ID, ""),
                address=str((scope.get("client") or ("", 0))[0]),
            )
        await send(message)

    return send_and_log
