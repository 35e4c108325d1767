"""The documented path: one's own folder of photographs, starting from the shipped model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app

SUBJECTS = ("church", "gas pump", "parachute")
TRAIN, VAL = range(10), range(100, 104)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn ones, in folders of one's own naming: ``train`` and ``val``."""
    spec = importlib.util.spec_from_file_location("draw", Path(__file__).parent / "examples" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    root = tmp_path_factory.mktemp("photographs")
    for split, seeds in (("train", TRAIN), ("val", VAL)):
        for subject in SUBJECTS:
            folder = root / split / f"my {subject}"
            folder.mkdir(parents=True)
            for seed in seeds:
                draw.draw(subject, seed).resize((160, 120)).save(folder / f"{seed}.jpg")
    return root


def _lowfirst(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_few_epochs_from_the_shipped_model_tell_ones_own_classes_apart(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    _lowfirst(
        "train", "ms_mobilenet_v1_050", "--data", photographs, "--out", run, "--resolution", 96, "--epochs", 4,
        "--batch-size", 10, "--learning-rate", 0.02, "--init", "imagenette-mobilenet", "--workers", 0,
    )  # fmt: skip
    measured = json.loads(_lowfirst("evaluate", run, "--data", photographs, "--workers", 0, "--json"))
    assert measured["images"] == len(SUBJECTS) * len(VAL)
    assert measured["stages"]["high"] >= 0.9
