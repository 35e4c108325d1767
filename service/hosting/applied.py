"""The runtime config as the engines use it, as far as it fits the served models."""

from __future__ import annotations

from collections.abc import Sequence

from service.inference.predictor import Predictor
from service.state.base import ConfigSource, RuntimeConfig


def first_config(predictors: Sequence[Predictor]) -> RuntimeConfig:
    """The config at start-up: every model at its default threshold."""
    return RuntimeConfig(
        version=1,
        thresholds={predictor.spec.name: predictor.default_threshold for predictor in predictors},
        models=dict(predictor.spec.key for predictor in predictors),
    )


class Applied:
    """The config of a config store. If it names models other than the served ones, the last config that fits them.

    Thresholds are solved for the models that a config names; with another version they would not keep the promise.

    Attributes:
        served: name and version of each served model, in order. ``tried``: of the model that is ready for a trial.
    """

    def __init__(self, config: ConfigSource, start: RuntimeConfig) -> None:
        self.served = start.served
        self.tried: tuple[str, int] | None = None
        self._config = config
        self._last = start

    @property
    def current(self) -> RuntimeConfig:
        """The config in force."""
        newest = self._config.current
        if newest is not self._last and newest.served == self.served:
            self._last = newest
        return self._last

    @property
    def is_newest(self) -> bool:
        """Whether the served models, and the one on trial, are those of the newest config."""
        newest = self._config.current
        tried = None if newest.trial is None else newest.trial.key
        return newest.served == self.served and tried == self.tried
