"""The Compose files: services get the time that they need to stop, logs are bounded, and services know their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
#: A service answers its requests for up to 15 s, after which its readers save their state; seconds.
DRAIN_S = 30


def services() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return read


def test_every_container_has_the_time_that_its_drain_takes() -> None:
    for name, service in services().items():
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S, name


def test_the_logs_of_every_container_are_bounded() -> None:
    for name, service in services().items():
        assert service["logging"]["driver"] == "json-file", name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_the_services_are_served_under_the_names_by_which_they_reach_each_other() -> None:
    names = set(services()) | set(yaml.safe_load((ROOT / "compose.aggregators.yaml").read_text())["services"])
    for name, service in services().items():
        if name != "nats":
            assert names - {"nats"} <= set(service["environment"]["TOKENTRACE_HTTP_HOSTS"].split(",")), name


def test_line_endings_do_not_depend_on_the_machine() -> None:
    """A shell script with the line endings of Windows does not run in a container."""
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()
