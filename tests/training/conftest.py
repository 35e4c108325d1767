"""A data set that a small network learns in seconds, and the quickest options to train with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.training.options import TrainOptions

COLOURS = {"circle": (200, 40, 40), "square": (40, 180, 60), "triangle": (50, 70, 210)}
TRAIN, VAL = 24, 6

MakeOptions = Callable[..., TrainOptions]


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


@pytest.fixture
def make_options(shapes: Path, tmp_path: Path) -> MakeOptions:
    """``make_options(**changed)``: the smallest network at the smallest resolution, two epochs of six steps."""

    def make(**changed: object) -> TrainOptions:
        quick: dict[str, object] = {
            "network": "ms_mobilenet_v1_025",
            "data": shapes,
            "out": tmp_path / "run",
            "resolution": 64,
            "epochs": 2,
            "batch_size": 8,
            "calibration_share": 0.3,
            "device": "cpu",
            "precision": "float32",
            "workers": 0,
        }
        return TrainOptions(**(quick | changed))  # type: ignore[arg-type]

    return make


@pytest.fixture
def spoilt(shapes: Path, tmp_path: Path) -> Path:
    """``shapes`` with a corrupt JPEG, an empty file and a text named .jpg among the circles."""
    root = tmp_path / "spoilt"
    shutil.copytree(shapes, root)
    circles = root / "train" / "circle"
    whole = (circles / "00.jpg").read_bytes()
    (circles / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    (circles / "empty.jpg").touch()
    (circles / "text.jpg").write_text("no photograph")
    return root
