"""
A data directory that an earlier version wrote: unpack it, ask what it was asked then, compare with what was answered.

Each folder ``tests/data/landing_*`` holds one: ``data.tar.xz`` (the directory), ``tokentrace.yml`` (the configuration
it was written with) and ``expected.json`` (the answers of the version that wrote it).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.broker import Broker
from kit.pipeline import Pipeline

FOLDERS = sorted((Path(__file__).parent.parent / "data").glob("landing_*"))
#: What a rule is; what it says of the last hour or of events that have aged away is compared elsewhere.
_OF_A_RULE = (
    "name",
    "metric",
    "op",
    "threshold",
    "window",
    "rule_id",
    "level",
    "filter",
    "min_spans",
    "cooldown",
    "eval_interval",
    "for",
    "recovery_threshold",
    "no_data",
    "group_by",
    "change",
    "delivery",
    "silenced",
    "silenced_until",
    "spans_considered",
    "late_spans",
)
#: Gauges of the last hour, of what waits in reporters now, and when a series began.
_PASSING = (
    "tokentrace_cost_per_call",
    "tokentrace_error_rate",
    "tokentrace_timeout_rate",
    "tokentrace_quality_score",
    "tokentrace_transport_queue_depth",
    "tokentrace_custom_support_latency",
    "tokentrace_custom_billing_prompts",
)


class Landing:
    """What *folder* holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "tokentrace.yml"

    @property
    def expected(self) -> dict[str, Any]:
        """The answers of the version that wrote the directory; see the README of the folder."""
        found: dict[str, Any] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return found

    def unpack(self, directory: Path) -> Path:
        """The data directory, as ``data`` in *directory*."""
        with tarfile.open(self.folder / "data.tar.xz") as packed:
            packed.extractall(directory, filter="data")
        return directory / "data"

    def serve(self, directory: Path, env: Mapping[str, str] | None = None) -> Pipeline:
        """A ``tokentrace serve`` on ``data`` in *directory*, not started yet."""
        return Pipeline(directory, "--config", str(self.config), env=env)


def broker_on(data: Path, directory: Path) -> Broker:
    """A nats-server alone on the streams of a data directory that no pipeline runs on; not started yet."""
    directory.mkdir(parents=True)
    (directory / "js").symlink_to((data / "nats" / "jetstream").resolve())
    return Broker(directory)


# -- what is asked


def ask(pipeline: Pipeline, path: str) -> Any:
    """The answer to *path* in a form in which two answers can be compared."""
    if path == "/traces":
        return list(_traces(pipeline))
    answer = pipeline.get(path)
    assert answer.status == 200, (path, answer.status, answer.body)
    if path == "/export":
        return sorted((json.loads(line) for line in answer.body.splitlines()), key=_key)
    if path == "/metrics/prometheus":
        return dict(_samples(answer.body.decode()))
    return answer.json()


def _key(span: Mapping[str, Any]) -> tuple[str, str]:
    return span["trace_id"], span["span_id"]


def _traces(pipeline: Pipeline) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = pipeline.get(f"/traces?limit=200{cursor}").json()
        yield from page["traces"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def _samples(page: str) -> Iterator[tuple[str, float]]:
    for line in page.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            yield name, float(value)


# -- what lasts of an answer


def lasting(path: str, answer: Any) -> Any:
    """The part of the recorded *answer* to *path* that is the same for ever."""
    for starts, part in _LASTING.items():
        if path == starts or (path.startswith("/traces/") and path.endswith(starts)):
            return part(answer)
    return answer


def _receipt(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["price"]["version"] is None:
        return answer
    # What a price list of later cannot explain any more it shows in one line; what it cost stands.
    shown = {key: value for key, value in answer.items() if key not in ("lines", "rounding", "note")}
    return shown | {"price": {key: value for key, value in answer["price"].items() if key != "tier"}}


def _rules(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: rule[key] for key in _OF_A_RULE} for rule in answer]


_LASTING: Mapping[str, Callable[[Any], Any]] = {
    "/alerts": _rules,
    "/receipt": _receipt,
    "/metrics": lambda answer: {
        "transport": {key: answer["transport"][key] for key in ("sent", "failed", "dropped")},
        "alerts": answer["alerts"],
    },
    "/metrics/prometheus": lambda samples: {
        name: value
        for name, value in samples.items()
        if not name.startswith(_PASSING) and not name.partition("{")[0].endswith("_created")
    },
}


# -- comparing


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """
    Where *found* is not what was expected, key by key; keys that are new are no difference.

    Numbers are the same when they are the same to the billionth: money to the nano-dollar. A span that had not ended
    is pending for a day and abandoned then.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return [f"{where}: {expected!r} became {found!r}"]
        gone = [f"{where}.{key}: is gone" for key in expected if key not in found]
        both = [key for key in expected if key in found]
        return gone + [line for key in both for line in differences(expected[key], found[key], f"{where}.{key}")]
    if isinstance(expected, list):
        if not isinstance(found, list) or len(expected) != len(found):
            count = len(found) if isinstance(found, list) else found
            return [f"{where}: {len(expected)} entries became {count}"]
        pairs = zip(expected, found, strict=True)
        return [line for at, pair in enumerate(pairs) for line in differences(*pair, f"{where}[{at}]")]
    if expected == "pending":
        same = found in ("pending", "abandoned")
    elif _is_number(expected) and _is_number(found):
        same = round(expected * 1e9) == round(found * 1e9)
    else:
        same = expected == found and type(expected) is type(found)
    return [] if same else [f"{where}: {expected!r} became {found!r}"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
