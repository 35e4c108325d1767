"""Seconds of each stage at each batch size, measured on this machine; used for queues and deadlines."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from service.errors import DataError
from service.inference.predictor import Predictor

SIZES = (1, 2, 4, 8, 16, 32)
BUDGET_SECONDS = 5.0
RUNS = 3  # at least; for small batches as many as fit in
RUN_SECONDS = 0.05

# A larger batch must be this much faster per image to be worth the longer wait for it.
WORTHWHILE = 1.05

# Cost of a batch besides its compute, in queues, memory and Python: see loadtest/engine_alone.py.
BATCH_SECONDS = 0.0003

Times = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds of one batch by its size, for each stage, with one batch per worker at a time.

    ``single`` is for the single-scale network, the last stage without those before it, at the same resolution; empty if
    it was not measured.
    """

    stages: tuple[Times, ...]
    single: Times = field(default_factory=dict)

    def seconds(self, stage: int, size: float) -> float:
        """Seconds of one batch of ``size`` images: interpolated, and proportional outside the measured range."""
        return _interpolated(self.stages[stage], size)

    def single_seconds(self, size: float) -> float:
        """The same for the single-scale network; 0 if it was not measured."""
        return _interpolated(self.single, size) if self.single else 0.0

    def best_size(self, stage: int, limit: int) -> int:
        """The smallest batch, of at most ``limit`` images and no more than were measured, that is about as fast as
        any."""
        return _best_size(self.stages[stage], limit)

    def seconds_per_image(self, limit: int) -> tuple[float, ...]:
        """Worker seconds per image at each stage, in batches of the best size up to ``limit``."""
        return tuple(_per_image(times, limit) for times in self.stages)

    def single_seconds_per_image(self, limit: int) -> float | None:
        """The same for the single-scale network; None if it was not measured."""
        return _per_image(self.single, limit) if self.single else None

    def break_even(self, limit: int) -> float | None:
        """Share of images that must end at the first stage for the cascade to take as long as the single-scale network.

        The others are assumed to run every stage, all in batches of the best size up to ``limit``. Above 1 the cascade
        always takes longer. None for a single stage, or if the single-scale network was not measured.
        """
        single = self.single_seconds_per_image(limit)
        first, *later = self.seconds_per_image(limit)
        return None if single is None or not later else 1 - (single - first) / sum(later)

    @classmethod
    def mean(cls, tables: Sequence[LatencyTable]) -> LatencyTable:
        """Mean of tables measured at the same time, at the sizes that all of them have."""

        def merged(maps: Sequence[Times]) -> dict[int, float]:
            return {size: fmean(m[size] for m in maps) for size in maps[0] if all(size in m for m in maps)}

        stages = tuple(merged(maps) for maps in zip(*(table.stages for table in tables), strict=True))
        return cls(stages, merged([table.single for table in tables]) if all(t.single for t in tables) else {})

    def as_json(self) -> dict[str, Any]:
        """For ``of_json``, via JSON."""
        return {"stages": list(self.stages), "single": self.single}

    @classmethod
    def of_json(cls, raw: Mapping[str, Any]) -> LatencyTable:
        """Inverse of ``as_json``, also for tables of the first version. Raises arbitrary exceptions for other input."""
        stages = raw["stages"] if "stages" in raw else (raw["low"], raw["high"])  # of the first version
        table = cls(tuple(map(_times, stages)), _times(raw.get("single") or {}))
        if not stages or not all(table.stages):
            raise ValueError("each stage must have times")
        return table


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """A latency table in a file, with its model. Profiles of earlier versions name no model and fit any."""

    table: LatencyTable
    model: str = ""
    runtime: str = ""
    precision: str = ""

    @classmethod
    def of(cls, predictor: Predictor, table: LatencyTable) -> LatencyProfile:
        """The profile of ``predictor``."""
        return cls(table, predictor.spec.reference, predictor.runtime, predictor.precision)

    def fits(self, predictor: Predictor) -> bool:
        """Whether it was measured with this model, runtime and precision."""
        depth = len(self.table.stages) == predictor.spec.depth
        return depth and (not self.model or self == LatencyProfile.of(predictor, self.table))

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        raw = {
            "model": self.model,
            "runtime": self.runtime,
            "precision": self.precision,
            **self.table.as_json(),
        }
        path.write_text(json.dumps(raw, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> LatencyProfile:
        """Read a profile of this or an earlier version.

        Raises:
            DataError: the file cannot be read, or is not such a profile.
        """
        try:
            raw = json.loads(path.read_text())
            table = LatencyTable.of_json(raw)
            names = {name: str(raw.get(name, "")) for name in ("model", "runtime", "precision")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a latency profile: {error}", field="profile", value=str(path)) from error
        return cls(table, **names)


def sizes_up_to(most: int) -> list[int]:
    """The batch sizes to measure for batches of at most ``most`` images."""
    last = min(most, SIZES[-1])
    return [*(size for size in SIZES if size < last), last]


def measure(
    predictor: Predictor,
    budget: float = BUDGET_SECONDS,
    sizes: Sequence[int] = SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyTable:
    """Time every stage at each size, in this thread, within ``budget`` seconds, but at least at the smallest.

    Args:
        clock: counts the seconds. Use ``time.process_time`` if this process computes nothing else and other processes
            have priority.
    """
    began = clock()
    stages: list[dict[int, float]] = [{} for _ in range(predictor.spec.depth)]
    for size in sizes:
        last = sum(times[max(times)] for times in stages if times)
        if last and clock() - began + 2 * (RUNS + 1) * last > budget:
            break
        for times, seconds in zip(stages, _best(predictor, size, clock), strict=True):
            times[size] = seconds
    return LatencyTable(tuple(map(_rising, stages)))


def measure_single(
    table: LatencyTable, single: Predictor, clock: Callable[[], float] = time.perf_counter
) -> LatencyTable:
    """``table`` with the times of the single-scale network, measured in this thread at the same sizes."""
    if single.depth == 1 and len(table.stages) == 1:
        return replace(table, single=table.stages[0])
    return replace(table, single=_rising({size: _best(single, size, clock)[0] for size in table.stages[-1]}))


def _best(predictor: Predictor, size: int, clock: Callable[[], float]) -> list[float]:
    """The shortest of several runs of each stage, because disturbance only adds time."""
    images = predictor.noise(size)
    predictor.timed(images)  # chooses its kernels
    runs: list[list[float]] = []
    began = clock()
    while len(runs) < RUNS or clock() - began < RUN_SECONDS:
        runs.append(predictor.timed(images, clock))
    return [min(times) for times in zip(*runs, strict=True)]


def _rising(times: Times) -> dict[int, float]:
    """The same without disturbed values: no batch takes longer than a larger one."""
    return {size: min(times[other] for other in times if other >= size) for size in times}


def _interpolated(times: Times, size: float) -> float:
    sizes = sorted(times)
    above = bisect_left(sizes, size)
    if above == 0:
        return times[sizes[0]] * size / sizes[0]
    if above == len(sizes):
        return times[sizes[-1]] * size / sizes[-1]
    below, beyond = sizes[above - 1], sizes[above]
    weight = (size - below) / (beyond - below)
    return times[below] + weight * (times[beyond] - times[below])


def _best_size(times: Times, limit: int) -> int:
    most = min(limit, max(times))
    each = {size: (_interpolated(times, size) + BATCH_SECONDS) / size for size in (*SIZES, most) if size <= most}
    fastest = min(each.values())
    return min(size for size, seconds in each.items() if seconds <= fastest * WORTHWHILE)


def _per_image(times: Times, limit: int) -> float:
    size = _best_size(times, limit)
    return _interpolated(times, size) / size


def _times(raw: Mapping[str, float]) -> dict[int, float]:
    times = {int(size): float(seconds) for size, seconds in raw.items()}
    if not all(size > 0 and 0 < seconds < math.inf for size, seconds in times.items()):
        raise ValueError("sizes and seconds must be positive")
    return times
