"""What the runtime config asks of one model, and the threshold that is in force for it."""

from __future__ import annotations

from service.engine.follow import Standing
from service.inference.predictor import Predictor
from service.state.base import ConfigSource, ThresholdConfig


class Asked:
    """Called, it gives what is asked for now, with the threshold in force where that follows the traffic.

    Args:
        config: where the threshold stands.
        predictor: the model, whose default is taken where the config says nothing.

    Attributes:
        standing: what the threshold follows, if anything.
    """

    def __init__(self, config: ConfigSource, predictor: Predictor) -> None:
        self.standing = Standing()
        self._config = config
        self._predictor = predictor

    def __call__(self) -> ThresholdConfig:
        return self.standing.applied(self.first)

    @property
    def first(self) -> ThresholdConfig:
        """As the config has it: with the threshold that was solved when it was asked for."""
        current, spec = self._config.current, self._predictor.spec
        if current.trial is not None and current.trial.key == spec.key:
            return current.trial.threshold
        return current.thresholds.get(spec.name) or self._predictor.default_threshold
