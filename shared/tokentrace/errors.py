"""
Everything tokentrace raises on purpose.

    TokentraceError
    ├── Rejected      the input is wrong: the same input fails every time; counted, dead-lettered, HTTP 4xx
    ├── Unavailable   the world is away: worth another try; retried in place, HTTP 503 + Retry-After
    ├── Conflict      somebody else wrote first: read again, decide again
    └── ConfigError   the configuration is wrong: the program does not start, exit code 2
"""

import re

_QUOTED = re.compile(r"""(['"`])(.{40}).+\1""", re.DOTALL)


class TokentraceError(Exception):
    """Base of all errors raised here on purpose."""


class Rejected(TokentraceError):
    """
    The input is wrong and stays wrong.

    Args:
        message: What, which and why; never a value longer than 40 characters.
        status: The HTTP status that says the same, 400-499.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(TokentraceError):
    """
    The broker, a worker or a disk cannot answer now.

    Args:
        message: What is away.
        retry_after_s: When another try makes sense, seconds.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(TokentraceError):
    """A compare-and-set lost: what was expected is no longer what is there."""


class ConfigError(TokentraceError):
    """The configuration is wrong; the message names the key."""


def shorten(value: object, limit: int = 40) -> str:
    """*value* as it may stand in an error text: printable, at most *limit* characters."""
    text = ascii(value) if not isinstance(value, str) else value.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut_quoted(message: str) -> str:
    """A decoder's *message* with every quoted value cut to 40 characters: no secret travels in an error."""
    return _QUOTED.sub(r"\1\2…\1", message)
