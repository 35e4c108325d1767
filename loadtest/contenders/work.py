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

from service.images.decode import decode, stack
from service.inference.exit_rule import confidence, probabilities
from service.inference.predictor import Predictor

Kind = Literal["single", "cascade"]
Answer = dict[str, str | float]  # {"label": …, "score": …}

VARIABLE = "LOADTEST_JOB"
MAX_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to serve. It reaches the contender's processes as JSON in one environment variable.

    Attributes:
        folder: of the model: multi-scale for a cascade, else single-scale.
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

    def decode(self, data: bytes) -> Tensor:
        """An encoded photograph -> uint8 (3, R, R)."""
        return decode(data, self._spec.preprocessing)

    @torch.inference_mode()
    def answer(self, images: Sequence[Tensor]) -> list[Answer]:
        """Decoded photographs, run as one batch -> their answers, in order."""
        batch = stack(images)
        if self.predictor.is_multi_scale:
            answers = self._cascade(batch)
        else:
            answers = probabilities(self.predictor.single(batch), 1.0)
        scores, best = answers.max(dim=1)
        return [
            {"label": self._spec.classes[index], "score": score}
            for index, score in zip(best.tolist(), scores.tolist(), strict=True)
        ]

    def unsure(self, low: Tensor) -> Tensor:
        """The low pass's probabilities (B, K) -> rows that the high pass is to run for, int64."""
        return (confidence(low) <= self._threshold).nonzero().flatten()

    def _cascade(self, batch: Tensor) -> Tensor:
        state = self.predictor.low(batch)
        answers = probabilities(state.logits, self._spec.temperature.low)
        unsure = self.unsure(answers)
        if len(unsure):
            high = self.predictor.high(batch[unsure], state.rows(unsure))
            answers[unsure] = probabilities(high, self._spec.temperature.high)
        return answers
