"""A run trained on the shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.evaluation.calibrate import calibrate
from service.training.loop import train
from service.training.options import TrainOptions


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
    calibrate(out, shapes, device="cpu", workers=0)
    return out
