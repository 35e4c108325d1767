"""Results of a comparison over several seeds: mean, standard error, and an interval over seeds and photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import numpy as np

from service.evaluation.cascade import (
    DRAWS,
    Cascade,
    Value,
    accuracy,
    cost_to_match,
    drawn_images,
    lead,
    lead_at,
    middle,
)
from service.evaluation.passes import Bools, Ints


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One value per seed on all photographs, and the 95 % interval of their mean over seeds and photographs."""

    each: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean over seeds; infinite if one value is."""
        return fmean(self.each)

    @property
    def error(self) -> float:
        """Standard error of the mean over seeds; NaN with one seed, or if a value is infinite."""
        finite = len(self.each) > 1 and all(map(math.isfinite, self.each))
        return stdev(self.each) / math.sqrt(len(self.each)) if finite else math.nan


def over_seeds(values: Sequence[Value], images: int, draws: int = DRAWS, seed: int = 0) -> OverSeeds:
    """``values``, one per seed, all of the same ``images`` photographs in the same order.

    Bootstrap in two stages (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Every
    draw takes as many seeds as there are, with replacement, and photographs, the same for all of its seeds. With n
    seeds the interval covers (n - 1) / n of the variance between seeds; with one seed, none of it.
    """
    everything = np.ones((1, images), dtype=np.int64)
    found = np.concatenate(
        [np.stack([value(counts) for value in values]) for counts in drawn_images(images, draws, seed)], axis=1
    )
    chosen = np.random.default_rng(seed + 1).integers(len(values), size=(len(values), draws))
    low, high = middle(np.take_along_axis(found, chosen, axis=0).mean(0))
    return OverSeeds(tuple(float(value(everything)[0]) for value in values), low, high)


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed of a comparison. All networks are tested on the same photographs, and all costs have one unit.

    Attributes:
        multi: the multi-scale network.
        single: whether the single-scale network at the high resolution is right, (n,).
        single_cost: cost of that network for one image.
        naive: the cascade of single-scale networks at the low and the high resolution; None if one is missing.
    """

    multi: Cascade
    single: Bools
    single_cost: float
    naive: Cascade | None = None


def cost_at_its_accuracy(trials: Sequence[Trial]) -> OverSeeds:
    """The lowest mean cost at which the multi-scale network is as accurate as the single-scale one, relative to the
    latter's cost; infinite if it never is. The threshold is chosen on the same photographs.
    """
    return _over(trials, _matching)


def top1_at_its_cost(trials: Sequence[Trial]) -> OverSeeds:
    """The multi-scale network's lead in top-1 (from 0 to 1) at the single-scale network's cost."""
    return _over(trials, _ahead)


def lead_over_naive(trials: Sequence[Trial]) -> OverSeeds | None:
    """The lead in top-1 over the naive cascade: mean over costs from 0.4 to 1.0 of the single-scale network's. None if
    a seed has no naive cascade.
    """
    if any(trial.naive is None for trial in trials):
        return None
    return _over(trials, _ahead_of_naive)


def gain_difference(some: Sequence[Trial], others: Sequence[Trial]) -> OverSeeds:
    """``top1_at_its_cost`` of ``some`` minus that of ``others``, seed by seed."""

    def value(one: Trial, other: Trial, counts: Ints) -> np.typing.NDArray[np.float64]:
        return _ahead(one)(counts) - _ahead(other)(counts)

    values = [partial(value, one, other) for one, other in zip(some, others, strict=True)]
    return over_seeds(values, len(some[0].single))


def lead_between(some: Sequence[Trial], others: Sequence[Trial]) -> OverSeeds:
    """The lead in top-1 of the multi-scale networks of ``some`` over those of ``others``, seed by seed, at equal costs
    from 0.4 to 1.0 of the single-scale network's.
    """
    values = [lead(one.multi, other.multi, one.single_cost) for one, other in zip(some, others, strict=True)]
    return over_seeds(values, len(some[0].single))


def top1(rights: Sequence[Bools]) -> OverSeeds:
    """Top-1 of networks, from whether each answer is right, (n,) for each seed."""
    return over_seeds([accuracy(right) for right in rights], len(rights[0]))


def _over(trials: Sequence[Trial], value: Callable[[Trial], Value]) -> OverSeeds:
    return over_seeds([value(trial) for trial in trials], len(trials[0].single))


def _matching(trial: Trial) -> Value:
    cost = cost_to_match(trial.multi, trial.single)
    return lambda counts: cost(counts) / trial.single_cost


def _ahead(trial: Trial) -> Value:
    return lead_at(trial.multi, trial.single, trial.single_cost)


def _ahead_of_naive(trial: Trial) -> Value:
    assert trial.naive is not None
    return lead(trial.multi, trial.naive, trial.single_cost)
