"""The quickest options to train with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.training.options import TrainOptions

MakeOptions = Callable[..., TrainOptions]


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
