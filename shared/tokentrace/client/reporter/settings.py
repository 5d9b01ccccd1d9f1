"""What a reporter is told: its arguments, and the environment variables that stand for those that are not given."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from tokentrace.bus.access import Access, check_access
from tokentrace.bus.subjects import DEFAULT_PROJECT, MAX_PROJECT, escape
from tokentrace.client.reporter.destination import Destination, check_url
from tokentrace.errors import ConfigError
from tokentrace.records import MAX_NAME

#: Argument of ``Reporter`` -> the variable that is read if the argument is None. An empty variable is not set, except
#: for ``url``, where it switches reporting off.
VARIABLES = {
    "url": "TOKENTRACE_URL",
    "source": "TOKENTRACE_SOURCE",
    "project": "TOKENTRACE_PROJECT",
    "token": "TOKENTRACE_TOKEN",
    "user": "TOKENTRACE_USER",
    "password": "TOKENTRACE_PASSWORD",
    "creds": "TOKENTRACE_CREDS",
    "nkey": "TOKENTRACE_NKEY",
    "ca": "TOKENTRACE_CA",
    "cert": "TOKENTRACE_CERT",
    "key": "TOKENTRACE_KEY",
    "inbox_prefix": "TOKENTRACE_INBOX_PREFIX",
}
_DEFAULT_INBOX = "_INBOX"


class Settings(NamedTuple):
    """
    The settings of a reporter.

    Attributes:
        source: The name of the program, not yet redacted.
        destination: Where it sends; without a URL, spans are ignored.
        says_nothing: True = neither the argument nor the variable names a URL.
    """

    source: str
    destination: Destination
    says_nothing: bool


def read_settings(
    *,
    source: str | None = None,
    url: str | None = None,
    project: str | None = None,
    shards: int = 1,
    inbox_prefix: str | None = None,
    **access: str | os.PathLike[str] | None,
) -> Settings:
    """
    Return the settings for the arguments of a ``Reporter``, and for the environment.

    Args:
        access: The fields of ``Access``.

    Raises:
        ConfigError: A value cannot be used; the text names it and not its content.
    """
    given = {"source": source, "project": project, "inbox_prefix": inbox_prefix, **access}
    read = {name: _read(name, value) for name, value in given.items()}
    named_url = os.environ.get(VARIABLES["url"]) if url is None else url
    name = read.pop("source") or program_name()
    named_project = read.pop("project") or DEFAULT_PROJECT
    inbox = read.pop("inbox_prefix") or _DEFAULT_INBOX
    if len(escape(named_project)) > MAX_PROJECT:
        raise ConfigError(f"reporter: the project's name is longer than {MAX_PROJECT} characters")
    if not inbox.isascii() or not inbox.isprintable() or any(letter in " *>" for letter in inbox):
        raise ConfigError("reporter: inbox_prefix is no beginning of a NATS subject")
    if not read["token"].isascii() or not read["token"].isprintable():
        raise ConfigError("reporter: the token contains characters that are not printable ASCII")
    destination = Destination(
        named_url or "", f"reporter {name[:MAX_NAME]}", named_project, max(shards, 1), Access(**read), inbox
    )
    try:
        check_access(destination.access)
    except ConfigError as exc:
        raise ConfigError(f"reporter: {exc}") from exc
    if destination.url:
        check_url(destination)
    return Settings(name[:MAX_NAME], destination, named_url is None)


def program_name() -> str:
    """Return the name of the file that was started, without its ending; of a package, the name of the package."""
    path = Path(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name.strip("-") or "python"


def _read(name: str, value: str | os.PathLike[str] | None) -> str:
    if value is not None and name in ("source", "project", "password"):
        return os.fspath(value)
    text = os.environ.get(VARIABLES[name], "") if value is None else os.fspath(value)
    # A token from a file often ends in a newline.
    return text.strip()
