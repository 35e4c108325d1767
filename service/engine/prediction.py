"""What a threshold will do on this machine: the calibration table's shares, and the latency table's milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import InvalidOption
from service.inference.calibration import Effect
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.stages import mean_cost
from service.state.base import Goal


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Compute of one worker per image answered, and what the single-scale network would have taken; None if unknown."""

    mean_seconds: float | None
    single_scale_seconds: float | None

    @property
    def saved(self) -> float | None:
        """Share of the single-scale network's time that was saved."""
        if self.mean_seconds is None or not self.single_scale_seconds:
            return None
        return 1 - self.mean_seconds / self.single_scale_seconds

    @staticmethod
    def cost_per_million(seconds: float | None, per_hour: float | None) -> float | None:
        """What a million images cost where an hour of a worker costs ``per_hour``, in its currency."""
        return None if seconds is None or per_hour is None else 1e6 * seconds * per_hour / 3600


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of a threshold: ``effect`` by the calibration table, None without one; and its time."""

    effect: Effect | None
    time: TimeSpent


def predict(predictor: Predictor, table: LatencyTable, max_batch_size: int, threshold: float) -> Prediction:
    """What ``threshold`` is expected to do, in batches of the best size up to ``max_batch_size``."""
    calibration = predictor.calibration
    effect = None if calibration is None else calibration.predict(threshold)
    seconds = None if effect is None else mean_cost(effect.ends, table.seconds_per_image(max_batch_size))
    return Prediction(effect, TimeSpent(seconds, table.single_seconds_per_image(max_batch_size)))


def solve(predictor: Predictor, table: LatencyTable, max_batch_size: int, goal: Goal, value: float) -> float:
    """The threshold that a goal asks for.

    Raises:
        InvalidOption: it has no answer, or no table to find it in.
    """
    if goal != "max_mean_ms":
        return predictor.solve(goal, value)
    if predictor.calibration is None:
        raise InvalidOption(goal, value, "left out: the model has no calibration table (only threshold can be set)")
    milliseconds = tuple(1e3 * seconds for seconds in table.seconds_per_image(max_batch_size))
    return predictor.calibration.highest_within(goal, value, milliseconds, "ms")


def break_even(table: LatencyTable, max_batch_size: int) -> float | None:
    """The share of images that must exit at the first stage for the cascade to cost the single-scale network's time.

    The others are reckoned to run every stage. Above 1 where it never pays; None where that network was not measured.
    """
    single = table.single_seconds_per_image(max_batch_size)
    first, *later = table.seconds_per_image(max_batch_size)
    if single is None or not later:
        return None
    return 1 - (single - first) / sum(later)
