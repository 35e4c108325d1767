"""Logits kept from one look at the data to the next, so that a figure costs one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

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
    tested = dataclasses.replace(spec, preprocessing=Preprocessing.at(resolution))
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
            low, high, targets = (torch.from_numpy(kept[name]) for name in ("low", "high", "targets"))
            return Passes(low, high, targets, tuple(kept["unreadable"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, passes: Passes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            low=passes.low.numpy(),
            high=passes.high.numpy(),
            targets=passes.targets.numpy(),
            unreadable=np.array(passes.unreadable, dtype=np.str_),
        )
    temporary.replace(path)
