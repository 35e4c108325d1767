"""The goal of one model in the runtime config, and its threshold in force."""

from __future__ import annotations

from service.calibration.follow import Standing
from service.inference.predictor import Predictor
from service.state.base import ConfigSource, ThresholdConfig


class Asked:
    """Callable that returns the current goal, with the threshold in force if it follows the traffic.

    Args:
        config: the source of the threshold.
        predictor: the model, whose default applies without a config.

    Attributes:
        standing: the state of following, if any.
    """

    def __init__(self, config: ConfigSource, predictor: Predictor) -> None:
        self.standing = Standing()
        self._config = config
        self._predictor = predictor

    def __call__(self) -> ThresholdConfig:
        return self.standing.applied(self.first)

    @property
    def first(self) -> ThresholdConfig:
        """The goal as in the config, with the threshold solved when it was set."""
        current, spec = self._config.current, self._predictor.spec
        if current.trial is not None and current.trial.key == spec.key:
            return current.trial.threshold
        return current.thresholds.get(spec.name) or self._predictor.default_threshold
