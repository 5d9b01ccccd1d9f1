"""
Tracking of the newest SDKs: each use makes one span with what the server sent, and the application notices nothing.

``make test`` runs a sixth of the cases, from a random one on, and ``make test-all`` all of them. The same cases run
with the oldest SDKs in ``test_track_old_sdks``.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import anthropic
import openai
import pytest

from kit import sdk_cases_anthropic, sdk_cases_openai
from kit.examples import SEED, thinned
from kit.llm_server import LlmServer
from kit.sdk_matrix import Case, problems

CASES = [(openai.__name__, case) for case in sdk_cases_openai.CASES] + [
    (anthropic.__name__, case) for case in sdk_cases_anthropic.CASES
]
TRIED = thinned(CASES, random.Random(SEED))


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    # The cases collect garbage often; what is loaded by now need not be searched each time.
    gc.collect()
    gc.freeze()
    with LlmServer() as running:
        yield running
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("sdk", "case"), TRIED, ids=[f"{sdk}: {case.name}" for sdk, case in TRIED])
def test_a_tracked_client_acts_as_an_untouched_one_and_makes_one_span(server: LlmServer, sdk: str, case: Case) -> None:
    assert list(problems(case, sdk, server)) == []
