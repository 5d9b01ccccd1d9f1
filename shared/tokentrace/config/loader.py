"""
Loading of the settings from the defaults, the file, the environment and the flags; the later of these win.

A key that does not exist is an error, and an error in a key names the key.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from tokentrace.config.alerts import tidy_alerts
from tokentrace.config.section import Duration
from tokentrace.config.settings import Settings
from tokentrace.dialect import explain
from tokentrace.errors import ConfigError, Rejected, quoted, shorten
from tokentrace.units import parse_duration

log = logging.getLogger("tokentrace.config")

DEFAULT_FILE = "tokentrace.yml"
#: Environment variable -> path of the setting that it overrides.
ENVIRONMENT = {
    "TOKENTRACE_NATS_URL": "nats.url",
    "TOKENTRACE_PROJECT": "nats.project",
    "TOKENTRACE_SHARD_COUNT": "nats.shards",
    "TOKENTRACE_OWN_SHARDS": "nats.own_shards",
    "TOKENTRACE_DUPLICATE_WINDOW": "nats.duplicate_window",
    "TOKENTRACE_SPANS_MAX_BYTES": "nats.spans_max_bytes",
    "TOKENTRACE_DATA_DIR": "storage.dir",
    "TOKENTRACE_SNAPSHOT_INTERVAL": "storage.snapshot_interval",
    "TOKENTRACE_MAX_SPANS": "retention.max_spans",
    "TOKENTRACE_AUTH_TOKEN": "http_server.auth_token",
    "TOKENTRACE_INGEST_URL": "http_server.ingest_url",
    "TOKENTRACE_HTTP_HOSTS": "http_server.hosts",
    "TOKENTRACE_PUBLIC_URL": "http_server.public_url",
    "TOKENTRACE_OTLP_HTTP_ADDR": "otlp.http_addr",
    "TOKENTRACE_OTLP_GRPC_ADDR": "otlp.grpc_addr",
    "TOKENTRACE_ALERT_ALLOW_HOSTS": "alert_delivery.allow_hosts",
    "TOKENTRACE_ALERT_PROXY": "alert_delivery.proxy",
    "TOKENTRACE_REDACTION_MODE": "redaction.mode",
    "TRACE_REDACT_KEYS": "redaction.keys",
    "TOKENTRACE_REDACTION_HASH_KEY": "redaction.hash_key",
}
#: Old name of an environment variable -> its new name. The new name wins if both are set.
DEPRECATED = {"TOKENTRACE_SHARDS": "TOKENTRACE_OWN_SHARDS"}
#: Settings that are lists: their variable holds the items separated by commas.
_LISTS = frozenset({"redaction.keys", "alert_delivery.allow_hosts", "http_server.hosts"})
#: Lists that a variable extends and does not replace, so that setting it neither shows what the file hides nor refuses
#: a name that the file lists.
_EXTENDED = frozenset({"redaction.keys", "http_server.hosts"})
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:\?|:-)([^}]*))?\}")
#: Keys whose variables must be set; otherwise requests would need no token, or deliveries and the connection to the
#: broker would have no credential: the URLs may hold one.
_SECRET = re.compile(
    r"http_server\.auth_token|redaction\.hash_key|nats\.url|alert_delivery\.proxy|"
    r"otlp\.forward\[\d+\]\.(url|headers\..*)|"
    r"alerts\[\d+\]\.delivery\.(url|secret|headers\..*)",
    re.DOTALL,
)


def load(
    path: str | None, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, object] | None = None
) -> Settings:
    """
    Load the settings of a program, and log a warning for each deprecated variable and each key without effect.

    Args:
        path: The file; None = ``./tokentrace.yml`` if it exists.
        overrides: Flags, by the path of the setting: ``{"nats.url": …}``; a value of None is a flag that is not given.

    Raises:
        ConfigError: The file cannot be read or is not YAML, a setting is unknown, missing or invalid, or
            ``storage.dir`` cannot be a directory; the message names the file or the key.
    """
    tree: dict[str, Any] = {}
    file = Path(path or DEFAULT_FILE)
    if path is not None or file.exists():
        tree = parse_yaml(_read(file), str(file), environ)
    for notice in keys_without_effect(tree):
        log.warning("%s: %s", file, notice)
    variable_of: dict[str, str] = {}
    for variable, text in _variables(environ):
        key = ENVIRONMENT[DEPRECATED.get(variable, variable)]
        items = [item.strip() for item in text.split(",") if item.strip()]
        if key in _EXTENDED:
            items = [*_items(tree, key), *items]
        _set(tree, key, items if key in _LISTS else text)
        variable_of[key] = variable
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(tree, key, value)
            variable_of.pop(key, None)
    try:
        settings = build(tree, str(file))
    except ConfigError as exc:
        for key, variable in variable_of.items():
            if key in str(exc):
                raise ConfigError(f"{exc} (from the environment variable {variable})") from exc
        raise
    _check_directory(Path(settings.storage.dir))
    return settings


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each variable that sets something, old names first."""
    for old, new in DEPRECATED.items():
        if environ.get(old):
            ignored = ", and is ignored because both are set" if environ.get(new) else ""
            log.warning("the environment variable %s is deprecated: it is called %s now%s", old, new, ignored)
            yield old, environ[old]
    for variable in ENVIRONMENT:
        if environ.get(variable):
            yield variable, environ[variable]


