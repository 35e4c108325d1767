"""A data set that a small network learns in seconds, and a run trained on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.evaluation.calibrate import calibrate
from service.training.loop import train
from service.training.options import TrainOptions

COLOURS = {"circle": (200, 40, 40), "square": (40, 180, 60), "triangle": (50, 70, 210)}
TRAIN, VAL = 24, 6


def draw(shape: str, random: np.random.Generator) -> Image.Image:
    """One coloured shape somewhere on grey."""
    width, height = (int(side) for side in random.integers(64, 96, 2))
    image = Image.new("RGB", (width, height), (int(random.integers(90, 160)),) * 3)
    size = int(random.integers(36, 56))
    x, y = (int(random.integers(0, side - size)) for side in (width, height))
    canvas, colour = ImageDraw.Draw(image), COLOURS[shape]
    if shape == "circle":
        canvas.ellipse((x, y, x + size, y + size), colour)
    else:
        canvas.regular_polygon((x + size // 2, y + size // 2, size // 2), 4 if shape == "square" else 3, fill=colour)
    return image


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` and ``val/`` with JPEGs of three shapes, each in its own colour."""
    root = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for shape in COLOURS:
            folder = root / split / shape
            folder.mkdir(parents=True)
            for index in range(count):
                draw(shape, random).save(folder / f"{index:02}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained and nothing more; tests copy it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(
        TrainOptions(
            network="ms_mobilenet_v1_025",
            data=shapes,
            out=out,
            resolution=64,
            epochs=4,
            batch_size=6,
            learning_rate=0.02,
            min_scale=0.6,
            ema_epochs=0,
            calibration_share=0.3,
            dataset="Shapes",
            device="cpu",
            precision="float32",
            workers=0,
        )
    )
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def calibrated(trained: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run, calibrated; tests that write copy it."""
    out = Path(shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "run"))
    calibrate(out, shapes, "cpu", workers=0)
    return out
