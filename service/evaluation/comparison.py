"""Compares runs with their baselines: accuracy and cost on the same photographs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch

from service.calibration.certify import THRESHOLDS
from service.errors import InvalidOption
from service.evaluation.cascade import Cascade, Estimate, gain, gap, matching_cost
from service.evaluation.logits import FOLDER, kept_passes, predictor_at
from service.evaluation.passes import Answers, Bools, Passes, check_classes
from service.evaluation.runs import Run, differences
from service.inference.device import choose_device, choose_precision
from service.inference.predictor import Predictor
from service.networks.cost import cost
from service.networks.registry import OF_SCALES
from service.training.data import Photographs, find

STEP = 32  # pixels between the sizes that a single-scale network is tested at
TIMED_BATCH = {"cpu": 8, "cuda": 64}
TIMED_SECONDS = 0.3
TIMED_RUNS = 5


class Bench:
    """Passes and times of runs on one set of photographs. Each is computed once.

    Args:
        data, split: the photographs.
        cache: folder for the logits of models from the store; a run's logits are in its own folder.
        limit: use only this number of photographs, spread over all; None means all.
        device, precision, workers: as in ``evaluate``.
        on_batch: called with the number of photographs in each finished batch.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        cache: Path,
        limit: int | None = None,
        device: str = "auto",
        precision: str = "float32",
        workers: int | None = None,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        found = find(data, split)
        self.photographs: Photographs = found if limit is None else found.spread(limit)
        self.cache = cache
        self.device = device
        self.precision = choose_precision(precision, choose_device(device))
        if self.precision == "int8":
            raise InvalidOption("precision", precision, "auto, float32, bfloat16 or float16: for PyTorch")
        self.workers = workers
        self.on_batch = on_batch
        self._passes: dict[tuple[Path, int], Passes] = {}
        self._seconds: dict[tuple[str, int], tuple[float, ...]] = {}

    def check(self, run: Run) -> None:
        """Check that the photographs have the run's classes. Raises DataError."""
        self.photographs = check_classes(self.photographs, run.spec)

    def predictor(self, run: Run, resolution: int | None = None) -> Predictor:
        """The predictor of the run's model, at ``resolution`` pixels or at its own size."""
        return predictor_at(run.folder, run.spec, resolution or run.resolution, self.device, self.precision)

    def passes(self, run: Run, resolution: int | None = None) -> Passes:
        """The logits of the run."""
        size = resolution or run.resolution
        if (run.folder, size) not in self._passes:
            cache = run.folder / FOLDER if run.spec.version == 0 else self.cache / run.spec.reference
            predictor = self.predictor(run, size)
            self._passes[run.folder, size] = kept_passes(
                predictor, self.photographs, cache, self.workers, self.on_batch
            )
        return self._passes[run.folder, size]

    def mmacs(self, run: Run, resolution: int | None = None) -> tuple[float, ...]:
        """Millions of multiply-adds of each single stage."""
        of = run.spec.architecture
        if resolution in (None, run.resolution):
            return run.spec.mmacs
        return cost(of.network, of.num_classes, resolution, of.options)

    def milliseconds(self, run: Run, resolution: int | None = None) -> tuple[float, ...]:
        """Milliseconds per image at each stage, in batches of ``timed_batch`` decoded images.

        Measured at the first call, once for all runs of one architecture, because the time does not depend on the
        weights.
        """
        key = repr(run.spec.architecture), resolution or run.resolution
        if key not in self._seconds:
            self._seconds[key] = stage_seconds(self.predictor(run, resolution))
        return tuple(1e3 * seconds for seconds in self._seconds[key])

    def readable(self, passes: Passes) -> Photographs:
        """The photographs that correspond to the rows of ``passes``."""
        unreadable = set(passes.unreadable)
        return self.photographs.subset([i for i, p in enumerate(self.photographs.paths) if str(p) not in unreadable])


