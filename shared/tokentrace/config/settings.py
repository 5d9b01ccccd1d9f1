"""
``tokentrace.yml``: one schema for all programs; each validates the whole file and uses its part.

Order: defaults < file < environment < flags. Unknown keys are errors, and an error names the key.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import yaml

from tokentrace.config.alerts import AlertRule, tidy_alerts
from tokentrace.dialect import explain
from tokentrace.errors import ConfigError, Rejected, shorten
from tokentrace.units import parse_duration

DEFAULT_FILE = "tokentrace.yml"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:\?|:-)([^}]*))?\}")

if TYPE_CHECKING:
    from tokentrace.pricing import Rate
    from tokentrace.redact import Redactor


class Duration(int):
    """Nanoseconds; written as ``30s``, ``2h30m`` or ``7d``."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class FileTransport(_Section, frozen=True, kw_only=True):
    """Spans as JSON lines in a file."""

    path: str = "./traces.jsonl"
    rotate: bool = False
    max_size_mb: int = 100
    max_files: int = 7
    sync: bool = False
    buffer_size_kb: int = 256


class HttpTransport(_Section, frozen=True, kw_only=True):
    """Spans posted to an endpoint."""

    endpoint: str
    batch_size: int = 100
    flush_interval: Duration = Duration(2_000_000_000)
    timeout: Duration = Duration(10_000_000_000)
    max_retries: int = 3
    retry_backoff: Duration = Duration(500_000_000)
    compression: Literal["none", "gzip"] = "none"
    max_queue_size: int = 10_000
    headers: dict[str, str] = {}


class OneTransport(_Section, frozen=True, kw_only=True):
    """A child of a multi transport."""

    type: Literal["file", "http", "stdout", "noop"] = "stdout"
    file: FileTransport | None = None
    http: HttpTransport | None = None


class Transport(_Section, frozen=True, kw_only=True):
    """Where an application's own tracer sends its spans."""

    type: Literal["file", "http", "stdout", "multi", "noop"] = "stdout"
    file: FileTransport | None = None
    http: HttpTransport | None = None
    multi: list[OneTransport] = []


class HttpServer(_Section, frozen=True, kw_only=True):
    """The HTTP API: paths, limits, token."""

    enabled: bool = False
    addr: str = ":9090"
    metrics_path: str = "/metrics"
    prometheus_path: str = "/metrics/prometheus"
    ingest_path: str = "/spans"
    health_path: str = "/health"
    read_timeout: Duration = Duration(5_000_000_000)
    write_timeout: Duration = Duration(10_000_000_000)
    auth_token: str = ""
    ingest_url: str = ""
    max_batch_size: int = 1000
    max_body_bytes: int = 8 * 1024 * 1024


class Retention(_Section, frozen=True, kw_only=True):
    """How long spans are kept: the store's days, and rotated files of a file transport."""

    memory_window: Duration = Duration(7 * 86_400_000_000_000)
    disk_days: int = 30
    max_spans: int = 0
    max_bytes: int = 16 * 1024 * 1024 * 1024


class AlertDelivery(_Section, frozen=True, kw_only=True):
    """
    Where the events of rules may be delivered.

    Attributes:
        allow_hosts: Names, addresses and CIDR ranges, each with ``:port`` if wanted; None = every host, [] = none.
    """

    allow_hosts: list[str] | None = None


class CustomMetric(_Section, frozen=True, kw_only=True):
    """A metric of one's own (SPEC C.3)."""

    name: str
    type: Literal["sum", "count", "avg", "p95"]
    field: str = ""
    filter_key: str = ""
    filter_val: str | None = None


class ModelRate(_Section, frozen=True, kw_only=True):
    """USD per million tokens."""

    prompt_per_1m: Decimal
    completion_per_1m: Decimal
    cache_read_per_1m: Decimal | None = None


class Pricing(_Section, frozen=True, kw_only=True):
    """What overrides the bundled price tables."""

    models: dict[str, ModelRate] = {}
    trust_zero: list[str] = []

    @property
    def rates(self) -> dict[str, Rate]:
        """The overrides as ``pricing.Pricer`` takes them."""
        from tokentrace.pricing import Rate

        return {
            model: Rate(rate.prompt_per_1m, rate.completion_per_1m, rate.cache_read_per_1m)
            for model, rate in self.models.items()
        }


