"""Both passes over a set of photographs, once; every threshold is then a question of arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.errors import BrokenModel, DataError
from service.inference.device import cores
from service.inference.exit_rule import confidence, probabilities
from service.inference.predictor import Predictor
from service.model_spec import SPEC, ModelSpec
from service.stages import Temperature
from service.training.data import CentreCrop, Photographs, loader

Bools = npt.NDArray[np.bool_]

BATCH_SIZE = 32
UNIT = Temperature()


@dataclass(frozen=True, slots=True)
class Answers:
    """What two passes say of n images; what any threshold would have answered follows.

    Attributes:
        confidence: of each low answer, (n,).
        low, high, targets: both passes' answers and the truth, class indices (n,).
    """

    confidence: npt.NDArray[np.float64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def low_right(self) -> Bools:
        """Whether each low answer is, (n,)."""
        return np.asarray(self.low == self.targets)

    @property
    def high_right(self) -> Bools:
        """Whether each high answer is, (n,)."""
        return np.asarray(self.high == self.targets)

    def exited(self, threshold: float) -> Bools:
        """Whether each image would have, (n,)."""
        return self.confidence > threshold

    def at(self, threshold: float) -> npt.NDArray[np.int64]:
        """What would have been answered, (n,)."""
        return np.where(self.exited(threshold), self.low, self.high)

    def accuracy(self, threshold: float) -> float:
        """The share of all images that would have been answered rightly."""
        return float((self.at(threshold) == self.targets).mean())


@dataclass(frozen=True, slots=True)
class Passes:
    """Logits float32 (n, K) of the two heads, targets int64 (n,), and the files that could not be read.

    Of a single-scale network both logits are the same tensor.
    """

    low: Tensor
    high: Tensor
    targets: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def answers(self, temperature: Temperature = UNIT) -> Answers:
        """What the logits say; the confidence at ``temperature``."""
        sure = confidence(probabilities(self.low, temperature.low)).numpy()
        return Answers(sure, self.low.argmax(1).numpy(), self.high.argmax(1).numpy(), self.targets.numpy())


def run_passes(
    predictor: Predictor,
    photographs: Photographs,
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Passes:
    """Decode as the server does, run the low and the high pass on everything.

    Args:
        predictor: the model.
        photographs: what to run on.
        workers: processes that decode; None is one a core.
        on_batch: told how many photographs were just done.

    Raises:
        DataError: none of the photographs could be read.
        BrokenModel: it answers with numbers that are not finite, as after a training that diverged.
    """
    low, high, targets = [], [], []
    unreadable: list[str] = []
    crop = CentreCrop(predictor.spec.preprocessing)
    processes = cores() if workers is None else workers
    for batch in loader(photographs, crop, BATCH_SIZE, processes):
        unreadable += batch.unreadable
        if len(batch.targets):
            low_logits, high_logits = predictor.heads(batch.images)
            low.append(low_logits.float().cpu())
            high.append(high_logits.float().cpu())
            targets.append(batch.targets)
        on_batch(len(batch.targets) + len(batch.unreadable))
    if not targets:
        raise DataError(f"none of {len(photographs)} photographs could be read", field="data")
    passes = Passes(torch.cat(low), torch.cat(high), torch.cat(targets), tuple(unreadable))
    lost = int((~(passes.low.isfinite() & passes.high.isfinite()).all(1)).sum())
    if lost:
        raise BrokenModel(
            f"{predictor.spec.title} answers {lost} of {len(passes)} photographs with numbers that are not finite",
            field="model",
            value=predictor.spec.title,
        )
    return passes


def check_classes(photographs: Photographs, spec: ModelSpec) -> None:
    """Whether the photographs' folders are the model's.

    Raises:
        DataError: naming the first folder that differs.
    """
    found, known = photographs.folders, spec.class_folders
    if tuple(found) == tuple(known):
        return
    foreign = sorted(set(found) ^ set(known))
    raise DataError(
        f"{photographs.paths[0].parents[1]} has {len(found)} class folders and {SPEC} of {spec.title} names "
        f"{len(known)}; not in both: {', '.join(foreign[:5])}",
        field="data",
        value=len(found),
        bound=len(known),
    )
