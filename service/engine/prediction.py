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
    """Compute of workers for ``images``, in ``seconds`` together; what the single-scale network would take per image.

    ``single_scale_seconds`` is None where that was not measured.
    """

    images: float
    seconds: float
    single_scale_seconds: float | None

    @property
    def mean_seconds(self) -> float | None:
        """Per image; None before the first."""
        return self.seconds / self.images if self.images else None

    @property
    def saved(self) -> float | None:
        """Share of the single-scale network's time that is saved; negative where the cascade costs more."""
        if self.mean_seconds is None or not self.single_scale_seconds:
            return None
        return 1 - self.mean_seconds / self.single_scale_seconds

    @staticmethod
    def cost_per_million(seconds: float | None, per_hour: float | None) -> float | None:
        """What a million images of ``seconds`` cost where an hour of a worker costs ``per_hour``, in its currency."""
        return None if seconds is None or per_hour is None else 1e6 * seconds * per_hour / 3600


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of a threshold: ``effect`` by the calibration table, None without one; and time per image."""

    effect: Effect | None
    time: TimeSpent


def predict(predictor: Predictor, table: LatencyTable, max_batch_size: int, threshold: float) -> Prediction:
    """What ``threshold`` is expected to do, in batches of the best size up to ``max_batch_size``."""
    calibration = predictor.calibration
    effect = None if calibration is None else calibration.predict(threshold)
    seconds = 0.0 if effect is None else mean_cost(effect.ends, table.seconds_per_image(max_batch_size))
    single = table.single_seconds_per_image(max_batch_size)
    return Prediction(effect, TimeSpent(0.0 if effect is None else 1.0, seconds, single))


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
