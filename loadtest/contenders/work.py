"""What every contender computes: the same decoder, the same weights, and by hand the cascade or one network."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from service.calibration.exit_rule import confidence, probabilities
from service.images.decode import decode, stack
from service.images.sizes import in_sizes
from service.inference.predictor import Predictor
from service.networks.cascade import Carried

Kind = Literal["single", "cascade"]
Sizes = tuple[Tensor, ...]  # one image, uint8 (3, r, r) for each stage
Answer = dict[str, str | float]  # {"label": …, "score": …}

VARIABLE = "LOADTEST_JOB"
MAX_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to serve. It reaches the contender's processes as JSON in one environment variable.

    Attributes:
        folder: of the model: of several stages for a cascade, else single-scale.
        precision, runtime: of ``Predictor``. A cascade has the threshold that the model starts with under them.
        port: on 127.0.0.1, where it listens.
        workers: processes that run the network, one a core.
    """

    folder: str
    precision: str
    runtime: str
    port: int
    workers: int

    def environment(self) -> dict[str, str]:
        """The variable that ``from_environment`` reads; and one thread for every library that counts cores."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self)), "OMP_NUM_THREADS": "1"}

    @classmethod
    def from_environment(cls) -> Job:
        """The job of this process."""
        return cls(**json.loads(os.environ[VARIABLE]))


class Work:
    """The model of a job in this process, on one core. Synchronous; any thread may call."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(Path(job.folder), "cpu", job.precision, runtime=job.runtime)
        self._spec = self.predictor.spec
        self._threshold = self._spec.start_threshold(self.predictor.runtime, self.predictor.precision)
        for size in range(MAX_BATCH_SIZE, 0, -1):  # or the first batches of some sizes would choose their kernels
            self.predictor.answers(self.predictor.noise(size))

    def decode(self, data: bytes) -> Sizes:
        """An encoded photograph -> uint8 (3, r, r) for each stage."""
        return in_sizes(decode(data, self._spec.preprocessing), self._spec.resolutions)

    @torch.inference_mode()
    def answer(self, images: Sequence[Sizes]) -> list[Answer]:
        """Decoded photographs, run as one batch -> their answers, in order."""
        answers, carried = self.first(images)
        rows = torch.arange(len(images))
        for stage in range(1, self._spec.depth):
            unsure = self.unsure(answers[rows])
            if not len(unsure):
                break
            rows, carried = rows[unsure], tuple(each[unsure] for each in carried)
            logits, carried = self.predictor.run(stage, stack([images[row][stage] for row in rows.tolist()]), carried)
            answers[rows] = probabilities(logits, self._spec.temperatures[stage])
        scores, best = answers.max(dim=1)
        return [
            {"label": self._spec.classes[index], "score": score}
            for index, score in zip(best.tolist(), scores.tolist(), strict=True)
        ]

    def first(self, images: Sequence[Sizes]) -> tuple[Tensor, Carried]:
        """What the first stage says of decoded photographs, (B, K), and hands on."""
        logits, carried = self.predictor.run(0, stack([sizes[0] for sizes in images]), ())
        return probabilities(logits, self._spec.temperatures[0]), carried

    def unsure(self, answers: Tensor) -> Tensor:
        """A stage's probabilities (B, K) -> rows that the next stage is to run for, int64."""
        return (confidence(answers) <= self._threshold).nonzero().flatten()
