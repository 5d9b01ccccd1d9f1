"""From the arguments of a tracer, or a configuration file, to its transport and to a pipeline in the program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokentrace.client.transports import MultiTransport, Transport, open_transport
from tokentrace.errors import ConfigError

if TYPE_CHECKING:
    from tokentrace.config import ChildTransport
    from tokentrace.config import Transport as TransportSettings
    from tokentrace.pricing import Rate
    from tokentrace.redact import Redactor

_SERVER_HINT = "pip install 'tokentrace[server]'"
_YAML_HINT = "pip install 'tokentrace[yaml]'"


def wire(
    transport: Transport | str | None,
    options: Mapping[str, Any],
    pipeline: Mapping[str, Any],
    http_server: str | None,
    name: str,
) -> Transport:
    """
    Return the transport of a tracer.

    Args:
        transport: As ``Tracer`` takes it.
        options: Arguments of the transport that a URL names; None is an argument that is not given.
        pipeline: Settings of a pipeline inside of this program, as ``tokentrace.yml`` has them; empty = none but the
            HTTP server asks for one.
        http_server: Where that pipeline answers HTTP; None = nowhere.
        name: Where *pipeline* comes from, for errors.

    Raises:
        ConfigError: An argument cannot be used, or the extra ``server`` is missing.
    """
    given = {key: value for key, value in options.items() if value is not None}
    wants_pipeline = bool(pipeline) or http_server is not None
    opened: Transport | None = None
    if transport is not None and not isinstance(transport, str):
        unused = sorted(given.keys() - {"source", "redactor"} if wants_pipeline else given.keys() - {"source"})
        if unused:
            raise ConfigError(f"{', '.join(unused)}: must be given to the transport, which is an object")
        opened = transport
    elif transport or os.environ.get("TOKENTRACE_URL") or not wants_pipeline:
        opened = open_transport(transport, **given)
    if not wants_pipeline:
        assert opened is not None
        return opened
    embedded = _open_pipeline(pipeline, http_server, name, given)
    return embedded if opened is None else MultiTransport(opened, embedded)


def _open_pipeline(tree: Mapping[str, Any], http_server: str | None, name: str, given: Mapping[str, Any]) -> Transport:
    try:
        # By name: the client cannot import the services, and most programs run no pipeline.
        module = import_module("tokentrace_standalone.in_process")
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"http_server, alerts and custom_metrics need the extra 'server' ({exc.name} is missing): {_SERVER_HINT}"
        ) from exc
    opened: Transport = module.InProcess(
        tree, name, addr=http_server, source=given.get("source", ""), redactor=given.get("redactor")
    )
    return opened


def pipeline_tree(
    alerts: Sequence[Mapping[str, Any]],
    custom_metrics: Sequence[Mapping[str, Any]],
    prices: Mapping[str, Rate | Mapping[str, Any]],
    *,
    asked: bool,
) -> dict[str, Any]:
    """Return the settings of a pipeline, as ``tokentrace.yml`` has them; prices are included if one is *asked* for."""
    tree: dict[str, Any] = {}
    if alerts:
        tree["alerts"] = [dict(rule) for rule in alerts]
    if custom_metrics:
        tree["custom_metrics"] = [dict(metric) for metric in custom_metrics]
    if (tree or asked) and prices:
        tree["pricing"] = pricing_tree(prices)
    return tree


def pricing_tree(prices: Mapping[str, Rate | Mapping[str, Any]]) -> dict[str, Any]:
    """Return *prices* as the section ``pricing`` of ``tokentrace.yml``."""
    return {"models": {model: _plain_rate(rate) for model, rate in prices.items()}}


def _plain_rate(rate: Any) -> Any:
    """Return a rate, or a part of one, as a mapping of its keys that have a value."""
    if isinstance(rate, Mapping):
        return {key: _plain_rate(value) for key, value in rate.items()}
    if isinstance(rate, (str, bool, int, float, Decimal)):
        return rate
    if isinstance(rate, tuple) and not hasattr(rate, "_fields"):
        return [_plain_rate(part) for part in rate]
    if hasattr(rate, "kind") and hasattr(rate, "text"):
        return {rate.kind: rate.text}
    names = rate._fields if hasattr(rate, "_fields") else [field.name for field in fields(rate)]
    values = {name: getattr(rate, name) for name in names}
    return {name: _plain_rate(value) for name, value in values.items() if value not in (None, (), {}, "", False)}


def own_transports(transport: Transport) -> Iterator[Transport]:
    """Yield the transports in *transport* that are objects of the application."""
    if isinstance(transport, MultiTransport):
        for child in transport.children:
            yield from own_transports(child)
    elif not type(transport).__module__.startswith(("tokentrace.", "tokentrace_standalone.")):
        yield transport


class FileArguments:
    """
    The arguments of a tracer that a configuration file states.

    Args:
        text: YAML, as ``tokentrace.yml``.
        name: The name of the file, for errors.

    Attributes:
        arguments: The arguments of ``Tracer`` that the file states.
        pipeline: The settings of a pipeline inside of this program; empty = the file asks for none.

    Raises:
        ConfigError: The file is invalid, or the extra ``yaml`` is missing; the message names the key.
    """

    def __init__(self, text: str, name: str) -> None:
        try:
            from tokentrace.config import build, parse_yaml

            tree = parse_yaml(text, name, os.environ)
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"{name}: reading YAML needs the extra 'yaml' ({exc.name} is missing): {_YAML_HINT}"
            ) from exc
        settings = build(tree, name)
        self.arguments: dict[str, Any] = {}
        redactor = settings.redaction.redactor if tree.get("redaction") else None
        if tree.get("transport"):
            self.arguments["transport"] = _transport_of(settings.transport, settings.retention.disk_days, redactor)
        elif redactor is not None:
            self.arguments["redactor"] = redactor
        if settings.http_server.enabled:
            self.arguments["http_server"] = settings.http_server.addr
        if tree.get("pricing"):
            self.arguments["prices"] = settings.pricing.rates
        asks = settings.http_server.enabled or settings.alerts or settings.custom_metrics
        self.pipeline = {key: value for key, value in tree.items() if key not in ("transport", "nats")} if asks else {}


def _transport_of(settings: TransportSettings | ChildTransport, disk_days: int, redactor: Redactor | None) -> Transport:
    from msgspec.structs import asdict

    from tokentrace.client import transports

    if settings.type == "noop":
        return transports.NoopTransport()
    if settings.type == "stdout":
        return transports.StdoutTransport(redactor=redactor)
    if settings.type == "multi":
        children = getattr(settings, "multi", [])
        return transports.MultiTransport(*(_transport_of(child, disk_days, redactor) for child in children))
    if settings.type == "file":
        file = asdict(settings.file) if settings.file is not None else {}
        if "buffer_size_kb" in file:
            file["buffer_kb"] = file.pop("buffer_size_kb")
        return transports.FileTransport(**file, disk_days=disk_days, redactor=redactor)
    assert settings.http is not None  # Settings.check
    http = asdict(settings.http)
    for key in ("flush_interval", "timeout", "retry_backoff"):
        http[key] = http[key] / 1_000_000_000
    return transports.HttpTransport(http.pop("endpoint"), **http, redactor=redactor)
