"""``make check`` notices a build of the page that does not belong to its sources."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from kit.pipeline import ROOT


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page_tool", ROOT / "tools" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_changed_a_missing_and_a_forgotten_file_are_named(tool: ModuleType, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(tool.STATIC, made)
    assert tool.differing(made, tool.STATIC) == []
    script = made / "page.js"
    script.write_bytes(script.read_bytes() + b"\n")
    (made / "page.css").unlink()
    (made / "chunk.js").write_bytes(b"")
    assert tool.differing(made, tool.STATIC) == ["chunk.js", "page.css", "page.js"]


def test_without_node_the_comparison_is_skipped_aloud_and_a_build_is_an_error(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tool, "_CHECKED", tmp_path / "never")
    assert tool.main(["check"]) == 0
    assert capsys.readouterr().out == "SKIPPED: comparison of the page, because there is no Node\n"
    assert tool.main(["build"]) == 1
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v18.20.4\n")
    node.chmod(0o755)
    shutil.copy(node, tmp_path / "npm")
    assert tool.main(["check"]) == 0
    assert "Node is v18.20.4, and the build needs 20.19 or later" in capsys.readouterr().out
    assert tool.main(["lint"]) == 2
