"""The wheel holds the server and the models: installed anywhere, it serves a photograph from any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

import service
from service.settings import SHIPPED_MODEL

ROOT = Path(__file__).parents[2]
MOST_BYTES = 100_000_000  # what PyPI takes of one file
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``make wheel`` builds it, of a copy: a build leaves files in its folder."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("service", "model_store", "docs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    told = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "pip wheel" in line)
    options = told.partition("pip wheel ")[2].replace("--wheel-dir dist", f"--wheel-dir {built}").split()
    subprocess.run([*PIP, "wheel", *options], cwd=copy, check=True)
    (found,) = built.iterdir()
    return found


def test_wheel_holds_every_file_of_every_model_and_is_small_enough_to_publish(wheel: Path) -> None:
    store = ROOT / "model_store"
    models = {f"service/model_store/{path.relative_to(store)}" for path in store.rglob("*") if path.is_file()}
    with ZipFile(wheel) as files:
        names = files.namelist()
    assert models == {name for name in names if name.startswith("service/model_store/")}
    documents = {f"service/manual/{path.name}" for kind in ("*.md", "*.png") for path in (ROOT / "docs").glob(kind)}
    assert documents == {name for name in names if name.startswith("service/manual/")}
    assert wheel.name == f"lowfirst-{service.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < MOST_BYTES


def test_installed_wheel_serves_a_photograph_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LOWFIRST_", "PYTHON"))}
    settings = {"LOWFIRST_PORT": "0", "LOWFIRST_PROCESSES": "1", "LOWFIRST_WORKERS": "1", "LOWFIRST_RUNTIME": "eager"}
    with subprocess.Popen(
        [target / "bin" / "lowfirst", "serve"],
        cwd=elsewhere,
        env={**inherited, **settings, "LOWFIRST_DRAIN_DELAY_SECONDS": "0", "PYTHONPATH": str(target)},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            told = next(found for line in server.stderr if (found := re.search(r"listening on (http://\S+)", line)))
            photograph = (ROOT / "tests/examples/church.jpg").read_bytes()
            answer = httpx.post(
                f"{told[1]}/classify", content=photograph, headers={"Content-Type": "image/jpeg"}, timeout=60
            )
            models = httpx.get(f"{told[1]}/models")
            runbook = httpx.get(f"{told[1]}/manual/operate.md")
        finally:
            server.kill()
    assert answer.status_code == 200
    assert answer.json()["model"]["name"] == SHIPPED_MODEL
    assert answer.json()["label"] == "church"
    assert runbook.status_code == 200
    assert {each["name"] for each in models.json()["models"]} == {
        each.name for each in (ROOT / "model_store").iterdir()
    }
