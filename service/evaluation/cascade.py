"""A cascade's accuracy against its cost, and whether one is ahead of another by more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.calibration.exit_rule import end_stages
from service.evaluation.passes import Bools, Ints, Passes
from service.stages import mean_cost, up_to_each

Floats = npt.NDArray[np.float64]

# What a bootstrap draws: how often each draw took each image, (draws, n) -> a value of each draw, (draws,).
Value = Callable[[Ints], Floats]

DRAWS = 1000
CHUNK = 50  # draws at a time, for the sake of memory
GAP_COSTS = (0.4, 1.0)  # of the last network, between which a gap is averaged
GAP_POINTS = 61


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the stages made of n images; any threshold's accuracy and cost follow.

    Attributes:
        confidence: of the answers of every stage but the last, (n, stages - 1).
        right: whether each stage's answer is, (n, stages).
        costs: of each stage alone, for one image, in one unit.
    """

    confidence: Floats
    right: Bools
    costs: tuple[float, ...]

    @classmethod
    def of(cls, passes: Passes, temperatures: Sequence[float], costs: Sequence[float]) -> Cascade:
        """Of a network of several stages."""
        answers = passes.answers(temperatures)
        return cls(answers.confidence, answers.right, tuple(costs))

    @classmethod
    def naive(cls, networks: Sequence[Passes], costs: Sequence[float]) -> Cascade:
        """Of independent networks on the same photographs: each sees what the one before is unsure of."""
        logits = tuple(passes.logits[-1] for passes in networks)
        return cls.of(Passes(logits, networks[0].targets), (1.0,) * len(logits), costs)

    @property
    def full_cost(self) -> float:
        """Of the last stage alone."""
        return self.costs[-1]

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Share of images that end early, mean cost of an image, accuracy."""
        ends = end_stages(self.confidence, threshold)
        shares = [float((ends == stage).mean()) for stage in range(len(self.costs))]
        accuracy = float(self.right[np.arange(len(ends)), ends].mean())
        return 1 - shares[-1], mean_cost(shares, self.costs), accuracy

    def curve(self) -> tuple[Floats, Floats]:
        """Mean cost, falling, and accuracy, as the threshold falls past one confidence after the other."""
        costs, accuracy = self._curves(np.ones((1, len(self.right)), dtype=np.int64))
        return costs[0], accuracy[0]

    def accuracy_at(self, costs: Floats, counts: Ints | None = None) -> Floats:
        """Accuracy at mean ``costs`` (m,) -> (m,); with ``counts`` (draws, n), how often each draw took each image,
        (draws, m)."""
        drawn = np.ones((1, len(self.right)), dtype=np.int64) if counts is None else counts
        wanted = -np.asarray(costs)
        found = np.stack([np.interp(wanted, -c, a) for c, a in zip(*self._curves(drawn), strict=True)])
        return found[0] if counts is None else found

    def cheapest(self, accuracies: Floats, counts: Ints) -> Floats:
        """The least mean cost at which each draw's curve reaches its accuracy: (draws,) and how often each draw took
        each image (draws, n) -> (draws,); infinite where it never does."""
        costs, reached = self._curves(counts)
        affordable = np.where(reached >= accuracies[:, None] - 1e-12, costs, np.inf)
        return np.asarray(affordable.min(1), dtype=np.float64)

    def _curves(self, counts: Ints) -> tuple[Floats, Floats]:
        """Mean cost and accuracy, each (draws, steps + 1), as the threshold falls from 1."""
        image, cheaper, better = self._steps()
        total = counts.sum(1, keepdims=True)
        totals, right = up_to_each(self.costs), (counts * self.right[:, -1]).sum(1, keepdims=True)
        none = np.zeros_like(total)
        saved = np.concatenate([none, (counts[:, image] * cheaper).cumsum(1)], axis=1)
        gained = np.concatenate([none, (counts[:, image] * better).cumsum(1)], axis=1)
        return totals[-1] - saved / total, (right + gained) / total

    def _steps(self) -> tuple[Ints, Floats, Ints]:
        """As the threshold falls: which image ends at an earlier stage next, what that saves, and whether it turns its
        answer right (1), wrong (-1) or neither."""
        totals = np.array(up_to_each(self.costs))
        stages = np.arange(self.confidence.shape[1])
        image, stage = (each.ravel() for each in np.indices(self.confidence.shape))
        order = np.lexsort((stage, -self.confidence.ravel()))
        image, stage = image[order], stage[order]
        ends = np.full(len(self.right), len(stages))
        before = np.empty_like(stage)
        for step, (each, earlier) in enumerate(zip(image.tolist(), stage.tolist(), strict=True)):
            before[step] = ends[each]
            ends[each] = min(ends[each], earlier)
        moves = stage < before
        image, stage, before = image[moves], stage[moves], before[moves]
        better = self.right[image, stage].astype(np.int64) - self.right[image, before]
        return image, totals[before] - totals[stage], better


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval over images."""

    value: float
    low: float
    high: float


