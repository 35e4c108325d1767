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
    tested = dataclasses.replace(spec, preprocessing=_at(spec.preprocessing, resolution), stages=stages)
    return Predictor(load_network(folder, spec), tested, where, choose_precision(precision, where))


def _at(preprocessing: Preprocessing, resolution: int) -> Preprocessing:
    """The same at another size."""
    if preprocessing == Preprocessing.at(preprocessing.crop):
        return Preprocessing.at(resolution)
    resize = round(resolution * preprocessing.resize / preprocessing.crop)
    return dataclasses.replace(preprocessing, resize=resize, crop=resolution)


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
    passes = read_passes(path, predictor.depth)
    if passes is None:
        passes = run_passes(predictor, photographs, workers, on_batch)
        with contextlib.suppress(OSError):  # it is only a cache
            write_passes(path, passes)
    else:
        on_batch(len(photographs))
    return passes


def read_passes(path: Path, depth: int) -> Passes | None:
    """What ``write_passes`` kept of a network of ``depth`` stages; None where there is nothing that can be read.

    Files of earlier versions have two stages by name.
    """
    try:
        with path.open("rb") as file, np.load(file) as kept:
            names = [f"logits{stage}" for stage in range(depth)] if "logits0" in kept else ["low", "high"][-depth:]
            logits = tuple(torch.from_numpy(kept[name]).float() for name in names)
            return Passes(logits, torch.from_numpy(kept["targets"]), tuple(kept["unreadable"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_passes(path: Path, passes: Passes) -> None:
    """Keep logits, targets and the names of unreadable files, compressed, in one step. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        arrays: dict[str, Any] = {f"logits{stage}": logits.numpy() for stage, logits in enumerate(passes.logits)}
        unreadable = np.array(passes.unreadable, dtype=np.str_)
        np.savez_compressed(file, targets=passes.targets.numpy(), unreadable=unreadable, **arrays)
    temporary.replace(path)