def _check_directory(directory: Path) -> None:
    """Raise ConfigError if *directory* or the nearest of its parents that exists is not a directory."""
    shown = shorten(str(directory))
    if "\0" in str(directory):
        raise ConfigError(f"storage.dir: {quoted(str(directory))} has a NUL, which no path can have")
    try:
        for path in (directory, *directory.parents):
            if path.exists():
                if not path.is_dir():
                    raise ConfigError(f"storage.dir: {directory} cannot be used for data: {path} is not a directory")
                return
    except OSError as exc:
        raise ConfigError(f"storage.dir: {shown} cannot be used for data: {exc.strerror}") from exc


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: cannot be read: {exc}") from exc


def parse_yaml(text: str, name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """
    Parse YAML and substitute ``${VAR}``, ``${VAR:-default}`` and ``${VAR:?message}`` in its values.

    Args:
        name: Name of the file, for errors.
        environ: The variables. One that is empty or not set, and has no default, is replaced by "", except in a secret.

    Raises:
        ConfigError: The text is not YAML or not a mapping; a key appears twice in a mapping; or a variable that is
            empty or not set is used in a secret without a default, or as ``${VAR:?message}``.
    """
    # Not at the top: most programs have no file, and loading the YAML library takes 10 ms of their start.
    from tokentrace.config import yaml_tree

    try:
        tree = yaml_tree.load(text)
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise ConfigError(f"a mapping is expected at the top, not a {type(tree).__name__}")
        return {str(key): _substitute(value, str(key), environ) for key, value in tree.items()}
    except yaml_tree.ERRORS as exc:
        raise ConfigError(f"{name}: not YAML: {yaml_tree.problem_of(exc)}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc


def _substitute(value: Any, key: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {str(name): _substitute(item, f"{key}.{name}", environ) for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, f"{key}[{index}]", environ) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        variable, operator, rest = match.groups()
        text = environ.get(variable, "")
        if text or operator == ":-":
            return text or str(rest)
        if operator == ":?":
            raise ConfigError(f"{key}: {variable}: {rest or 'is not set'}")
        if _SECRET.fullmatch(key):
            raise ConfigError(
                f"{key}: the environment variable {variable} is not set, and a secret needs it; "
                f"${{{variable}:-}} means that it may be empty"
            )
        log.warning("%s: the environment variable %s is not set, so it is empty here", key, variable)
        return ""

    return _VARIABLE.sub(replacement, value)


def _items(tree: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list at *key* in *tree*; [] if there is none, or if what is there is no list and will be refused."""
    section, _, last = key.partition(".")
    held = tree.get(section)
    items = held.get(last) if isinstance(held, dict) else None
    return list(items) if isinstance(items, list) else []


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
    Build settings from *tree*, the keys and values of the file as nested dicts.

    Args:
        name: Name of the file, for errors.

    Raises:
        ConfigError: A key is unknown or missing, or its value is invalid; the message names the key.
    """
    # YAML reads a section whose keys are all commented out as null.
    tree = {key: tidy_alerts(value) if key == "alerts" else value for key, value in tree.items() if value is not None}
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode)
        settings.check()
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{name}: {explain(str(exc))}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc
    return settings


def _decode(kind: type, value: Any) -> Any:
    if kind is Duration:
        try:
            return Duration(parse_duration(str(value)))
        except Rejected as exc:
            raise ValueError(str(exc)) from exc
    raise NotImplementedError(kind)


def keys_without_effect(tree: Mapping[str, Any]) -> list[str]:
    """Return a text for each key of *tree* that has a value but no effect in the server."""
    return list(_without_effect(tree, inspect.type_info(Settings), ""))


def _without_effect(tree: Any, kind: inspect.Type, parent: str) -> Iterator[str]:
    if not isinstance(kind, inspect.StructType) or not isinstance(tree, Mapping):
        return
    for field in kind.fields:
        key, value_type = f"{parent}{field.encode_name}", field.type
        if tree.get(field.encode_name) is None:
            continue
        if isinstance(value_type, inspect.Metadata):
            if value_type.extra and "reason" in value_type.extra:
                yield f"{key}: has no effect in the server: {value_type.extra['reason']}"
                continue
            value_type = value_type.type
        yield from _without_effect(tree[field.encode_name], value_type, f"{key}.")
