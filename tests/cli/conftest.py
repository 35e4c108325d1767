"""A data set to train on in seconds, and the command itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.cli import main
from service.cli.console import output

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


@pytest.fixture(autouse=True, scope="session")
def _wide_tables() -> None:
    """Tables fit, whatever terminal the tests run in."""
    output.width = 200


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def lowfirst(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """``lowfirst(*arguments)`` runs the command in this process, as its entry point does, with an empty store."""
    for name, value in {"MODEL_STORE": str(tmp_path / "store"), "DEVICE": "cpu", "PRECISION": "float32"}.items():
        monkeypatch.setenv(f"LOWFIRST_{name}", value)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowfirst", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        captured = capsys.readouterr()
        return Done(ended.value.code, captured.out, captured.err)

    return run
