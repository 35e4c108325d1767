"""What the image is built of is there, and let through."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_installed_and_pytorch_in_a_layer_of_its_own(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run([sys.executable, str(ROOT / "docker/requirements.py")], cwd=tmp_path, check=True)
    torch, others = ((tmp_path / name).read_text().splitlines() for name in ("torch.txt", "others.txt"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[^a-z]", each)[0] for each in torch] == ["torch", "torchvision"]
    assert sorted(torch + others) == sorted(project["dependencies"] + project["optional-dependencies"]["openvino"])


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    sources = {source for line in copied for source in line.split()}
    assert {f"!{source}" for source in sources} == {line for line in allowed if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
