"""Programs of Debian packages, unpacked in the user's cache and not installed, so that no root is needed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

_DOWNLOAD_S = 180
_RUN_S = 30
#: Options of apt-get: give up a silent server soon, and as root do not download as another user, who could not write
#: to the directory.
_OPTIONS = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root")


class Missing(Exception):
    """A program is not available; the text gives the reason."""


def program(package: str, name: str) -> Path:
    """
    Return the path of the program *name*: the installed one, or else that of Debian's *package*.

    The package is downloaded once and kept in ``$XDG_CACHE_HOME/tokentrace-tests``, so later runs need no network. If
    the program is not available, the calling test is skipped with the reason.
    """
    path = _find(package, name)
    if isinstance(path, Path):
        return path
    pytest.skip(f"NOT TESTED: {name} of Debian's package {package} is not available: {path}")


def preloadable(package: str, name: str) -> Path:
    """
    Return the path of the library *name*, a path below the directory of libraries: installed, or of Debian's *package*.

    It is downloaded, kept and skipped like a program.
    """
    path = _find_library(package, name) or _fetch(package) or _find_library(package, name)
    if isinstance(path, Path):
        return path
    reason = path or f"the package has no {name} that can be loaded on this machine"
    pytest.skip(f"NOT TESTED: {name} of Debian's package {package} is not available: {reason}")


def _find_library(package: str, name: str) -> Path | None:
    """Return the library *name*, installed or unpacked, that a program can be started with."""
    places = [Path("/"), *(tree for tree in _cache().glob(f"{package}_*") if tree.is_dir())]
    found = [path for place in places for path in sorted(place.glob(f"usr/lib/*/{name}"))]
    return next((path for path in found if _is_preloaded(path)), None)


def _is_preloaded(library: Path) -> bool:
    """Return True if a program that is started with *library* runs, and the loader does not complain about it."""
    env = {**os.environ, "LD_PRELOAD": str(library)}
    try:
        done = subprocess.run(["true"], env=env, capture_output=True, timeout=_RUN_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and not done.stderr


@functools.cache
def _find(package: str, name: str) -> Path | str:
    """Return the path of *name*, or the reason why it is not available."""
    installed = shutil.which(name)
    if installed and _runs(Path(installed)):
        return Path(installed)
    unpacked = _unpacked(package, name)
    if unpacked is not None:
        return unpacked
    return _fetch(package) or _unpacked(package, name) or f"the package has no {name} that runs on this machine"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokentrace-tests"


def _unpacked(package: str, name: str) -> Path | None:
    """Return *name* of the version of *package* that was unpacked last; None if none has a *name* that runs."""
    trees = [tree for tree in _cache().glob(f"{package}_*") if tree.is_dir()]
    for tree in sorted(trees, key=lambda tree: tree.stat().st_mtime, reverse=True):
        for place in ("usr/bin", "usr/sbin"):
            if _runs(tree / place / name):
                return tree / place / name
    return None


def _runs(path: Path) -> bool:
    """Return True if ``--version`` succeeds, which also shows that all shared libraries are present."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=_RUN_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def _fetch(package: str) -> str:
    """
    Download *package* and unpack it into a new directory, which appears complete or not at all.

    The result is cached for the run, because a failure may take long.

    Returns:
        What went wrong; "" = nothing.
    """
    cache = _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache) as name:
            scratch = Path(name)
            archive = _download(package, scratch)
            tree, place = scratch / "tree", cache / archive.stem
            _run(["dpkg-deb", "--extract", str(archive), str(tree)], scratch)
            os.utime(tree)
            try:
                tree.rename(place)
            except OSError:
                # Another process has unpacked the same version meanwhile.
                if not place.is_dir():
                    raise
    except (Missing, OSError) as exc:
        return str(exc)
    return ""


def _download(package: str, scratch: Path) -> Path:
    """Download the .deb to *scratch* and return its path; use new package lists if those of the machine do not work."""
    errors = ""
    try:
        _run(["apt-get", *_OPTIONS, "--quiet", "download", package], scratch)
    except Missing as exc:
        errors = str(exc)
        private = ["apt-get", *_OPTIONS, *_private_lists(scratch), "--quiet"]
        # A failure is no error if the package arrives: some lists may be missing, and hooks may need root.
        try:
            errors += "; " + _run([*private, "update"], scratch)
        except Missing as exc_update:
            errors += f"; {exc_update}"
        with contextlib.suppress(Missing):
            _run([*private, "download", package], scratch)
    archives = list(scratch.glob(f"{package}_*.deb"))
    if not archives:
        raise Missing(errors)
    return archives[0]


def _private_lists(scratch: Path) -> list[str]:
    """Return apt's options for package lists and caches in *scratch*; sources and keys are those of the machine."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch / 'cache'}"]


def _run(command: Sequence[str], directory: Path) -> str:
    """Run *command* in *directory* and return its exit code and last error lines as text; Missing if it failed."""
    shown = " ".join(word for word in command if word[0] not in "-/" and "::" not in word)
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, timeout=_DOWNLOAD_S, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as exc:
        raise Missing(f"{command[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise Missing(f"{shown}: not finished within {_DOWNLOAD_S} s") from exc
    outcome = f"{shown}: exit {done.returncode}: " + " / ".join(done.stderr.decode(errors="replace").splitlines()[-3:])
    if done.returncode:
        raise Missing(outcome)
    return outcome
