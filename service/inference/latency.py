"""How long each pass takes at each batch size, measured where it will run: what queues and deadlines reckon with."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from service.errors import DataError
from service.inference.predictor import Predictor

Stage = Literal["low", "high"]
STAGES: tuple[Stage, ...] = ("high", "low")

SIZES = (1, 2, 4, 8, 16, 32)
BUDGET_SECONDS = 5.0
RUNS = 3  # at least, and for small batches as many as fit in
RUN_SECONDS = 0.05

# A larger batch must be this much faster an image to be worth the longer wait for it.
WORTHWHILE = 1.05

# What a batch costs beside its pass, in queues, memory and Python: see loadtest/engine_alone.py.
BATCH_SECONDS = 0.0003


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds of one batch by its size, of each pass, with as many batches at a time as there are workers."""

    low: Mapping[int, float]
    high: Mapping[int, float]

    def seconds(self, stage: Stage, size: float) -> float:
        """One batch of ``size`` images: interpolated, and in proportion below and beyond what was measured."""
        times = self.low if stage == "low" else self.high
        sizes = sorted(times)
        above = bisect_left(sizes, size)
        if above == 0:
            return times[sizes[0]] * size / sizes[0]
        if above == len(sizes):
            return times[sizes[-1]] * size / sizes[-1]
        below, beyond = sizes[above - 1], sizes[above]
        weight = (size - below) / (beyond - below)
        return times[below] + weight * (times[beyond] - times[below])

    def best_size(self, stage: Stage, limit: int) -> int:
        """The smallest batch, of at most ``limit`` images and no more than were measured, about as fast as any."""
        most = min(limit, max(self.low if stage == "low" else self.high))
        each = {size: (self.seconds(stage, size) + BATCH_SECONDS) / size for size in (*SIZES, most) if size <= most}
        fastest = min(each.values())
        return min(size for size, seconds in each.items() if seconds <= fastest * WORTHWHILE)

    @classmethod
    def mean(cls, tables: Sequence[LatencyTable]) -> LatencyTable:
        """Of tables measured at the same time; of sizes that all of them have."""

        def merged(maps: Sequence[Mapping[int, float]]) -> dict[int, float]:
            return {size: fmean(m[size] for m in maps) for size in maps[0] if all(size in m for m in maps)}

        return cls(merged([table.low for table in tables]), merged([table.high for table in tables]))

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """What ``write`` wrote.

        Raises:
            DataError: the file cannot be read, or is no such table.
        """
        try:
            raw = json.loads(path.read_text())
            low, high = ({int(k): float(v) for k, v in raw[stage].items()} for stage in ("low", "high"))
            if not low or not high or not all(k > 0 and 0 < v < math.inf for k, v in (*low.items(), *high.items())):
                raise ValueError("sizes and seconds must be positive")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no latency profile: {error}", field="profile", value=str(path)) from error
        return cls(low, high)


def measure(predictor: Predictor, budget: float = BUDGET_SECONDS, sizes: Sequence[int] = SIZES) -> LatencyTable:
    """Time both passes at each size, in this thread, as far as ``budget`` seconds go; at least at the smallest."""
    began = time.monotonic()
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    for size in sizes:
        spent = time.monotonic() - began
        if low and spent + 2 * (RUNS + 1) * (low[max(low)] + high[max(high)]) > budget:
            break
        images = predictor.noise(size)
        _run(predictor, images)  # chooses its kernels
        low[size], high[size] = _best(predictor, images)
    return LatencyTable(_rising(low), _rising(high))


def _best(predictor: Predictor, images: torch.Tensor) -> tuple[float, float]:
    """The shortest of several runs: whatever else the machine does only ever adds."""
    runs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(runs) < RUNS or time.perf_counter() - began < RUN_SECONDS:
        runs.append(_run(predictor, images))
    return min(run[0] for run in runs), min(run[1] for run in runs)


def _rising(times: Mapping[int, float]) -> dict[int, float]:
    """The same without what only disturbance explains: no batch takes longer than a larger one."""
    return {size: min(times[other] for other in times if other >= size) for size in times}


def _run(predictor: Predictor, images: torch.Tensor) -> tuple[float, float]:
    """Seconds of the low and the high pass, until their answers are on the host."""
    began = time.perf_counter()
    state = predictor.low(images)
    state.logits.cpu()
    between = time.perf_counter()
    predictor.high(images, state).cpu()
    return between - began, time.perf_counter() - between
