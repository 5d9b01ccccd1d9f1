"""
The audit log: one line for each request that changes something, with who asked and what the answer was.

The lines are those of the logger ``tokentrace.audit``, in the format of all logs, at the level info. Refused requests
are logged too. Input is not: spans, scores and messages say themselves where they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.types import Scope, Send

from tokentrace.errors import shorten

log = structlog.stdlib.get_logger("tokentrace.audit")

#: Key of the scope of a request: the id of its key, "token" for the token of the configuration.
KEY_ID = "tokentrace.key"
_MOST_SHOWN = 300
#: Paths that are followed by the id of what is deleted.
_DELETED = ("/api/users/", "/traces/")


def audited(scope: Scope, send: Send) -> Send:
    """Return *send*, which logs the status of the answer to the request of *scope*."""

    async def send_and_log(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            query = scope.get("query_string", b"").decode("latin-1")
            log.info(
                "%s %s: %d",
                scope["method"],
                shorten(_shown(scope["path"]) + (f"?{query}" if query else ""), _MOST_SHOWN),
                message["status"],
                key=scope.get(KEY_ID, ""),
                address=str((scope.get("client") or ("", 0))[0]),
            )
        await send(message)

    return send_and_log


def _shown(path: str) -> str:
    """
    Return *path* as it is logged: with a hash in place of a user or a trace, because those may be deleted.

    Who knows the id can find the line: it has the first 12 digits of the SHA-256 of the id.
    """
    for before in _DELETED:
        if path.startswith(before):
            return f"{before}sha256:{hashlib.sha256(path.removeprefix(before).encode()).hexdigest()[:12]}"
    return path
