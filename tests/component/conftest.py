"""Fixtures for tests of the span store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.store_log import numbered_log, open_store
from kit.store_process import start_appending
from tokentrace_api.store import segment


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new directory for each example of a property."""
    return (tmp_path_factory.mktemp("store") for _ in itertools.count())


@pytest.fixture(scope="module")
def crashed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two files of a store whose process ended without closing them; the newer file has a WAL."""
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
