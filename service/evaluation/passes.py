"""Runs every stage once over a set of photographs. The result for any threshold is then computed from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.calibration.exit_rule import confidence, end_counts, end_stages, probabilities
from service.errors import BrokenModel, DataError
from service.inference.device import cores
from service.inference.predictor import Predictor
from service.log import logger
from service.model_spec import SPEC, ModelSpec
from service.training.data import CentreCrop, Photographs, loader

Bools = npt.NDArray[np.bool_]

Ints = npt.NDArray[np.int64]

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of every stage for n images, from which those at any threshold follow.

    Attributes:
        confidence: that of every stage except the last, (n, stages - 1).
        answers: class indices (n, stages).
        targets: the true classes, (n,).
    """

    confidence: npt.NDArray[np.float64]
    answers: Ints
    targets: Ints

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def right(self) -> Bools:
        """Whether each answer is right, (n, stages)."""
        return np.asarray(self.answers == self.targets[:, None])

    @property
    def last(self) -> Ints:
        """The last stage's answers, (n,)."""
        return self.answers[:, -1]

    def exited(self, threshold: float) -> Bools:
        """Whether each image would have exited before the last stage, (n,)."""
        return np.asarray(end_stages(self.confidence, threshold) < self.answers.shape[1] - 1)

    def ends(self, threshold: float) -> list[float]:
        """The share of images that would have exited at each stage."""
        return [count / len(self) for count in end_counts(self.confidence, threshold)]

    def at(self, threshold: float) -> Ints:
        """The answers at this threshold, (n,)."""
        return self.answers[np.arange(len(self)), end_stages(self.confidence, threshold)]

    def accuracy(self, threshold: float) -> float:
        """The share of all images with a right answer at this threshold."""
        return float((self.at(threshold) == self.targets).mean())


@dataclass(frozen=True, slots=True)
class Passes:
    """Logits float32 (n, K) of each stage, targets int64 (n,), and the files that could not be read.

    The target of a photograph without a class is -1.
    """

    logits: tuple[Tensor, ...]
    targets: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def answers(self, temperatures: Sequence[float] | None = None) -> Answers:
        """The answers from the logits, with confidences at ``temperatures`` (one per stage), or at 1."""
        scales = temperatures or (1.0,) * len(self.logits)
        early = [
            confidence(probabilities(logits, scale)).numpy()
            for logits, scale in zip(self.logits[:-1], scales, strict=False)
        ]
        sure = np.stack(early, axis=1) if early else np.empty((len(self), 0))
        said = np.stack([logits.argmax(1).numpy() for logits in self.logits], axis=1)
        return Answers(sure, said, self.targets.numpy())


def run_passes(
    predictor: Predictor,
    photographs: Photographs,
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Passes:
    """Decode photographs as the server does, and run every stage on all of them.

    Args:
        predictor: the model.
        photographs: the photographs to use.
        workers: number of processes that decode; None means one per core.
        on_batch: called with the number of photographs in each finished batch.

    Raises:
        DataError: none of the photographs could be read.
        BrokenModel: outputs are not finite, for example because training diverged.
    """
    logits: list[list[Tensor]] = []
    targets: list[Tensor] = []
    unreadable: list[str] = []
    crop = CentreCrop(predictor.spec.preprocessing)
    processes = cores() if workers is None else workers
    for batch in loader(photographs, crop, BATCH_SIZE, processes):
        unreadable += batch.unreadable
        if len(batch.targets):
            logits.append([each.float() for each in predictor.answers_to(batch.images)])
            targets.append(batch.targets)
        on_batch(len(batch.targets) + len(batch.unreadable))
    if not targets:
        raise DataError(f"none of {len(photographs)} photographs could be read", field="data")
    passes = Passes(tuple(map(torch.cat, zip(*logits, strict=True))), torch.cat(targets), tuple(unreadable))
    lost = int((~torch.stack([each.isfinite().all(1) for each in passes.logits]).all(0)).sum())
    if lost:
        raise BrokenModel(
            f"{predictor.spec.title} answers {lost} of {len(passes)} photographs with outputs that are not finite",
            field="model",
            value=predictor.spec.title,
        )
    return passes


def check_classes(photographs: Photographs, spec: ModelSpec) -> Photographs:
    """The photographs with the model's classes, which must include theirs. Logs classes without photographs.

    Raises:
        DataError: a folder is not a class of the model; the first such folders are named.
    """
    shown, known = set(photographs.folders) - set(photographs.empty), set(spec.class_folders)
    if shown - known:
        where = photographs.paths[0].parents[1]
        raise DataError(
            f"{where} has {len(photographs.folders)} class folders and {SPEC} of {spec.title} names {len(known)}; "
            f"not in both: {', '.join(sorted(shown ^ known)[:5])}",
            field="data",
            value=len(photographs.folders),
            bound=len(known),
        )
    of_model = photographs.of_classes(spec.class_folders)
    if of_model.empty:
        logger.warning(
            "%d of %d classes have no photograph here and are not evaluated: %s",
            len(of_model.empty), len(spec.class_folders), ", ".join(of_model.empty[:5]),
        )  # fmt: skip
    return of_model
