"""
Data directories that earlier versions wrote, and comparisons of answers with those of the version that wrote them.

Each folder ``tests/data/landing_*`` holds one: ``data.tar.xz`` (the directory), ``tokentrace.yml`` (the configuration
of the version that wrote it) and ``expected.json`` (the answers of that version).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.broker import Broker
from kit.pipeline import Pipeline

FOLDERS = sorted((Path(__file__).parent.parent / "data").glob("landing_*"))
#: Keys of a rule that are compared. Those that depend on the last hour or on expired events are compared elsewhere.
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
    "silenced_at",
    "spans_considered",
    "late_spans",
)
#: Prefixes of samples that are not compared: gauges of the last hour and of what waits in reporters now.
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
    """The data directory, configuration and expected answers in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "tokentrace.yml"

    @property
    def expected(self) -> dict[str, Any]:
        """The answers of the version that wrote the directory; see the README of the folder."""
        answers: dict[str, Any] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return answers

    def unpack(self, directory: Path) -> Path:
        """Unpack the data directory into *directory* and return its path, ``data`` there."""
        with tarfile.open(self.folder / "data.tar.xz") as packed:
            packed.extractall(directory, filter="data")
        return directory / "data"

    def serve(self, directory: Path, env: Mapping[str, str] | None = None) -> Pipeline:
        """Return a ``tokentrace serve`` on ``data`` in *directory*, not yet started."""
        return Pipeline(directory, "--config", str(self.config), env=env)


def broker_on(data: Path, directory: Path) -> Broker:
    """Return a nats-server, not yet started, on the streams in *data*; no pipeline may use *data* meanwhile."""
    directory.mkdir(parents=True)
    (directory / "js").symlink_to((data / "nats" / "jetstream").resolve())
    return Broker(directory)


# -- requests


def ask(pipeline: Pipeline, path: str) -> Any:
    """Return the answer to *path*, decoded and in an order that does not vary."""
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


# -- parts of an answer that do not depend on time or prices


def lasting(path: str, answer: Any) -> Any:
    """Return the part of *answer* to *path* that later versions must give too, at any time."""
    for starts, part in _LASTING.items():
        if path == starts or (path.startswith("/traces/") and path.endswith(starts)):
            return part(answer)
    return answer


def _receipt(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["price"]["version"] is None:
        return answer
    # If newer price tables cannot explain a cost, the receipt shows it in one line; the cost stays the same.
    shown = {key: value for key, value in answer.items() if key not in ("lines", "rounding", "note")}
    return shown | {"price": {key: value for key, value in answer["price"].items() if key != "tier"}}


def _rules(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: rule[key] for key in _OF_A_RULE if key in rule} for rule in answer]


def _sessions(answer: dict[str, Any]) -> dict[str, Any]:
    # A list shows how many messages a session has; they are shown with the session.
    return answer | {
        "sessions": [
            {**session, "messages": [], "messageCount": session.get("messageCount", len(session["messages"]))}
            for session in answer["sessions"]
        ]
    }


_LASTING: Mapping[str, Callable[[Any], Any]] = {
    "/api/sessions?limit=100": _sessions,
    "/alerts": _rules,
    "/receipt": _receipt,
    "/metrics": lambda answer: {
        "transport": {key: answer["transport"][key] for key in ("sent", "failed", "dropped")},
        "alerts": answer["alerts"],
        **{key: answer[key] for key in ("saved_from_double_count",) if key in answer},
    },
    "/metrics/prometheus": lambda samples: {
        name: value
        for name, value in samples.items()
        if not name.startswith(_PASSING) and not name.partition("{")[0].endswith("_created")
    },
}


# -- comparison


#: Numbers that have another definition since, at the end of their place in an answer: the cost of a call is of LLM
#: calls with a known cost, these custom metrics are of LLM calls, and tokens are without roll-up kinds.
_REDEFINED = re.compile(
    r"\.cost\.per_call_usd|\.(steps|support_latency|billing_prompts)|\.tokentrace_custom_steps_total"
    r"|.*'kind': 'all'.*\.tokens\.(prompt|completion)_p\d\d"
)


def differences(expected: Any, actual: Any, where: str = "") -> list[str]:
    """
    Return a line for each place where *actual* differs from *expected*; new keys are no difference.

    Numbers are compared to the billionth, money thus to the nano-dollar. A pending span may have become abandoned.
    """
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping):
            return [f"{where}: {expected!r} became {actual!r}"]
        gone = [f"{where}.{key}: is gone" for key in expected if key not in actual]
        both = [key for key in expected if key in actual]
        return gone + [
            line
            for key in both
            for line in differences(_shown_now(key, expected[key], actual), actual[key], f"{where}.{key}")
        ]
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(expected) != len(actual):
            count = len(actual) if isinstance(actual, list) else actual
            return [f"{where}: {len(expected)} entries became {count}"]
        pairs = zip(expected, actual, strict=True)
        return [line for index, pair in enumerate(pairs) for line in differences(*pair, f"{where}[{index}]")]
    if expected == "pending":
        same = actual in ("pending", "abandoned")
    elif _is_number(expected) and _is_number(actual):
        same = round(expected * 1e9) == round(actual * 1e9)
    elif expected == 0 and actual is None:
        # A sum of no tokens, or of no costs, is null since.
        same = ".tokens." in where or where.endswith(".cost.total_usd")
    else:
        same = expected == actual and type(expected) is type(actual)
    same = same or any(found.end() == len(where) for found in _REDEFINED.finditer(where))
    return [] if same else [f"{where}: {expected!r} became {actual!r}"]


def _shown_now(key: str, then: Any, actual: Mapping[str, Any]) -> Any:
    """Return *then* as it is shown since: milliseconds of a span are whole, and a cost is null if none is known."""
    if key in ("latency_ms", "ttft_ms") and "span_id" in actual and then is not None:
        return int(then + 0.5)
    return None if key == "total_cost_usd" and not then and actual.get("unpriced_span_count") else then


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
