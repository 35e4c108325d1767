"""The runtime config as the engines see it: what was asked for, as far as the models that serve allow."""

from __future__ import annotations

from collections.abc import Sequence

from service.inference.predictor import Predictor
from service.state.base import ConfigSource, RuntimeConfig


def first_config(predictors: Sequence[Predictor]) -> RuntimeConfig:
    """What stands before anything was asked: every model at its default threshold."""
    return RuntimeConfig(
        version=1,
        thresholds={predictor.spec.name: predictor.default_threshold for predictor in predictors},
        models=dict(predictor.spec.key for predictor in predictors),
    )


class Applied:
    """A config store's config; while other models than those that serve are asked for, the last one that they fit.

    Its thresholds were solved for the models it names: none of them would keep its promise with another version.

    Attributes:
        served: name and version of each model that serves, in order. ``tried``: of the one that can be tried.
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
        """Whether what serves, and is tried, is what is asked for."""
        newest = self._config.current
        tried = None if newest.trial is None else newest.trial.key
        return newest.served == self.served and tried == self.tried
