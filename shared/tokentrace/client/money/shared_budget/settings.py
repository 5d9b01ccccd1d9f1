"""The arguments of a shared budget, checked."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypedDict, get_args

from tokentrace.bus.access import Access
from tokentrace.bus.subjects import budget_key
from tokentrace.client.money.amounts import Usd, limit_of
from tokentrace.client.money.shared_budget.ledger import OnLost, Rules
from tokentrace.client.reporter.settings import read_settings
from tokentrace.errors import ConfigError, quoted
from tokentrace.units import SECOND

IfUnavailable = Literal["allow", "refuse"]
Period = Literal["", "hour", "day", "month"]
#: How the key of a period names its start, in UTC.
_STARTS: dict[Period, str] = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
#: How long the key of a period is kept.
_KEPT: dict[Period, timedelta] = {
    "hour": timedelta(days=3),
    "day": timedelta(days=62),
    "month": timedelta(days=1096),
}
_MIN_LEASE_S, _MAX_LEASE_S = 10, 86_400
_MAX_NAME = 128


class AccessFields(TypedDict, total=False):
    """What admits a program to a NATS server, with the names and meanings of the arguments of ``Reporter``."""

    token: str
    user: str
    password: str
    creds: str | os.PathLike[str]
    nkey: str | os.PathLike[str]
    ca: str | os.PathLike[str]
    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    inbox_prefix: str


class Server(NamedTuple):
    """
    Where a budget is kept.

    Attributes:
        url: One or several server URLs, separated by commas.
        access: What admits this program.
        inbox_prefix: The beginning of the subjects on which it receives replies.
    """

    url: str
    access: Access
    inbox_prefix: str


class Settings(NamedTuple):
    """
    The arguments of ``SharedBudget``, as its docstring describes them.

    Attributes:
        url, project: None = the environment variable ``TOKENTRACE_URL`` or ``TOKENTRACE_PROJECT``.
    """

    name: str
    max_usd: Usd
    url: str | None
    if_unavailable: IfUnavailable
    period: Period
    lease_s: float
    on_lost: OnLost
    project: str | None
    access: AccessFields

    def check(self) -> tuple[Server, str, Rules]:
        """
        Return the server, the project and the rules.

        Raises:
            ConfigError: An argument cannot be used; the text names it.
        """
        where = f"shared budget {quoted(self.name)}"
        if not 0 < len(self.name) <= _MAX_NAME:
            raise ConfigError(f"{where}: the name has not 1 to {_MAX_NAME} characters")
        limit = limit_of(self.max_usd, f"{where}: max_usd")
        try:
            access = {name: self.access.get(name) for name in AccessFields.__annotations__}
            to = read_settings(url=self.url, project=self.project, **access).destination  # type: ignore[arg-type]  # mypy sees object
        except ConfigError as exc:
            raise ConfigError(f"{where}: {str(exc).removeprefix('reporter: ')}") from exc
        if not to.url:
            raise ConfigError(f"{where}: neither url nor TOKENTRACE_URL is set")
        if not to.is_nats:
            raise ConfigError(f"{where}: url: it must start with nats:// or tls://")
        for what, value, words in (
            ("if_unavailable", self.if_unavailable, get_args(IfUnavailable)),
            ("period", self.period, get_args(Period)),
            ("on_lost", self.on_lost, get_args(OnLost)),
        ):
            if value not in words:
                raise ConfigError(f"{where}: {what}: {quoted(value)} is none of {', '.join(map(repr, words))}")
        if not _MIN_LEASE_S <= self.lease_s <= _MAX_LEASE_S:
            raise ConfigError(f"{where}: lease_s: {self.lease_s} is not from {_MIN_LEASE_S} to {_MAX_LEASE_S}")
        patched = sys.modules.get("gevent.monkey")
        if patched is not None and patched.is_module_patched("threading"):
            # An event loop in a greenlet would stop all others.
            raise ConfigError(f"{where}: gevent has replaced the threads of this process, which shared budgets need")
        return (
            Server(to.url, to.access, to.inbox_prefix),
            to.project,
            Rules(limit, round(self.lease_s * SECOND), self.on_lost),
        )

    def key(self, project: str, now: datetime) -> str:
        """Return the key of the period that contains *now*, a time in UTC."""
        start = now.strftime(_STARTS[self.period]) if self.period else ""
        return budget_key(project, self.name, start)

    def old_key(self, project: str, now: datetime) -> str:
        """Return the key of a period so long before *now* that it is not needed; "" = the budget has no periods."""
        return self.key(project, now - _KEPT[self.period]) if self.period else ""
