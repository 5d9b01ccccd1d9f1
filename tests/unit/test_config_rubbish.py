"""Rubbish as a configuration file is refused with ``ConfigError``, or is a configuration; nothing else is raised."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kit.examples import examples
from kit.rubbish import bend, dice_of, flipped
from tokentrace.config import Settings, load
from tokentrace.errors import ConfigError
from tokentrace_standalone.pipeline import Configs

RULE = {"name": "r", "metric": "latency_p95", "op": "gt", "threshold": 1000, "window": "5m", "for": "1m"}


def whole() -> dict[str, Any]:
    """Return a valid configuration in which every section has a value for every key, and every list an item."""
    tree: dict[str, Any] = msgspec.to_builtins(Settings(), enc_hook=lambda duration: f"{int(duration)}ns")
    url = {"type": "webhook", "url": "http://localhost:1/x", "headers": {"A": "b"}, "timeout": "5s", "max_retries": 3}
    tree["alerts"] = [
        {**RULE, "filter": {"model": "gpt-4o", "attr.x": "1"}, "group_by": "attr.user_id", "delivery": url},
        {**RULE, "name": "s", "metric": "total_cost", "unpriced": "fire", "delivery": {"type": "stdout"}},
    ]
    tree["alert_delivery"] = {"allow_hosts": ["127.0.0.0/8", "localhost:80"]}
    tree["custom_metrics"] = [
        {"name": "hops", "type": "sum", "field": "attr.hops", "filter_key": "model", "filter_val": "o3"},
        {"name": "hop_p95", "type": "p95", "field": "attr.hops"},
    ]
    tree["pricing"]["models"] = {"m": {"prompt_per_1m": 1, "completion_per_1m": 2, "cache_read_per_1m": 0.1}}
    tree["redaction"] |= {"keys": ["password", "x_*"]}
    return tree


def read(file: Path) -> bool:
    """Load *file* as ``serve`` does; return False if it was refused with a ConfigError."""
    with contextlib.suppress(ConfigError):
        Configs.of(load(str(file)))
        return True
    return False


def test_the_configuration_that_is_damaged_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "tokentrace.yml"
    file.write_text(yaml.safe_dump(whole(), allow_unicode=True))
    Configs.of(load(str(file)))


def test_a_damaged_configuration_is_refused_by_name_or_used(tmp_path: Path) -> None:
    dice, file, refused = dice_of("configuration"), tmp_path / "tokentrace.yml", 0
    text = yaml.safe_dump(whole(), allow_unicode=True)
    count = examples(600)
    for number in range(count):
        if number % 3:
            file.write_text(yaml.safe_dump(bend(dice, whole()), allow_unicode=True))
        else:
            file.write_bytes(flipped(dice, text.encode()))
        refused += not read(file)
    assert refused > count // 2


@pytest.mark.parametrize("key", ["storage.dir", "http_server.addr", "nats.url", "http_server.ingest_url"])
@given(value=st.text(max_size=400))
def test_any_text_for_a_path_or_an_address_is_refused_or_used(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    with contextlib.suppress(ConfigError):
        load(None, overrides={f"{section}.{name}": value}, environ={})
