"""
Builds the page of services/api/page, or checks that the committed build is the one that its sources make.

``python tools/page.py build`` tests the sources and writes services/api/tokentrace_api/static; ``check`` builds into a
temporary folder and compares the bytes. It says SKIPPED without Node 20.19 or later, or if npm cannot install.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "services" / "api" / "page"
STATIC = ROOT / "services" / "api" / "tokentrace_api" / "static"
LEAST_NODE = (20, 19)
_MODULES = PAGE / "node_modules"
#: Digest of the lock file from which the modules were installed.
_INSTALLED = _MODULES / ".installed"
#: Digest of the sources and the build that were last found good.
_CHECKED = _MODULES / ".checked"


def main(arguments: Sequence[str]) -> int:
    """Return the exit code of ``build`` or ``check``."""
    if list(arguments) not in (["build"], ["check"]):
        print("usage: python tools/page.py build|check", file=sys.stderr)
        return 2
    build = list(arguments) == ["build"]
    if not build and _CHECKED.is_file() and _CHECKED.read_text() == _digest(_sources() + _built(STATIC)):
        print("page: unchanged since the last check")
        return 0
    lack = _lack()
    if lack:
        print(f"{'page: cannot be built' if build else 'SKIPPED: comparison of the page'}, because {lack}")
        return 1 if build else 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "static"
        commands = (["tsc", "--noEmit"], ["vitest", "run"], ["vite", "build", "--outDir", str(folder), "--emptyOutDir"])
        for command in commands:
            if not _run([str(_MODULES / ".bin" / command[0]), *command[1:]]):
                return 1
        if build:
            shutil.rmtree(STATIC, ignore_errors=True)
            shutil.copytree(folder, STATIC)
        wrong = differing(folder, STATIC)
    if wrong:
        print(f"page: {', '.join(wrong)}: not what the sources make; run make page, and commit what it writes")
        return 1
    _CHECKED.write_text(_digest(_sources() + _built(STATIC)))
    print("page: tested, and the build is what the sources make")
    return 0


def differing(made: Path, committed: Path) -> list[str]:
    """Return the names of the files that only one of two folders has, or that differ."""
    names = {path.name for folder in (made, committed) if folder.is_dir() for path in folder.iterdir()}
    return sorted(name for name in names if _content(made / name) != _content(committed / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _lack() -> str:
    """Return why nothing can be built; "" = everything is there, if necessary after an installation by npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "there is no Node"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.match(r"v(\d+)\.(\d+)\.", version)
    if match is None or (int(match[1]), int(match[2])) < LEAST_NODE:
        return f"Node is {version.strip()}, and the build needs {'.'.join(map(str, LEAST_NODE))} or later"
    lock = _digest([PAGE / "package-lock.json"])
    if not _INSTALLED.is_file() or _INSTALLED.read_text() != lock:
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, check=False)
        if done.returncode:
            return "npm cannot install what it needs:\n" + done.stderr[-600:]
        _INSTALLED.write_text(lock)
    return ""


def _run(command: Sequence[str]) -> bool:
    """Run *command*, print what it says if it fails, and return whether it succeeded."""
    done = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"page: {Path(command[0]).name} failed:\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
    return done.returncode == 0


def _sources() -> list[Path]:
    own = [path for path in PAGE.iterdir() if path.is_file()]
    below = [path for folder in ("src", "test") for path in (PAGE / folder).rglob("*") if path.is_file()]
    return sorted([*own, *below])


def _built(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        found.update(f"{path.relative_to(ROOT)}\n{len(content)}\n".encode() + content)
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
