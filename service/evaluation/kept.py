"""A run without its weights: its options, its log and its logits, small enough to be committed with the documents."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.errors import BrokenModel
from service.evaluation.logits import predictor_at
from service.evaluation.passes import Passes, check_classes, run_passes
from service.networks.cost import cost
from service.networks.registry import depth
from service.store import read_spec
from service.training.data import find
from service.training.run_folder import LOG, OPTIONS

LOGITS = "val.npz"
SPLIT = "val"


@dataclass(frozen=True, slots=True)
class Kept:
    """What ``keep`` wrote of a run.

    Attributes:
        options: those that decide what was trained, none that names a place on a machine; how long and on what.
        log: the lines of ``log.csv``.
        passes: logits (n, K) of every stage on the validation photographs, in the order of their paths.
        half: the same of a single-scale network at half its resolution; None where it was not kept.
    """

    options: Mapping[str, Any]
    log: tuple[Mapping[str, str], ...]
    passes: Passes
    half: Passes | None

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Raises BrokenModel: a file is missing or cannot be read."""
        try:
            options = json.loads((folder / OPTIONS).read_text())
            with (folder / LOG).open(newline="") as file:
                log = tuple(csv.DictReader(file))
            with np.load(folder / LOGITS) as arrays:
                targets = torch.from_numpy(arrays["targets"].astype(np.int64))
                stages = [torch.from_numpy(arrays[f"logits{i}"]).float() for i in range(depth(options["network"]))]
                half = torch.from_numpy(arrays["half"]).float() if "half" in arrays else None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise BrokenModel(f"{folder} is not a stored run: {error}", field="runs", value=str(folder)) from error
        return cls(options, log, Passes(tuple(stages), targets), None if half is None else Passes((half,), targets))

    @property
    def mmacs(self) -> tuple[float, ...]:
        """Millions of multiply-adds of each stage alone."""
        return self._cost(self.options["resolution"])

    @property
    def half_mmacs(self) -> float:
        """Those of a single-scale network at half its resolution."""
        return self._cost(self.options["resolution"] // 2)[-1]

    def _cost(self, resolution: int) -> tuple[float, ...]:
        classes = self.passes.logits[0].shape[1]
        return cost(self.options["network"], classes, resolution, self.options["network_options"])


def keep(
    run: Path,
    data: Path,
    into: Path,
    half: bool = False,
    device: str = "auto",
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> None:
    """Write what ``Kept`` reads of the finished ``run`` into the folder ``into``; logits in float16 of a pass in
    float32, of a single-scale network also at ``half`` its resolution.

    Raises:
        NotFound, BrokenModel: see ``store``.
        DataError: photographs of other classes, or none that can be read.
    """
    spec = read_spec(run)
    photographs = check_classes(find(data, SPLIT), spec)
    full = spec.preprocessing.crop
    sizes = {"": full, "half": full // 2} if half else {"": full}
    passes = {
        name: run_passes(predictor_at(run, spec, side, device, "float32"), photographs, workers, on_batch)
        for name, side in sizes.items()
    }
    arrays: dict[str, Any] = {f"logits{stage}": each for stage, each in enumerate(passes[""].logits)}
    if "half" in passes:
        arrays["half"] = passes["half"].logits[0]
    arrays = {name: logits.numpy().astype(np.float16) for name, logits in arrays.items()}
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / LOG, into / LOG)
    (into / OPTIONS).write_text(
        json.dumps({**spec.recipe, **_told(spec.training), "data": spec.dataset}, indent=1) + "\n"
    )
    targets = passes[""].targets.numpy().astype(np.int16)
    np.savez_compressed(into / LOGITS, targets=targets, allow_pickle=False, **arrays)


def _told(training: Mapping[str, Any]) -> dict[str, Any]:
    """What decided the weights beside the options."""
    return {
        name: training[name] for name in ("epochs_done", "train_images", "seconds", "precision") if name in training
    }
