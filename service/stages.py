"""The stages of a cascade as data: everything that other parts know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a model.

    Attributes:
        name: unique in its model; the ``exit`` of images that end here, and the label of its metrics.
        resolution: side of its input, pixels.
        mmacs: millions of multiply-adds of this stage alone (see ``networks.cost``).
        temperature: its logits are divided by it before the softmax; 1 until calibrated.
        mean, std: of the RGB channels, where they differ from the model's preprocessing.
    """

    name: str
    resolution: int
    mmacs: float
    temperature: float = 1.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def up_to_each(costs: Sequence[float]) -> tuple[float, ...]:
    """Cost of an image that ends at each stage, from the cost of each stage alone: running sums."""
    return tuple(accumulate(costs))


def mean_cost(ends: Sequence[float], costs: Sequence[float]) -> float:
    """Mean cost per image: the share that ends at each stage times the cost up to there, summed.

    Args:
        ends: share of images that end at each stage; they sum to 1.
        costs: of each stage alone, in any unit.
    """
    return sum(share * cost for share, cost in zip(ends, up_to_each(costs), strict=True))


def exit_rate(ends: Sequence[int]) -> float | None:
    """The share of images that end before the last stage, by how many end at each; None without any."""
    images = sum(ends)
    return sum(ends[:-1]) / images if images else None
