"""Programs out of Debian packages: unpacked below the user's cache, never installed. No test needs root for them."""

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
#: A package source that does not answer is given up soon; as root the download stays in a directory of root's own.
_PATIENCE = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root")


class Missing(Exception):
    """A program that cannot be had here, and why."""


def program(package: str, name: str) -> Path:
    """
    The program *name*: the one that is installed, or else the one in Debian's *package*.

    It is fetched once and kept below ``$XDG_CACHE_HOME/tokentrace-tests``, so later runs need no network. Where it
    cannot be had the calling test is skipped and says what failed.
    """
    found = _find(package, name)
    if isinstance(found, Path):
        return found
    pytest.skip(f"NOT TESTED: {name} of Debian's package {package} cannot be had: {found}")


@functools.cache
def _find(package: str, name: str) -> Path | str:
    """Where *name* is, or why it is nowhere."""
    installed = shutil.which(name)
    if installed and _runs(Path(installed)):
        return Path(installed)
    kept = _kept(package, name)
    if kept is not None:
        return kept
    return _fetch(package) or _kept(package, name) or f"the package holds no {name} that runs here"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokentrace-tests"


def _kept(package: str, name: str) -> Path | None:
    """*name* from a package unpacked before; of several versions the one unpacked last."""
    trees = [tree for tree in _cache().glob(f"{package}_*") if tree.is_dir()]
    for tree in sorted(trees, key=lambda tree: tree.stat().st_mtime, reverse=True):
        for place in ("usr/bin", "usr/sbin"):
            if _runs(tree / place / name):
                return tree / place / name
    return None


def _runs(path: Path) -> bool:
    """It starts: also that every library it is linked with is there."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=_RUN_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def _fetch(package: str) -> str:
    """
    Download *package* and unpack it into a directory of its own, which appears whole or not at all.

    Returns:
        What went wrong; "" = nothing. Asked once for each run, since a registry may take long to say no.
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
                # Who unpacked the same version meanwhile was first: theirs is as good.
                if not place.is_dir():
                    raise
    except (Missing, OSError) as exc:
        return str(exc)
    return ""


def _download(package: str, scratch: Path) -> Path:
    """The .deb in *scratch*: by the lists the machine has, or by fresh private ones where those are absent or old."""
    said = ""
    try:
        _run(["apt-get", *_PATIENCE, "--quiet", "download", package], scratch)
    except Missing as exc:
        said = str(exc)
        private = ["apt-get", *_PATIENCE, *_private_lists(scratch), "--quiet"]
        # Not every list need come, and hooks of the machine may fail for who is not root: what counts is the package.
        try:
            said += "; " + _run([*private, "update"], scratch)
        except Missing as late:
            said += f"; {late}"
        with contextlib.suppress(Missing):
            _run([*private, "download", package], scratch)
    found = list(scratch.glob(f"{package}_*.deb"))
    if not found:
        raise Missing(said)
    return found[0]


def _private_lists(scratch: Path) -> list[str]:
    """apt's options for package lists and caches in *scratch*; the sources and keys stay the machine's."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch / 'cache'}"]


def _run(command: Sequence[str], directory: Path) -> str:
    """The end of what it complained of; Missing where it failed."""
    shown = " ".join(word for word in command if word[0] not in "-/" and "::" not in word)
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, timeout=_DOWNLOAD_S, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as exc:
        raise Missing(f"there is no {command[0]} here") from exc
    except subprocess.TimeoutExpired as exc:
        raise Missing(f"{shown}: no end within {_DOWNLOAD_S} s") from exc
    said = f"{shown}: exit {done.returncode}: " + " / ".join(done.stderr.decode(errors="replace").splitlines()[-3:])
    if done.returncode:
        raise Missing(said)
    return said