class Nats(_Section, frozen=True, kw_only=True):
    """The broker, and the sizes of its streams."""

    url: str = "nats://127.0.0.1:4222"
    project: str = "default"
    shards: int = 1
    own_shards: str = ""
    raw_max_bytes: int = 1024 * 1024 * 1024
    spans_max_bytes: int = 8 * 1024 * 1024 * 1024
    spans_max_age: Duration = Duration(7 * 86_400_000_000_000)
    duplicate_window: Duration = Duration(120_000_000_000)


class Storage(_Section, frozen=True, kw_only=True):
    """Where files are kept, and what they may cost."""

    dir: str = "./tokentrace-data"
    memory_limit_mb: int = 256
    snapshot_interval: Duration = Duration(60_000_000_000)


class Redaction(_Section, frozen=True, kw_only=True):
    """What is taken out of every record before it is stored."""

    mode: Literal["redact", "metadata_only", "off"] = "redact"
    keys: list[str] = []
    replace: bool = False
    store_raw_content: bool = False

    @property
    def redactor(self) -> Redactor:
        """What does all this."""
        from tokentrace.redact import Redactor

        return Redactor(self.keys, replace_keys=self.replace, mode=self.mode, keep_raw=self.store_raw_content)


class Mist(_Section, frozen=True, kw_only=True):
    """The MIST way in."""

    require_auth: bool = False
    accept_eval_result: bool = False


class Settings(_Section, frozen=True, kw_only=True):
    """Everything ``tokentrace.yml`` may say (SPEC F.1 and ours)."""

    transport: Transport = Transport()
    http_server: HttpServer = HttpServer()
    retention: Retention = Retention()
    alerts: list[AlertRule] = []
    alert_cooldown: str | None = None
    alert_delivery: AlertDelivery = AlertDelivery()
    custom_metrics: list[CustomMetric] = []
    pricing: Pricing = Pricing()
    nats: Nats = Nats()
    storage: Storage = Storage()
    redaction: Redaction = Redaction()
    mist: Mist = Mist()

    @property
    def customs(self) -> list[dict[str, Any]]:
        """``custom_metrics`` as plain data."""
        return [msgspec.structs.asdict(metric) for metric in self.custom_metrics]

    @property
    def open_paths(self) -> tuple[str, ...]:
        """Paths that need no bearer token: health checks, and ``/mist``, whose Go clients cannot send one."""
        return ("/healthz", "/readyz") if self.mist.require_auth else ("/healthz", "/readyz", "/mist")


#: Environment variable -> path of the setting it overrides.
ENVIRONMENT = {
    "TOKENTRACE_NATS_URL": "nats.url",
    "TOKENTRACE_PROJECT": "nats.project",
    "TOKENTRACE_SHARD_COUNT": "nats.shards",
    "TOKENTRACE_SHARDS": "nats.own_shards",
    "TOKENTRACE_DUPLICATE_WINDOW": "nats.duplicate_window",
    "TOKENTRACE_SPANS_MAX_BYTES": "nats.spans_max_bytes",
    "TOKENTRACE_DATA_DIR": "storage.dir",
    "TOKENTRACE_SNAPSHOT_INTERVAL": "storage.snapshot_interval",
    "TOKENTRACE_MAX_SPANS": "retention.max_spans",
    "TOKENTRACE_AUTH_TOKEN": "http_server.auth_token",
    "TOKENTRACE_INGEST_URL": "http_server.ingest_url",
    "TOKENTRACE_ALERT_ALLOW_HOSTS": "alert_delivery.allow_hosts",
    "TOKENTRACE_REDACTION_MODE": "redaction.mode",
    "TRACE_REDACT_KEYS": "redaction.keys",
}
#: Settings that are lists: a variable holds them with commas between.
_LISTS = frozenset({"redaction.keys", "alert_delivery.allow_hosts"})


def load(
    path: str | None, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, object] | None = None
) -> Settings:
    """
    The settings of a program.

    Args:
        path: The file; None = ``./tokentrace.yml`` if it is there.
        overrides: Flags, by the path of the setting: ``{"nats.url": …}``; None values are not given.

    Raises:
        ConfigError: Names the file and the key.
    """
    tree: dict[str, Any] = {}
    file = Path(path or DEFAULT_FILE)
    if path is not None or file.exists():
        tree = parse_yaml(_read(file), str(file), environ)
    for name, key in ENVIRONMENT.items():
        if environ.get(name):
            given = environ[name]
            _set(tree, key, [item.strip() for item in given.split(",") if item.strip()] if key in _LISTS else given)
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(tree, key, value)
    return build(tree, str(file))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: cannot be read: {exc}") from exc