def lead(one: Cascade, other: Cascade, full_cost: float) -> Value:
    """How far ``one`` is ahead of ``other``: the mean gap in accuracy over costs from 0.4 to 1.0 of ``full_cost``."""
    costs = np.linspace(*GAP_COSTS, GAP_POINTS) * full_cost

    def value(counts: Ints) -> Floats:
        ahead = one.accuracy_at(costs, counts) - other.accuracy_at(costs, counts)
        return np.asarray(ahead.mean(1), dtype=np.float64)

    return value


def lead_at(cascade: Cascade, right: Bools, cost: float) -> Value:
    """How far ``cascade`` at mean ``cost`` is ahead of a network of that cost that is ``right`` (n,)."""
    return lambda counts: cascade.accuracy_at(np.array([cost]), counts)[:, 0] - accuracy(right)(counts)


def cost_to_match(cascade: Cascade, right: Bools) -> Value:
    """The least mean cost at which ``cascade`` is as accurate as a network that is ``right`` (n,); infinite where it
    never is. The threshold that gives it is chosen on the same images."""
    return lambda counts: cascade.cheapest(accuracy(right)(counts), counts)


def accuracy(right: Bools) -> Value:
    """Of a network that is ``right`` (n,)."""
    return lambda counts: np.asarray(counts @ right / len(right), dtype=np.float64)


def gap(one: Cascade, other: Cascade, full_cost: float, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """``lead``. Paired bootstrap over images (percentile interval): every draw takes the same images for both."""
    return _bootstrap(lead(one, other, full_cost), len(one.right), draws, seed)


def gain(cascade: Cascade, right: Bools, cost: float, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """``lead_at``; intervals as ``gap``."""
    return _bootstrap(lead_at(cascade, right, cost), len(right), draws, seed)


def matching_cost(cascade: Cascade, right: Bools, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """``cost_to_match``; intervals as ``gap``."""
    return _bootstrap(cost_to_match(cascade, right), len(right), draws, seed)


def drawn_images(images: int, draws: int, seed: int) -> Iterator[Ints]:
    """How often each of ``draws`` took each image: some draws at a time, (some, images)."""
    random, shares = np.random.default_rng(seed), np.full(images, 1 / images)
    for start in range(0, draws, CHUNK):
        yield random.multinomial(images, shares, min(CHUNK, draws - start))


def middle(values: Floats) -> tuple[float, float]:
    """Between which 95 % of ``values`` lie, some of which may be infinite."""
    with np.errstate(invalid="ignore"):  # between infinity and infinity
        low, high = np.nan_to_num(np.quantile(values, (0.025, 0.975)), nan=np.inf, posinf=np.inf).tolist()
    return low, high


def _bootstrap(value: Value, images: int, draws: int, seed: int) -> Estimate:
    drawn = np.concatenate([value(counts) for counts in drawn_images(images, draws, seed)])
    return Estimate(float(value(np.ones((1, images), dtype=np.int64))[0]), *middle(drawn))
