"""Predicts the effect of a threshold on this machine, from the calibration table and the latency table."""

from __future__ import annotations

from dataclasses import dataclass

from service.calibration.certify import Effect
from service.errors import InvalidOption
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.stages import mean_cost
from service.state.base import Goal


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Worker seconds for ``images``, and the single-scale network's for the same images.

    ``single_scale_seconds`` is None if it was not measured.
    """

    images: float
    seconds: float
    single_scale_seconds: float | None

    @property
    def mean_seconds(self) -> float | None:
        """Per image; None before the first."""
        return self.seconds / self.images if self.images else None

    @property
    def single_scale_mean_seconds(self) -> float | None:
        """The single-scale network's seconds per image; None before the first, or if it was not measured."""
        return self.single_scale_seconds / self.images if self.images and self.single_scale_seconds else None

    @property
    def saved(self) -> float | None:
        """Share of the single-scale network's time saved; negative if the cascade takes longer."""
        if not self.images or not self.single_scale_seconds:
            return None
        return 1 - self.seconds / self.single_scale_seconds

    @staticmethod
    def cost_per_million(seconds: float | None, per_hour: float | None) -> float | None:
        """Cost of a million images at ``seconds`` each, if an hour of a worker costs ``per_hour``."""
        return None if seconds is None or per_hour is None else 1e6 * seconds * per_hour / 3600


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted effect of a threshold: ``effect`` from the calibration table, None without one; and time per image.

    ``break_even``: see ``LatencyTable.break_even``.
    """

    effect: Effect | None
    time: TimeSpent
    break_even: float | None


def predict(predictor: Predictor, table: LatencyTable, max_batch_size: int, threshold: float) -> Prediction:
    """The predicted effect of ``threshold``, in batches of the best size up to ``max_batch_size``."""
    calibration = predictor.calibration
    effect = None if calibration is None else calibration.predict(threshold)
    seconds = 0.0 if effect is None else mean_cost(effect.ends, table.seconds_per_image(max_batch_size))
    single = table.single_seconds_per_image(max_batch_size)
    spent = TimeSpent(0.0 if effect is None else 1.0, seconds, single)
    return Prediction(effect, spent, table.break_even(max_batch_size))


def costs(predictor: Predictor, table: LatencyTable, max_batch_size: int, goal: Goal) -> tuple[float, ...]:
    """Cost of each stage alone per image, in the unit of a budget: milliseconds for ``max_mean_ms``, otherwise million
    multiply-adds.
    """
    if goal != "max_mean_ms":
        return predictor.spec.mmacs
    return tuple(1e3 * seconds for seconds in table.seconds_per_image(max_batch_size))


def solve(predictor: Predictor, table: LatencyTable, max_batch_size: int, goal: Goal, value: float) -> float:
    """The threshold of a goal.

    Raises:
        InvalidOption: it cannot be reached, or there is no table.
    """
    if goal != "max_mean_ms":
        return predictor.solve(goal, value)
    if predictor.calibration is None:
        raise InvalidOption(goal, value, "absent: the model has no calibration table, so only threshold can be set")
    return predictor.calibration.highest_within(goal, value, costs(predictor, table, max_batch_size, goal), "ms")
