"""Fixtures of the component tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import tokentrace_api.aggregator_client
import tokentrace_api.metrics_query
import tokentrace_api.store.store
from kit.recount_desk import Desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose clock is set by the world that is opened."""
    clock = SimpleNamespace(now_ns=None)

    def time_ns() -> int:
        return time.time_ns() if clock.now_ns is None else int(clock.now_ns)

    with pytest.MonkeyPatch.context() as patch:
        for module in (tokentrace_api.metrics_query, tokentrace_api.store.store):
            patch.setattr(module, "time", SimpleNamespace(time_ns=time_ns, time=time.time))
        # Wait for answers however busy the machine is.
        patch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 30.0)
        made = Desk(tmp_path_factory.mktemp("recount"), clock)
        yield made
        made.shutdown()
