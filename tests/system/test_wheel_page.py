"""The wheel in an environment of its own, on a machine without Node: ``tokentrace serve`` serves the whole page."""

from __future__ import annotations

import os
import site
import subprocess
import zipfile
from pathlib import Path

import pytest

from kit.environment import ROOT, plain_environment
from kit.installs import Install, build_wheel
from kit.pipeline import Pipeline
from tokentrace_standalone.broker import find_binary

STATIC = ROOT / "services" / "api" / "tokentrace_api" / "static"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_built_page_and_not_its_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        held = {Path(name).name: packed.read(name) for name in packed.namelist() if "/static/" in name}
        names = packed.namelist()
    assert held == {path.name: path.read_bytes() for path in STATIC.iterdir()}
    assert not [name for name in names if name.endswith((".ts", ".tsx")) or "node_modules" in name]


def test_an_installed_wheel_serves_the_page_without_node(wheel: Path, tmp_path: Path) -> None:
    install = Install(tmp_path / "install", wheel)
    # What the extra ``server`` needs is that of the environment of the tests; its own tokentrace is not on this path.
    (packages,) = (install.bin.parent / "lib").glob("python*/site-packages")
    (packages / "server.pth").write_text("\n".join(site.getsitepackages()))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nats-server").symlink_to(find_binary())
    serving = Pipeline(tmp_path / "serve")
    flags = ["--addr", f"127.0.0.1:{serving.port}", "--also", "none", "--nats-port", str(serving.nats_port)]
    with serving.log.open("wb") as log:
        process = subprocess.Popen(
            [str(install.bin / "tokentrace"), "serve", *flags, "--data-dir", str(serving.data)],
            cwd=serving.directory,
            env={**plain_environment(), "PATH": f"{install.bin}{os.pathsep}{tools}"},
            stdout=log,
            stderr=log,
        )
    serving.process = process
    try:
        serving.wait_ready()
        assert install.python("import tokentrace_api; print(tokentrace_api.__file__)").startswith(str(packages))
        assert serving.get("/").body == (STATIC / "index.html").read_bytes()
        for name in ("page.js", "page.css", "favicon.svg"):
            assert serving.get(f"/{name}").body == (STATIC / name).read_bytes()
        assert serving.get("/page.json").json()["version"]
    finally:
        assert serving.stop() == 0
