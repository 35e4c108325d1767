"""The runtime config as the engines see it: what was asked for, as far as the models that serve allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.errors import ConfigConflict
from service.inference.predictor import Predictor
from service.state.base import ConfigSource, RuntimeConfig, ThresholdConfig


def first_config(predictors: Sequence[Predictor]) -> RuntimeConfig:
    """What stands before anything was asked: every model at its default threshold."""
    return RuntimeConfig(
        version=1,
        thresholds={predictor.spec.name: predictor.default_threshold for predictor in predictors},
        models=dict(predictor.spec.key for predictor in predictors),
    )


class Applied:
    """A config store's config; while other models than those that serve are asked for, the last that they fit.

    Thresholds of models that serve then are the newest all the same.

    Attributes:
        models: version of each model that serves, by its name.
    """

    def __init__(self, config: ConfigSource, start: RuntimeConfig) -> None:
        self.models = start.models
        self._config = config
        self._last = start

    @property
    def current(self) -> RuntimeConfig:
        """The config in force."""
        newest = self._config.current
        if newest is not self._last:
            if newest.models == self.models:
                self._last = newest
            else:
                thresholds = {name: newest.thresholds.get(name, last) for name, last in self._last.thresholds.items()}
                return replace(self._last, thresholds=thresholds)
        return self._last


def exchanged(current: RuntimeConfig, old: Predictor, new: Predictor) -> RuntimeConfig:
    """``current`` with ``new`` in the place of ``old``, whose goal is solved anew.

    Raises:
        ConfigConflict: ``old`` is not what was to be served.
        InvalidOption: the goal cannot be reached.
    """
    if current.models.get(old.spec.name) != old.spec.version:
        raise ConfigConflict(f"{old.spec.reference} was exchanged meanwhile", field="model", value=old.spec.reference)
    models = dict(new.spec.key if key == old.spec.key else key for key in current.models.items())
    thresholds = {name: asked for name, asked in current.thresholds.items() if name in models}
    asked = current.thresholds.get(old.spec.name, old.default_threshold)
    return replace(current, models=models, thresholds={**thresholds, new.spec.name: _solved_anew(asked, old, new)})


def _solved_anew(asked: ThresholdConfig, old: Predictor, new: Predictor) -> ThresholdConfig:
    """What was asked of ``old``, for ``new``. A threshold that was the old one's default becomes the new one's."""
    if asked == old.default_threshold:
        return new.default_threshold
    threshold = new.solve(asked.goal, asked.value)
    floor = None if asked.floor is None else min(asked.floor, threshold)
    return replace(asked, threshold=threshold, floor=floor)
