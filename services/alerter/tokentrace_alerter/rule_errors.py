"""The errors of requests about rules, and the HTTP status of each."""

from __future__ import annotations

from tokentrace.errors import ConfigError, Conflict, Rejected, TokentraceError, quoted


def unknown(name: str) -> Rejected:
    """Return the error for a rule that does not exist."""
    return Rejected(f"no rule is called {quoted(name)}", status=404)


def exists(name: str) -> Conflict:
    """Return the error for a rule that exists already."""
    return Conflict(f"a rule is called {quoted(name)} already")


def status_of(error: TokentraceError) -> int:
    """Return the HTTP status for *error*."""
    if isinstance(error, Rejected):
        return error.status
    if isinstance(error, ConfigError):
        return 400
    return 409 if isinstance(error, Conflict) else 503
