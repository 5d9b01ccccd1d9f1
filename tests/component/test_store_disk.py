"""Tests of the span store on a full or read-only disk: nothing is lost, and it works again when the disk does."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.examples import matrix
from kit.store_log import NOW_NS, Log, assert_exact, files, incompressible, open_store, read_to, shown
from tokentrace.errors import Unavailable
from tokentrace.records import Tombstone, decode_batches
from tokentrace_api.reads import Search, find_page
from tokentrace_api.store import segment


class Disk:
    """A small tmpfs, and bind mounts of it that can be made read-only while files are open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self, spare: int = 0) -> None:
        """Fill the disk but for about *spare* bytes."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        with self._filler.open("r+b") as file:
            file.truncate(max(self._filler.stat().st_size - spare, 0))

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def show(self, view: Path, mode: str) -> None:
        """Mount the disk at *view* (again); *mode* is ``rw`` or ``ro``."""
        view.mkdir(exist_ok=True)
        self.hide(view)
        subprocess.run(["mount", "--bind", str(self.directory), str(view)], check=True)
        subprocess.run(["mount", "-o", f"remount,bind,{mode}", str(view)], check=True)

    def hide(self, view: Path) -> None:
        if os.path.ismount(view):
            subprocess.run(["umount", "-l", str(view)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tokentrace-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield Disk(directory)
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("threshold", matrix(["200KB", "16MB"], 1))
def test_a_full_disk_stores_no_message_in_part_and_works_again_with_space(
    disk: Disk, threshold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free space varies, so that it ends in a commit, while the WAL is written back, or while a file is created."""
    directory, log, dice = disk.directory / "store", Log(1), random.Random(5)
    store = open_store(directory, shards=1)
    store.catalog.database.run(f"SET checkpoint_threshold = '{threshold}'")
    failed: set[str] = set()
    for number, spare in enumerate((0, 0, 9_000, 60_000, 150_000, 400_000, 1_000_000)):
        store.append([incompressible(log, number)])
        spans = shown(store)
        disk.fill(spare)
        item = incompressible(log, 100 + number)
        monkeypatch.setattr(segment, "MAX_BYTES", 1 if number % 3 == 1 else 10**9)
        for attempt in range(12):
            try:
                store.append([item])
            except Unavailable as exc:
                failed.add(type(exc.__cause__).__name__)
                assert shown(store) == spans
                assert read_to(store) == len(log.items[0]) - 1
                assert len(find_page(store, Search(), 5, 0, None, NOW_NS).rows) == min(5, len(log.items[0]) - 1)
            else:
                spans = shown(store)
                item = incompressible(log, 1000 * (number + 1) + attempt)
        disk.make_room()
        store.append(log.after(store))
        assert store.count(NOW_NS) == 100 * len(log.items[0])
        if dice.random() < 0.5:
            store.close()
            store = open_store(directory, shards=1)
            store.catalog.database.run(f"SET checkpoint_threshold = '{threshold}'")
    assert len(failed) > 1, failed
    assert [decode_batches(item.message.payload)[0].spans for item in log.items[0]] == [
        list(part) for part in itertools.zip_longest(*[iter(shown(store))] * 100)
    ]
    assert not store.damaged
    store.close()


def test_a_deletion_on_a_full_disk_fails_whole_and_succeeds_with_space(disk: Disk) -> None:
    store, log = open_store(disk.directory / "store", shards=1), Log(1)
    # What the deletion writes must not fit into the last page of the WAL, which belongs to it already.
    store.append([incompressible(log, number) for number in range(9)])
    disk.fill()
    tombstones = [Tombstone(target="trace", id=f"{number}", deleted_ns=NOW_NS) for number in range(8)]
    with pytest.raises(Unavailable):
        store.apply_deletions(tombstones)
    assert store.count(NOW_NS) == 900
    disk.make_room()
    store.apply_deletions(tombstones)
    assert store.count(NOW_NS) == 100
    store.close()


@pytest.mark.long
def test_opening_a_store_on_a_full_disk_damages_nothing(disk: Disk, crashed_store: Path) -> None:
    """Opening writes the WAL back; if that fails, the file stays and can be opened when there is space."""
    directory = disk.directory / "store"
    shutil.copytree(crashed_store, directory)
    before = files(directory)
    disk.fill()
    with contextlib.suppress(Unavailable):
        store = open_store(directory, shards=1)
        assert_exact(store, 40)
        store.close()
    disk.make_room()
    assert files(directory) == before
    store = open_store(directory, shards=1)
    assert_exact(store, 40)
    assert not store.damaged
    store.close()


def test_a_read_only_disk_damages_nothing_and_works_again_when_writable(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, log = tmp_path / "view", Log(1)
    try:
        disk.show(view, "rw")
        store = open_store(view / "store", shards=1)
        store.append([incompressible(log, 1)])
        store.close()
        disk.show(view, "ro")
        before = files(view / "store")
        for _ in range(2):
            with pytest.raises(Unavailable, match="Read-only"):
                open_store(view / "store", shards=1)
        assert files(view / "store") == before
        disk.show(view, "rw")
        store = open_store(view / "store", shards=1)
        assert not store.damaged
        disk.show(view, "ro")
        # The file is open, but its WAL and a second file must be created.
        for number in (2, 3):
            monkeypatch.setattr(segment, "MAX_BYTES", 1 if number == 3 else 10**9)
            item = incompressible(log, number)
            with pytest.raises(Unavailable):
                store.append([item])
            with contextlib.suppress(Unavailable):
                assert shown(store) == decode_batches(log.items[0][0].message.payload)[0].spans
        disk.show(view, "rw")
        store.append(log.after(store))
        assert store.count(NOW_NS) == 300
        assert not store.damaged
        store.close()
    finally:
        disk.hide(view)