def timed_batch(device: torch.device) -> int:
    """Batch size for timing: that of a CPU worker, or enough to fill a GPU."""
    return TIMED_BATCH["cpu" if device.type == "cpu" else "cuda"]


def stage_seconds(predictor: Predictor) -> tuple[float, ...]:
    """Seconds per image at each stage; on a CPU with one thread, as in the server's workers."""
    images = predictor.noise(timed_batch(predictor.device))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor.timed(images)
        runs: list[list[float]] = []
        began = time.perf_counter()
        while len(runs) < TIMED_RUNS or time.perf_counter() - began < TIMED_SECONDS:
            runs.append(predictor.timed(images))
        # the shortest of many runs: whatever else the machine does only ever adds
        return tuple(min(seconds) / len(images[0]) for seconds in zip(*runs, strict=True))
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. Shares are from 0 to 1; ``mmacs`` is the mean per image; ``runs`` are indices in the report."""

    kind: str
    pixels: str
    mmacs: float
    accuracy: float
    runs: tuple[int, ...]
    threshold: float | None = None
    exit_rate: float | None = None
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A multi-scale run compared with its baselines. A field is None if its baseline is missing.

    Attributes:
        single: accuracy of the single-scale network at the high resolution.
        cost_at_its_accuracy: mean cost at which the run is as accurate, relative to the single-scale network's;
            infinite if it never is.
        gain_at_its_cost: gain in accuracy (from 0 to 1) at the same mean cost.
        gap_to_naive: lead over the naive cascade: mean over costs from 0.4 to 1.0 of the last stage's.
        otherwise: training options in which the single-scale runs differ from this run, with both values.
    """

    run: int
    single: float | None = None
    cost_at_its_accuracy: Estimate | None = None
    gain_at_its_cost: Estimate | None = None
    gap_to_naive: Estimate | None = None
    otherwise: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seeds:
    """Runs that differ only in their seed: mean top-1 and its standard error over seeds, from 0 to 1."""

    runs: tuple[int, ...]
    of: str
    mean: float
    error: float


