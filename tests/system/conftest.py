"""Fixtures of the system tests that more than one file uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.replicas import Replicas


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Start the replicas of ``Replicas`` for one file; they must end with exit code 0."""
    serving = Replicas(tmp_path_factory.mktemp("replicas"))
    serving.start()
    yield serving
    assert set(serving.stop().values()) == {0}
