"""Preparation before the first batch: every worker measures the device, then runs each batch size once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from service.engine.limits import Limits
from service.inference.latency import LatencyTable, measure, measure_single, sizes_up_to
from service.inference.predictor import Predictor


class Preparation:
    """Measures and warms up one predictor. Shared by the worker threads.

    Args:
        predictor: runs the stages.
        single: the single-scale network, to be timed for comparison; None skips that.
        limits: on the batch size.
    """

    def __init__(self, predictor: Predictor, single: Predictor | None, limits: Limits) -> None:
        self._predictor = predictor
        self._single = single
        self._limits = limits

    @property
    def model(self) -> str:
        """Name and version."""
        return self._predictor.spec.reference

    def use_one_core(self) -> None:
        """Let the calling thread compute with one core, as a worker does."""
        if self._predictor.device.type == "cpu":
            torch.set_num_threads(self._predictor.threads)

    def measure(self) -> LatencyTable:
        """The latency table as the calling thread measures it, for all possible batch sizes."""
        table = measure(self._predictor, sizes=sizes_up_to(self._limits.max_batch_size))
        return table if self._single is None else measure_single(table, self._single)

    def free_single(self) -> None:
        """Free the single-scale network after its measurement: it needs the memory of a second network."""
        self._single = None

    def sizes(self, table: LatencyTable) -> tuple[int, ...]:
        """Size of a full batch of each stage."""
        return tuple(table.best_size(stage, self._limits.max_batch_size) for stage in range(self._predictor.depth))

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Run every possible batch size once, so that no request pays for it."""
        for size in range(max(sizes), 0, -1):
            self._predictor.answers(self._predictor.noise(size))
