"""With ``redaction.hash_ids``, ids in requests are hashed as ingest hashes them, so that an id finds its records."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tokentrace.redact import Redactor
from tokentrace_api.parameters import ATTRIBUTE_PREFIX, COMPARED_PREFIX, EXCLUDED_PREFIX

#: Query parameters and names in paths whose value is a user.
_USER = frozenset({"user", "user_id", "userId"})


def hashing(routes: Sequence[BaseRoute], redactor: Redactor) -> list[BaseRoute]:
    """Return *routes*, which hash the ids in their requests if *redactor* hashes ids."""
    if redactor.hashes("user_id"):
        for route in routes:
            if isinstance(route, Route):
                route.app = _HashedIds(route.app, redactor)
    return list(routes)


class _HashedIds:
    """
    The application of a route, called with hashed ids in the path and the query.

    Args:
        redactor: Has the key of the hash. A value that is a hash already stays as it is.
    """

    def __init__(self, app: ASGIApp, redactor: Redactor) -> None:
        self._app, self._redactor = app, redactor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        names = {name: self._value(name, value) for name, value in scope["path_params"].items()}
        items = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        hashed = [(name, self._value(name, value)) for name, value in items]
        changes = {} if hashed == items else {"query_string": urlencode(hashed).encode()}
        await self._app({**scope, **changes, "path_params": names}, receive, send)

    def _value(self, name: str, value: str) -> str:
        name = name.removeprefix(EXCLUDED_PREFIX).removeprefix(COMPARED_PREFIX)
        is_attribute = name.startswith(ATTRIBUTE_PREFIX)
        if name in _USER or (is_attribute and self._redactor.hashes(name.removeprefix(ATTRIBUTE_PREFIX))):
            return self._redactor.user_id(value)
        return value
