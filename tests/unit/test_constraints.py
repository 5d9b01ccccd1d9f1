"""constraints.txt pins every package that pyproject.toml asks for to a version, without an address."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kit.environment import ROOT


def pins() -> dict[str, str]:
    """Return package name -> pinned version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    malformed = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]
    assert not malformed, f"not of the form name==version: {malformed}"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    texts += [text for text in project["optional-dependencies"]["dev"] if not text.startswith("tokentrace")]
    versions = pins()
    wrong = [
        text
        for requirement, text in ((Requirement(text), text) for text in texts)
        if canonicalize_name(requirement.name) not in versions
        or not requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    ]
    assert not wrong, f"`make pins` is due: {wrong}"


def test_the_image_and_the_setup_use_the_constraints() -> None:
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in (ROOT / "Dockerfile").read_text()
    assert "!constraints.txt" in (ROOT / ".dockerignore").read_text()
