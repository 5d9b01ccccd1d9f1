"""
The program that wrote ``data.tar.xz``, ``tokentrace.yml`` and ``expected.json`` here, with the code of that day.

It is ``landing_9/make.py``, which also sends captured requests of OpenTelemetry exporters: among them calls that one
request tells twice, and calls that two requests tell, the poorer one first.
``python tests/data/landing_14/make.py FOLDER`` writes the files into another folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder of the tests
sys.path.insert(0, str(Path(__file__).parents[1] / "landing_9"))
import make as earlier
from traffic import Traffic

from kit.fixture_cases import Case, make_case, send
from kit.otlp_fixtures import fixtures
from kit.pipeline import Pipeline

EMITTERS = ("openinference-langchain", "pydantic-ai+anthropic-sdk", "vercel-ai-v7", "litellm", "logfire")
TOLD_BY_TWO = "otel-genai+anthropic-sdk"
first_part, second_part, paths = earlier.first_part, earlier.second_part, earlier.paths
cases: list[Case] = []


def send_otlp(serving: Pipeline, part: int) -> None:
    """Send every second request, from the first or the second on; those that two instrumentations make in all ways."""
    chosen = [one for one in fixtures() if one.name.startswith(EMITTERS) and "error" not in one.name]
    made = [(one, "merged") for one in chosen[part::2]]
    told = [one for one in fixtures() if one.name.startswith(TOLD_BY_TWO) and "error" not in one.name]
    made += [(one, way) for one in told for way in ("merged", "inner first", "outer first")]
    for fixture, way in made:
        case = make_case(fixture, way, "protobuf", len(cases) + 1)
        send(serving, case, 2)
        cases.append(case)


def with_otlp_first(serving: Pipeline, traffic: Traffic, every: str) -> None:
    """Send what the snapshots hold."""
    send_otlp(serving, 0)
    first_part(serving, traffic, every)


def with_otlp_second(serving: Pipeline, traffic: Traffic) -> None:
    """Send what only the log holds."""
    send_otlp(serving, 1)
    second_part(serving, traffic)


def more_paths(traffic: Traffic) -> Iterator[str]:
    """Yield what is asked, and answered alike for ever."""
    yield from paths(traffic)
    for case in cases:
        for trace in case.traces:
            yield f"/traces/{trace}"
            for span_id in case.span_ids:
                yield f"/traces/{trace}/spans/{span_id}/receipt"


if __name__ == "__main__":
    earlier.first_part, earlier.second_part, earlier.paths = with_otlp_first, with_otlp_second, more_paths
    earlier.main(Path(sys.argv[1]))
