"""Fixtures of the component tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokentrace_api.aggregator_client
import tokentrace_api.metrics_query
import tokentrace_api.store.catalog
from kit.recount_services import MetricsServices
from kit.store_log import numbered_log, open_store
from kit.store_process import start_appending
from tokentrace_api.store import segment


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an iterator over new directories, one for each example of a property."""
    return (tmp_path_factory.mktemp("store") for _ in itertools.count())


@pytest.fixture(scope="module")
def crashed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a store that was not closed: it has two files, and the newer one has a WAL."""
    directory = tmp_path_factory.mktemp("crashed")
    store, log = open_store(directory, shards=1), numbered_log(40)
    store.append(log.items[0][:8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MAX_BYTES", 1)
        store.append(log.items[0][8:16])
    store.close()
    with start_appending(directory, 40, 10**9, checkpoint=False) as process:
        process.communicate()
    return directory


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricsServices]:
    """Yield services without a world; opening a world sets the broker's time to that of the world."""

    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine an aggregator may take long to answer.
        patch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 30.0)
        services = MetricsServices(tmp_path_factory.mktemp("recount"))
        yield services
        services.shutdown()
