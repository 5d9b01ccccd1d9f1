"""The Compose files: time to stop, bounded logs, names of services, and the profile with Prometheus and Grafana."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
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


def monitoring() -> dict[str, Any]:
    """Return the services that only start with the profile ``monitoring``."""
    return {name: service for name, service in services().items() if "profiles" in service}


def test_the_profile_monitoring_has_pinned_images_that_only_this_machine_reaches() -> None:
    assert set(monitoring()) == {"prometheus", "grafana"}
    for name, service in monitoring().items():
        assert service["profiles"] == ["monitoring"], name
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["healthcheck"]["test"][0] == "CMD", name
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_published_ports_and_volumes_are_distinct() -> None:
    ports = [port.rpartition(":")[0] for service in services().values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports))
    declared = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    mounts = [mount.split(":") for service in services().values() for mount in service.get("volumes", [])]
    assert {source for source, *_ in mounts if not source.startswith(".")} == set(declared)
    assert [source for source, *_ in mounts if source.startswith(".") and not (ROOT / source).exists()] == []


def test_nothing_is_shown_in_grafana_without_a_login_and_it_reports_nothing() -> None:
    environment = services()["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_ANALYTICS_REPORTING_ENABLED"] == "false"
    assert environment["GF_ANALYTICS_CHECK_FOR_UPDATES"] == "false"


def test_the_services_and_prometheus_take_the_same_token_from_the_shell() -> None:
    """A variable without a value is passed on if it is set, and an unset one does not hide the token of a file."""
    for name, service in services().items():
        if name not in ("nats", "grafana"):
            assert service["environment"]["TOKENTRACE_AUTH_TOKEN"] is None, name


@pytest.mark.parametrize("token", [None, "a $token 'with' signs"])
def test_prometheus_starts_with_the_token_in_a_file_and_not_in_its_environment(
    tmp_path: Path, token: str | None
) -> None:
    shown = tmp_path / "shown"
    program = tmp_path / "prometheus"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {shown}\nenv >> {shown}\n')
    program.chmod(0o755)
    script = (ROOT / "deploy" / "prometheus-start").read_text()
    changed = script.replace("/tmp/token", str(tmp_path / "token")).replace("/bin/prometheus", str(program))
    environment = {"PATH": "/usr/bin:/bin"} | ({} if token is None else {"TOKENTRACE_AUTH_TOKEN": token})
    subprocess.run(["sh", "-c", changed, "start", "--flag=a b"], env=environment, check=True)
    assert (tmp_path / "token").read_text() == (token or "")
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    flags, _, rest = shown.read_text().rpartition("|")
    assert flags.split("|")[-1] == "--flag=a b"
    assert "--config.file=/etc/prometheus/prometheus.yml" in flags.split("|")
    assert "TOKENTRACE_AUTH_TOKEN" not in rest


def test_the_services_are_served_under_the_names_by_which_they_reach_each_other() -> None:
    names = set(services()) | set(yaml.safe_load((ROOT / "compose.aggregators.yaml").read_text())["services"])
    names -= {"nats", *monitoring()}
    for name, service in services().items():
        if name in names:
            assert names <= set(service["environment"]["TOKENTRACE_HTTP_HOSTS"].split(",")), name


def test_the_broker_collects_garbage_before_its_container_is_full() -> None:
    nats = services()["nats"]
    container_mib = 1024 * int(nats["deploy"]["resources"]["limits"]["memory"].removesuffix("G"))
    assert int(nats["environment"]["GOMEMLIMIT"].removesuffix("MiB")) <= 0.8 * container_mib
    assert nats["environment"]["GOGC"] == "20"


def test_line_endings_do_not_depend_on_the_machine() -> None:
    """A shell script with the line endings of Windows does not run in a container."""
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()
