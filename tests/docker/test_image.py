"""What the image is built of is there, and let through."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import service

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


def test_every_image_of_others_is_pinned_by_its_digest_the_same_everywhere() -> None:
    files = ("docker-compose.yml", "docker/Dockerfile", "docker/kubernetes/base/redis.yaml")
    text = "\n".join((ROOT / name).read_text() for name in files)
    named = re.findall(r"^(?: *image: |ARG PYTHON_IMAGE=)([^\s:]+:\S+)", text, re.MULTILINE)
    pinned = dict(image.partition("@")[::2] for image in named)
    unpinned = {image for image, digest in pinned.items() if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)}
    ours, others = (
        {"lowfirst:cpu"},
        ("locustio/locust:", "nginx/nginx-prometheus-exporter:", "oliver006/redis_exporter:"),
    )
    assert all(image.startswith(others) for image in unpinned - ours)  # tools beside the service: docs/deploy.md
    assert len(set(named)) == len(pinned)


def test_image_says_what_it_is() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*)"', (ROOT / "docker/Dockerfile").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": service.__version__,
        "licenses": project["license"],
    }