def parse_yaml(text: str, name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """
    YAML with ``${VAR}`` replaced in its values.

    Raises:
        ConfigError: Not YAML, not a mapping, or a ``${VAR:?message}`` without a value.
    """
    try:
        tree = yaml.safe_load(text)
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: a mapping is expected at the top, not a {type(tree).__name__}")
        return {str(key): _substitute(value, str(key), environ) for key, value in tree.items()}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{name}: not YAML: {exc}") from exc


def _substitute(value: Any, key: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {str(name): _substitute(item, f"{key}.{name}", environ) for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, f"{key}[{index}]", environ) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        found = environ.get(name, "")
        if not found and operator == ":?":
            raise ConfigError(f"{key}: {name}: {rest or 'is not set'}")
        return found or (rest if operator == ":-" else "")

    return _VARIABLE.sub(lookup, value)


def _set(tree: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{parent}: a mapping is expected, not a {type(tree).__name__}")
    tree[last] = value


def build(tree: Mapping[str, Any], name: str) -> Settings:
    """
    Settings from plain data.

    Raises:
        ConfigError: Names the key that is unknown, missing or of the wrong kind.
    """
    # A section whose keys are all commented out is empty, which YAML reads as null.
    tree = {key: tidy_alerts(value) if key == "alerts" else value for key, value in tree.items() if value is not None}
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{name}: {explain(str(exc))}") from exc
    if not 1 <= settings.nats.shards <= 256:
        raise ConfigError(f"{name}: nats.shards: {settings.nats.shards} is not between 1 and 256")
    own_shards(settings.nats)
    for key in ("metrics_path", "prometheus_path", "ingest_path", "health_path"):
        if not getattr(settings.http_server, key).startswith("/"):
            raise ConfigError(f"{name}: http_server.{key}: must start with /")
    for key in ("max_batch_size", "max_body_bytes"):
        if getattr(settings.http_server, key) < 1:
            raise ConfigError(f"{name}: http_server.{key}: must be over 0")
    if settings.http_server.metrics_path == "/":
        raise ConfigError(f"{name}: http_server.metrics_path: must name more than /")
    _check_numbers(settings, name)
    for key in ("max_spans", "max_bytes"):
        if getattr(settings.retention, key) < 0:
            raise ConfigError(f"{name}: retention.{key}: must be over 0, or 0 for no limit")
    return settings


def _check_numbers(settings: Settings, name: str) -> None:
    for model, rate in settings.pricing.models.items():
        for key, price in msgspec.structs.asdict(rate).items():
            if price is not None and not (price.is_finite() and 0 <= price <= 1_000_000):
                raise ConfigError(f"{name}: pricing.models.{model}.{key}: must be a price of 0 to 1000000 USD")
    for index, rule in enumerate(settings.alerts):
        if not math.isfinite(rule.threshold):
            raise ConfigError(f"{name}: alerts[{index}].threshold: must be a finite number")
    transports: list[Transport | OneTransport] = [settings.transport, *settings.transport.multi]
    for index, one in enumerate(transports):
        if one.type == "http" and one.http is None:
            where = "transport" if index == 0 else f"transport.multi[{index - 1}]"
            raise ConfigError(f"{name}: {where}.http.endpoint: required when the type is http")


def _decode(kind: type, value: Any) -> Any:
    if kind is Duration:
        try:
            return Duration(parse_duration(str(value)))
        except Rejected as exc:
            raise ValueError(str(exc)) from exc
    raise NotImplementedError(kind)


def own_shards(nats: Nats) -> list[int]:
    """
    The shards this worker holds: ``nats.own_shards`` such as ``0-1`` or ``0,3``; all when it is empty.

    Raises:
        ConfigError: Not a range of existing shards.
    """
    if not nats.own_shards:
        return list(range(nats.shards))
    found: set[int] = set()
    for part in nats.own_shards.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"nats.own_shards: {shorten(nats.own_shards)!r} is not such as 0-1 or 0,3")
        if int(match[2] or match[1]) >= nats.shards:
            raise ConfigError(f"nats.own_shards: {shorten(nats.own_shards)!r} names a shard beyond {nats.shards - 1}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)
