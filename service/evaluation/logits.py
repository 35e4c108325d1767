"""Logits kept from one look at the data to the next, so that a figure costs one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import service
from service.evaluation.passes import Passes, run_passes
from service.images.transforms import Preprocessing
from service.inference.device import choose_device, choose_precision
from service.inference.predictor import Predictor, load_network
from service.model_spec import ModelSpec
from service.training.data import Photographs

FOLDER = "logits"


def predictor_at(folder: Path, spec: ModelSpec, resolution: int, device: str, precision: str) -> Predictor:
    """The model in ``folder``, eager, tested at ``resolution`` pixels. Raises as ``Predictor.load``."""
    where = choose_device(device)
    sides = [stage.resolution * resolution // spec.preprocessing.crop for stage in spec.stages]
    stages = tuple(dataclasses.replace(stage, resolution=side) for stage, side in zip(spec.stages, sides, strict=True))
    tested = dataclasses.replace(spec, preprocessing=Preprocessing.at(resolution), stages=stages)
    return Predictor(load_network(folder, spec), tested, where, choose_precision(precision, where))


def kept_passes(
    predictor: Predictor,
    photographs: Photographs,
    cache: Path,
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Passes:
    """As ``run_passes``, or what it gave before for the same weights, size, precision and photographs.

    Args:
        cache: folder to keep them in, as ``<pixels>-<precision>-<digest>.npz``.
    """
    spec = predictor.spec
    digest = hashlib.sha256(spec.weights_sha256.encode())
    for part in (service.__version__, predictor.runtime, str(predictor.device.type), str(spec.preprocessing)):
        digest.update(part.encode())
    for path in photographs.paths:
        digest.update(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    name = f"{spec.preprocessing.crop}-{predictor.precision}-{digest.hexdigest()[:16]}.npz"
    path = cache / name
    passes = _read(path)
    if passes is None:
        passes = run_passes(predictor, photographs, workers, on_batch)
        with contextlib.suppress(OSError):  # it is only a cache
            _write(path, passes)
    else:
        on_batch(len(photographs))
    return passes


def _read(path: Path) -> Passes | None:
    """None where nothing is kept, or nothing that can be read."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            stages = sum(name.startswith("logits") for name in kept)
            logits = tuple(torch.from_numpy(kept[f"logits{stage}"]).float() for stage in range(stages))
            if not logits:
                return None
            return Passes(logits, torch.from_numpy(kept["targets"]), tuple(kept["unreadable"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, passes: Passes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        arrays: dict[str, Any] = {f"logits{stage}": logits.numpy() for stage, logits in enumerate(passes.logits)}
        unreadable = np.array(passes.unreadable, dtype=np.str_)
        np.savez_compressed(file, targets=passes.targets.numpy(), unreadable=unreadable, **arrays)
    temporary.replace(path)