class Group:
    """All runs of one base network.

    Args:
        backbone: its name.
        runs: by index in the report.
        bench: computes their passes.
    """

    def __init__(self, backbone: str, runs: dict[int, Run], bench: Bench) -> None:
        self.backbone = backbone
        self.runs = runs
        self.bench = bench
        self.multi = {index: run for index, run in runs.items() if run.is_multi_scale}
        self.single = {index: run for index, run in runs.items() if not run.is_multi_scale}

    def high_run(self, run: Run) -> int | None:
        """The single-scale run with the same high resolution, the most similar training, and the same seed."""
        return self._partner(run, run.resolution)

    def low_run(self, run: Run) -> int | None:
        """The single-scale run at half the resolution."""
        return self._partner(run, run.resolution // 2)

    def _partner(self, run: Run, resolution: int) -> int | None:
        fitting = [index for index, single in self.single.items() if single.resolution == resolution]

        def unlike(index: int) -> tuple[int, bool, int]:
            return len(differences(run, self.runs[index])), self.runs[index].seed != run.seed, index

        return min(fitting, key=unlike, default=None)

    def base_mmacs(self, index: int) -> float:
        """Millions of multiply-adds of the base network at the size at which a run is compared."""
        run = self.runs[index]
        size = 2 * run.resolution if not run.is_multi_scale and self.is_half(run) else run.resolution
        return self.bench.mmacs(run, size)[-1]

    def sizes(self, run: Run) -> list[int]:
        """The sizes at which a single-scale run is tested: from half its own to its own. If it is itself half the size
        of another run, only its own.
        """
        return [run.resolution] if self.is_half(run) else _between(run.resolution)

    def is_half(self, run: Run) -> bool:
        """Whether its size is half that of another run."""
        return any(other.resolution == 2 * run.resolution for other in self.runs.values())

    def accuracy(self, index: int, resolution: int) -> tuple[float, float]:
        """Millions of multiply-adds per image, and accuracy, of a single-scale run at ``resolution``."""
        run = self.runs[index]
        return self.bench.mmacs(run, resolution)[-1], float(right(self.bench.passes(run, resolution)).mean())

    def averaged(self, index: int) -> tuple[str, float, float] | None:
        """Multi-scale testing of a single-scale run, which averages the logits at half its size and at its own. Returns
        both sizes, their total cost and the accuracy; None for a run that is tested at one size only.
        """
        run = self.runs[index]
        sizes = self.sizes(run)
        if len(sizes) == 1:
            return None
        small, full = (self.bench.passes(run, size) for size in (sizes[0], sizes[-1]))
        is_right = (small.logits[-1] + full.logits[-1]).argmax(1) == full.targets
        mmacs = sum(self.bench.mmacs(run, size)[-1] for size in (sizes[0], sizes[-1]))
        return f"{sizes[0]} + {sizes[-1]}", mmacs, is_right.float().mean().item()

    def answers(self, index: int) -> Answers:
        """The answers of a multi-scale run."""
        run = self.runs[index]
        return self.bench.passes(run).answers(run.spec.temperatures)

    def cascade(self, index: int, costs: Callable[[Run], tuple[float, ...]] | None = None) -> Cascade:
        """The cascade of a multi-scale run. ``costs`` are those of its stages, by default millions of multiply-adds."""
        run = self.runs[index]
        return Cascade.of(self.bench.passes(run), run.spec.temperatures, (costs or self.bench.mmacs)(run))

    def pair(self, index: int) -> tuple[int, int] | None:
        """The low and the high single-scale run for a multi-scale one; None if one of them is missing."""
        run = self.runs[index]
        low, high = self.low_run(run), self.high_run(run)
        return None if low is None or high is None else (low, high)

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """Every such pair once, with its first multi-scale run."""
        found: dict[tuple[int, int], int] = {}
        for index in self.multi:
            pair = self.pair(index)
            if pair is not None:
                found.setdefault(pair, index)
        return found

    def naive(self, pair: tuple[int, int], costs: Callable[[Run], tuple[float, ...]] | None = None) -> Cascade:
        """The naive cascade of a pair."""
        runs = [self.runs[each] for each in pair]
        each = [(costs or self.bench.mmacs)(run)[-1] for run in runs]
        return Cascade.naive([self.bench.passes(run) for run in runs], each)

    def default(self, index: int) -> float | None:
        """The default threshold of a multi-scale run, if it is calibrated."""
        spec = self.runs[index].spec
        return None if spec.default_threshold is None else spec.start_threshold("eager", self.bench.precision)

    def rows(self) -> list[Row]:
        """The rows of the table."""
        rows = []
        for index, run in self.single.items():
            rows += [Row("single-scale", str(s), *self.accuracy(index, s), (index,)) for s in self.sizes(run)]
            averaged = self.averaged(index)
            if averaged is not None:
                rows.append(Row("averaged", *averaged, (index,)))
        pairs = {index: pair for pair, index in self.pairs.items()}
        for index, run in self.multi.items():
            cascade = self.cascade(index)
            if index in pairs:
                naive, pixels = self.naive(pairs[index]), "/".join(str(self.runs[i].resolution) for i in pairs[index])
                rows += [_row("naive cascade", pixels, naive, t, pairs[index]) for t in self._thresholds(run, naive)]
            default = self.default(index)
            thresholds = sorted({*self._thresholds(run, cascade), *([] if default is None else [default])})
            kind, pixels = "composed" if run.is_composed else "multi-scale", "/".join(map(str, run.spec.resolutions))
            rows += [_row(kind, pixels, cascade, t, (index,), t == default) for t in thresholds]
        return rows

    def _thresholds(self, run: Run, cascade: Cascade) -> list[float]:
        """The highest thresholds at which the run costs no more than the base network at each size from half to
        full.
        """
        options = {name: value for name, value in run.last_network[1].items() if name not in OF_SCALES}
        sizes = _between(run.resolution)
        budgets = [cost(self.backbone, len(run.spec.classes), size, options)[-1] for size in sizes]
        takes = {threshold: cascade.at(threshold)[1] for threshold in THRESHOLDS}
        return sorted({max((t for t in THRESHOLDS if takes[t] <= budget + 1e-9), default=0.0) for budget in budgets})

    def seeds(self) -> list[Seeds]:
        """Results of runs that were repeated with several seeds: single-scale runs at their own size, others at
        threshold 1 and at their default threshold.
        """
        alike: dict[str, dict[str, int]] = {}
        for index, run in self.runs.items():
            recipe = {name: value for name, value in run.recipe.items() if name != "seed"}
            by_seed = alike.setdefault(repr((run.spec.architecture, run.resolution, sorted(recipe.items()))), {})
            by_seed.setdefault(str(run.seed), index)
        found = []
        for by_seed in alike.values():
            indices = list(by_seed.values())
            if len(indices) < 2:
                continue
            if indices[0] in self.single:
                measured = {"single-scale": [self.accuracy(i, self.runs[i].resolution)[1] for i in indices]}
            else:
                measured = {"multi-scale, last stage": [self.cascade(i).at(1)[2] for i in indices]}
                defaults = [(i, self.default(i)) for i in indices]
                if all(threshold is not None for _, threshold in defaults):
                    measured["multi-scale, default threshold"] = [self.cascade(i).at(t or 0.0)[2] for i, t in defaults]
            for of, values in measured.items():
                found.append(Seeds(tuple(indices), of, mean(values), stdev(values) / math.sqrt(len(values))))
        return found

    def verdict(self, index: int) -> Verdict:
        """A multi-scale run compared with its baselines."""
        run, cascade = self.runs[index], self.cascade(index)
        pair, low, high = self.pair(index), self.low_run(run), self.high_run(run)
        singles = [self.runs[i] for i in (low, high) if i is not None]
        otherwise = tuple(sorted({each for single in singles for each in differences(run, single)}))
        ahead = None if pair is None else gap(cascade, self.naive(pair), cascade.full_cost)
        if high is None:
            return Verdict(index, gap_to_naive=ahead, otherwise=otherwise)
        is_right = right(self.bench.passes(self.runs[high]))
        cheapest = matching_cost(cascade, is_right)
        return Verdict(
            index,
            float(is_right.mean()),
            Estimate(*(cost / cascade.full_cost for cost in (cheapest.value, cheapest.low, cheapest.high))),
            gain(cascade, is_right, cascade.full_cost),
            ahead,
            otherwise,
        )


def _between(full: int) -> list[int]:
    """Sizes from half of ``full`` to ``full``, and the multiples of ``STEP`` between them."""
    half = full // 2
    return sorted({half, full, *range(-(-half // STEP) * STEP, full, STEP)})


def right(passes: Passes) -> Bools:
    """Whether each answer of a single-scale network is right, (n,)."""
    return passes.answers().right[:, -1]


def two_sizes(group: Group, index: int) -> Cascade:
    """The passes of one single-scale run at half its size and at its own, for the paper's Figure 2."""
    run = group.runs[index]
    sizes = group.sizes(run)
    ends = sizes[0], sizes[-1]
    return Cascade.naive(
        [group.bench.passes(run, size) for size in ends], [group.bench.mmacs(run, size)[-1] for size in ends]
    )


def _row(
    kind: str, pixels: str, cascade: Cascade, threshold: float, runs: tuple[int, ...], is_default: bool = False
) -> Row:
    exit_rate, mmacs, accuracy = cascade.at(threshold)
    return Row(kind, pixels, mmacs, accuracy, runs, threshold, exit_rate, is_default)
