"""
The exceptions that tokentrace raises on purpose.

    TokentraceError
    ├── Rejected      the input is invalid and fails every time: counted, dead-lettered, HTTP 4xx
    ├── Unavailable   a broker, service or disk does not work now: retried, HTTP 503 with Retry-After
    ├── Conflict      another writer was first: read again and decide again, HTTP 409
    └── ConfigError   the configuration is invalid: the program does not start, exit code 2
"""

import re

_QUOTED = re.compile(r"""(['"`])(.{40}).+\1""", re.DOTALL)


class TokentraceError(Exception):
    """Base class of the exceptions of tokentrace."""


class Rejected(TokentraceError):
    """
    The input is invalid; sending it again fails again.

    Args:
        message: What is invalid, where and why; quotes no value longer than 40 characters.
        status: The HTTP status of the answer, 400-499.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(TokentraceError):
    """
    A broker, service or disk does not work now; another try may succeed.

    Args:
        message: What does not work.
        retry_after_s: When to try again, seconds.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(TokentraceError):
    """A compare-and-set lost: the stored value is no longer the expected one."""


class ConfigError(TokentraceError):
    """The configuration is invalid; the message says where: the key, flag, variable, file or URL."""


def shorten(value: object, limit: int = 40) -> str:
    """Return *value* in printable ASCII for an error text; over *limit* characters, it is cut and ends with "…"."""
    text = ascii(value) if not isinstance(value, str) else value.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quoted(value: object, limit: int = 40) -> str:
    """Return ``shorten`` of *value* in quotes."""
    return f"'{shorten(value, limit)}'"


def cut_quoted(message: str) -> str:
    """Return *message* with at most 40 characters of each quoted value, because a value may contain a secret."""
    return _QUOTED.sub(r"\1\2…\1", message)
