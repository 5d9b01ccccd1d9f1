"""Small disks that a test can fill: tmpfs mounts, which only root can make."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A mounted tmpfs, and a bind mount of it that can be made read-only while files are open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self) -> None:
        """Fill every free page."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def bind(self, view: Path, mode: str) -> None:
        """Mount the disk at *view* too, with mode rw or ro."""
        view.mkdir(exist_ok=True)
        if os.path.ismount(view):
            subprocess.run(["umount", "-l", str(view)], check=True)
        subprocess.run(["mount", "--bind", str(self.directory), str(view)], check=True)
        subprocess.run(["mount", "-o", f"remount,bind,{mode}", str(view)], check=True)


@contextmanager
def mounted_disk(folder: Path, size_mib: int) -> Iterator[Disk]:
    """Mount a disk of *size_mib* at ``folder/disk``; at the end unmount it, and its view at ``folder/view``."""
    directory = folder / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tokentrace-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: only root can")
    try:
        yield Disk(directory)
    finally:
        for view in (folder / "view", directory):
            if os.path.ismount(view):
                subprocess.run(["umount", "-l", str(view)], check=True)
