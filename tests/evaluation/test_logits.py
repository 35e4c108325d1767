"""Logits are kept for what they are of, and computed again for anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from service.evaluation.logits import kept_passes, predictor_at
from service.evaluation.passes import run_passes
from service.inference.predictor import Predictor
from service.store import read_spec
from service.training.data import Photographs, find


@pytest.fixture
def photographs(shapes: Path) -> Photographs:
    return find(shapes, "val")


def _at(run: Path, resolution: int) -> Predictor:
    return predictor_at(run, read_spec(run), resolution, "cpu", "float32")


def test_second_look_reads_what_the_first_one_kept(run: Path, photographs: Photographs, tmp_path: Path) -> None:
    cache, seen = tmp_path / "cache", list[int]()
    first = kept_passes(_at(run, 64), photographs, cache, 0)
    (file,) = cache.iterdir()
    with np.load(file) as kept:
        marked = {**kept, "logits0": kept["logits0"] + 1}
    np.savez(file, **marked)
    second = kept_passes(_at(run, 64), photographs, cache, 0, seen.append)
    assert torch.equal(second.logits[0], first.logits[0] + 1)
    assert torch.equal(second.logits[1], first.logits[1])
    assert torch.equal(second.targets, first.targets)
    assert seen == [len(photographs)]


def test_kept_logits_are_those_of_an_ordinary_pass(run: Path, photographs: Photographs, tmp_path: Path) -> None:
    passes = kept_passes(_at(run, 64), photographs, tmp_path, 0)
    expected = run_passes(Predictor.load(run, "cpu", "float32"), photographs, 0)
    assert all(torch.equal(*both) for both in zip(passes.logits, expected.logits, strict=True))


def test_what_an_earlier_version_kept_of_two_stages_is_read(
    run: Path, photographs: Photographs, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    passes = kept_passes(_at(run, 64), photographs, cache, 0)
    (file,) = cache.iterdir()
    low, high = (logits.numpy() + 1 for logits in passes.logits)
    np.savez(file, low=low, high=high, targets=passes.targets.numpy(), unreadable=np.array([], dtype=np.str_))
    again = kept_passes(_at(run, 64), photographs, cache, 0)
    assert all(torch.equal(now, was + 1) for now, was in zip(again.logits, passes.logits, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_stage_is_kept(stores: Mapping[int, Path], photographs: Photographs, tmp_path: Path, depth: int) -> None:
    folder = stores[depth] / "tiny" / "1"
    first, second = (kept_passes(_at(folder, 64), photographs, tmp_path, 0) for _ in range(2))
    assert len(first.logits) == len(second.logits) == depth
    assert all(torch.equal(*both) for both in zip(first.logits, second.logits, strict=True))


def test_other_sizes_weights_and_photographs_are_other_logits(
    run: Path, photographs: Photographs, tmp_path: Path
) -> None:
    other_weights = _at(run, 64)
    other_weights.spec = dataclasses.replace(other_weights.spec, weights_sha256="0" * 64)
    kept_passes(_at(run, 64), photographs, tmp_path, 0)
    for predictor, of in (
        (_at(run, 96), photographs),
        (other_weights, photographs),
        (_at(run, 64), photographs.subset(range(9))),
    ):
        before = set(tmp_path.iterdir())
        assert len(kept_passes(predictor, of, tmp_path, 0)) == len(of)
        assert len(set(tmp_path.iterdir()) - before) == 1


def test_unreadable_files_are_remembered(run: Path, photographs: Photographs, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    spoiled = dataclasses.replace(photographs, paths=(empty, *photographs.paths[1:]))
    for _ in range(2):
        passes = kept_passes(_at(run, 64), spoiled, tmp_path / "cache", 0)
        assert passes.unreadable == (str(empty),)
        assert len(passes) == len(photographs) - 1


def test_spoiled_cache_is_written_again(run: Path, photographs: Photographs, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = kept_passes(_at(run, 64), photographs, cache, 0)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(kept_passes(_at(run, 64), photographs, cache, 0).logits[0], expected.logits[0])
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
