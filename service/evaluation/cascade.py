"""A cascade's accuracy against its cost, and whether one is ahead of another by more than chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from service.evaluation.passes import Bools, Passes
from service.stages import Temperature

Floats = npt.NDArray[np.float64]
Rate = TypeVar("Rate", float, Floats)

DRAWS = 1000
CHUNK = 50  # draws at a time, for the sake of memory
GAP_COSTS = (0.4, 1.0)  # of the high network, between which a gap is averaged
GAP_POINTS = 61


@dataclass(frozen=True, slots=True)
class Cascade:
    """What a low and a high pass made of n images; any threshold's accuracy and cost follow.

    Attributes:
        confidence: of each low answer, (n,).
        low_right, high_right: whether each answer is right, (n,).
        low_cost, high_cost: of each pass, for one image, in one unit.
    """

    confidence: Floats
    low_right: Bools
    high_right: Bools
    low_cost: float
    high_cost: float

    @classmethod
    def of(cls, passes: Passes, temperature: Temperature, low_cost: float, high_cost: float) -> Cascade:
        """Of a multi-scale network."""
        answers = passes.answers(temperature)
        return cls(answers.confidence, answers.low_right, answers.high_right, low_cost, high_cost)

    @classmethod
    def naive(cls, low: Passes, high: Passes, low_cost: float, high_cost: float) -> Cascade:
        """Of two independent networks on the same photographs: the second sees what the first is unsure of."""
        first, second = low.answers(), high.answers()
        return cls(first.confidence, first.high_right, second.high_right, low_cost, high_cost)

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Exit rate, mean cost of an image, accuracy."""
        exited = self.confidence > threshold
        exit_rate = float(exited.mean())
        accuracy = float(np.where(exited, self.low_right, self.high_right).mean())
        return exit_rate, self.mean_cost(exit_rate), accuracy

    def mean_cost(self, exit_rate: Rate) -> Rate:
        """Of an image, when the share ``exit_rate`` of images exits; of many rates at once, too."""
        return self.low_cost + (1 - exit_rate) * self.high_cost

    def curve(self) -> tuple[Floats, Floats]:
        """Mean cost (n + 1,), falling, and accuracy: the surest 0, 1, … n images exit."""
        exits, accuracy = self._curves(np.ones((1, len(self.confidence)), dtype=np.int64))
        return self.mean_cost(exits[0]), accuracy[0]

    def accuracy_at(self, costs: Floats, counts: npt.NDArray[np.int64] | None = None) -> Floats:
        """Accuracy at mean ``costs`` (m,) -> (m,); with ``counts`` (draws, n), how often each draw took each image,
        (draws, m)."""
        drawn = np.ones((1, len(self.confidence)), dtype=np.int64) if counts is None else counts
        wanted = 1 - (np.asarray(costs) - self.low_cost) / self.high_cost
        found = np.stack([np.interp(wanted, e, a) for e, a in zip(*self._curves(drawn), strict=True)])
        return found[0] if counts is None else found

    def cheapest(self, accuracies: Floats, counts: npt.NDArray[np.int64]) -> Floats:
        """The least mean cost at which each draw's curve reaches its accuracy: (draws,) and how often each draw took
        each image (draws, n) -> (draws,); infinite where it never does."""
        exits, reached = self._curves(counts)
        costs = np.where(reached >= accuracies[:, None] - 1e-12, self.mean_cost(exits), np.inf)
        return np.asarray(costs.min(1), dtype=np.float64)

    def _curves(self, counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Exit rate and accuracy, each (draws, n + 1), of the surest 0, 1, … images."""
        order = np.argsort(-self.confidence, kind="stable")
        counts = counts[:, order]
        total = counts.sum(1, keepdims=True)
        gained = counts * (self.low_right[order].astype(np.int64) - self.high_right[order])
        right = (counts * self.high_right[order]).sum(1, keepdims=True)
        none = np.zeros_like(total)
        exits = np.concatenate([none, counts.cumsum(1)], axis=1) / total
        return exits, (right + np.concatenate([none, gained.cumsum(1)], axis=1)) / total


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval over images."""

    value: float
    low: float
    high: float


def gap(one: Cascade, other: Cascade, high_cost: float, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """How far ``one`` is ahead of ``other``: the mean gap in accuracy over costs from 0.4 to 1.0 of ``high_cost``.

    Paired bootstrap over images (percentile interval): every draw takes the same images for both.
    """
    costs = np.linspace(*GAP_COSTS, GAP_POINTS) * high_cost

    def lead(counts: npt.NDArray[np.int64]) -> Floats:
        ahead = one.accuracy_at(costs, counts) - other.accuracy_at(costs, counts)
        return np.asarray(ahead.mean(1), dtype=np.float64)

    return _bootstrap(lead, len(one.confidence), draws, seed)


def gain(cascade: Cascade, right: Bools, cost: float, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """How far ``cascade`` at mean ``cost`` is ahead of a network of that cost that is ``right`` (n,); as ``gap``."""

    def lead(counts: npt.NDArray[np.int64]) -> Floats:
        return cascade.accuracy_at(np.array([cost]), counts)[:, 0] - counts @ right / len(right)

    return _bootstrap(lead, len(right), draws, seed)


def matching_cost(cascade: Cascade, right: Bools, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The least mean cost at which ``cascade`` is as accurate as a network that is ``right`` (n,); infinite where it
    never is. The threshold that gives it is chosen on the same images. Intervals as ``gap``."""

    def cost(counts: npt.NDArray[np.int64]) -> Floats:
        return cascade.cheapest(counts @ right / len(right), counts)

    return _bootstrap(cost, len(right), draws, seed)


def _bootstrap(value: Callable[[npt.NDArray[np.int64]], Floats], images: int, draws: int, seed: int) -> Estimate:
    """``value`` gives one for each row of counts, how often a draw took each image."""
    random, shares = np.random.default_rng(seed), np.full(images, 1 / images)
    sizes = [min(CHUNK, draws - start) for start in range(0, draws, CHUNK)]
    drawn = np.concatenate([value(random.multinomial(images, shares, size)) for size in sizes])
    with np.errstate(invalid="ignore"):  # between infinity and infinity
        low, high = np.nan_to_num(np.quantile(drawn, (0.025, 0.975)), nan=np.inf, posinf=np.inf).tolist()
    return Estimate(float(value(np.ones((1, images), dtype=np.int64))[0]), low, high)
