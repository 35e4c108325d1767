"""Photographs decoded once: the same pixels kept or not, within the budget, and what cannot be read stays an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from service.errors import InvalidImage
from service.images.decode import photograph
from service.training import pixels
from service.training.data import Photographs, find
from service.training.pixels import DecodedPhotographs, decoded

CPU = torch.device("cpu")


def test_kept_pixels_are_those_of_the_file(shapes: Path) -> None:
    photographs = find(shapes, "train")
    kept = DecodedPhotographs(photographs, 512, 1e9, CPU)
    for index, path in enumerate(photographs.paths):
        assert torch.equal(kept(path, index), pil_to_tensor(photograph(path.read_bytes())))


def test_kept_pixels_need_no_file(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "moved")
    photographs = find(tmp_path / "moved", "train")
    kept = DecodedPhotographs(photographs, 512, 1e9, CPU)
    shutil.rmtree(tmp_path / "moved")
    assert kept(photographs.paths[0], 0).shape[0] == 3


def test_beyond_the_budget_photographs_are_read_each_time(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = find(shapes, "train")
    size = pil_to_tensor(photograph(photographs.paths[0].read_bytes())).numel()
    monkeypatch.setattr(pixels, "CHUNK_BYTES", 3 * size)
    some = DecodedPhotographs(photographs, 512, 5.5 * size, CPU)
    assert 2 <= len(some.kept) < len(photographs)
    everything = DecodedPhotographs(photographs, 512, 1e9, CPU)
    for index, path in enumerate(photographs.paths):
        assert torch.equal(some(path, index), everything(path, index))


@pytest.mark.parametrize("budget", [0, 1e9])
def test_large_photographs_are_reduced_kept_or_not(tmp_path: Path, budget: float) -> None:
    Image.effect_mandelbrot((400, 300), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "large.png")
    photographs = Photographs(("a",), (tmp_path / "large.png",), (0,))
    given = DecodedPhotographs(photographs, 150, budget, CPU)(photographs.paths[0], 0)
    assert given.shape == (3, 150, 200)
    assert given.dtype == torch.uint8


@pytest.mark.parametrize("budget", [0, 1e9])
def test_what_cannot_be_read_is_an_error_when_asked_for(spoilt: Path, budget: float) -> None:
    photographs = find(spoilt, "train")
    given = DecodedPhotographs(photographs, 512, budget, CPU)
    failed = set()
    for index, path in enumerate(photographs.paths):
        try:
            given(path, index)
        except (InvalidImage, OSError):
            failed.add(path.name)
    assert failed == {"corrupt.jpg", "empty.jpg", "text.jpg"}


ANOTHER = torch.device("meta")  # as a GPU: none is needed to say where pixels belong


@pytest.mark.parametrize(("budget", "device"), [(1e9, ANOTHER), (1e5, CPU), (0, CPU)])
def test_only_what_fits_as_a_whole_goes_to_a_gpu(shapes: Path, budget: float, device: torch.device) -> None:
    photographs = find(shapes, "train")
    given = decoded(photographs, 512, budget, ANOTHER)
    assert given.device == device
    assert given(photographs.paths[0], 0).device == device
    assert decoded(photographs, 512, budget, CPU).device == CPU


def test_processes_share_the_memory_of_a_machine(shapes: Path) -> None:
    photographs = find(shapes, "train")
    size = sum(pil_to_tensor(photograph(path.read_bytes())).numel() for path in photographs.paths)
    alone, one_of_four = (decoded(photographs, 512, size, CPU, processes) for processes in (1, 4))
    assert len(alone.kept) == len(photographs)
    assert 0 < len(one_of_four.kept) < len(photographs) / 2
