"""What the image is built of is there, and let through."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_locked_package_is_installed_and_pytorch_in_a_layer_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    subprocess.run([sys.executable, str(ROOT / "docker/requirements.py")], cwd=tmp_path, check=True)
    torch, pytorch, others, ray = (
        (tmp_path / name).read_text().splitlines() for name in ("torch.txt", "pytorch.txt", "others.txt", "ray.txt")
    )
    assert [line.split("==")[0] for line in pytorch] == ["torch", "torchvision"]
    assert {f"{line} \\" for line in pytorch} <= set(torch)
    assert not any(line.startswith(("torch", "nvidia")) for line in others)
    for layers, name in ((torch + others, "serve.txt"), (torch + others + ray, "ray.txt")):
        locked = (ROOT / "requirements" / name).read_text().splitlines()
        assert sorted(layers) == sorted(line for line in locked if not line.startswith("#")), name


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    sources = {source for line in copied for source in line.split()}
    assert {f"!{source}" for source in sources} == {line for line in allowed if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
