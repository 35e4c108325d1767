"""Gauges of the served engines, updated at every scrape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from service.engine.engine import Engine
from service.metrics import Metrics


class EngineGauges:
    """Keeps the gauges of one registry in step with the served engines."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._engines: tuple[Engine, ...] = ()

    def follow(self, engines: Iterable[Engine]) -> None:
        """Set the served engines."""
        before, self._engines = self._engines, tuple(engines)
        for engine in before:
            if engine not in self._engines:
                self._forget(engine)
        for engine in self._engines:
            if engine not in before:
                self._watch(engine)
        metrics = self._metrics
        metrics.watch(metrics.feature_bytes, lambda: sum(engine.feature_bytes for engine in self._engines))
        for name in {stage.name for engine in self._engines for stage in engine.spec.stages}:
            metrics.watch(metrics.queue_depth, partial(self._queue_depth, name), stage=name)
            metrics.watch(metrics.queued_seconds, partial(self._queue_age, name), stage=name)

    def _watch(self, engine: Engine) -> None:
        metrics, model = self._metrics, engine.spec.reference
        metrics.serve(model, [stage.name for stage in engine.spec.stages])
        metrics.single_scale_multiply_adds.labels(model).set(round(engine.spec.single_scale_mmacs * 1e6))
        metrics.watch(metrics.threshold, lambda: engine.asked.threshold, model=model)
        metrics.watch(metrics.effective_threshold, lambda: engine.effective_threshold, model=model)
        metrics.drift.labels(model)
        metrics.promise_lost.labels(model)
        calibration = engine.predictor.calibration
        if calibration is None:
            return
        metrics.watch(
            metrics.expected_exit_rate, lambda: calibration.predict(engine.asked.threshold).exit_rate, model=model
        )
        metrics.watch(metrics.promised_agreement, lambda: _as_number(calibration.promise(engine.asked)), model=model)
        metrics.watch(metrics.promise_kept, lambda: _as_number(engine.audit().promise_kept), model=model)

    def _forget(self, engine: Engine) -> None:
        metrics = self._metrics
        for gauge in (
            metrics.drift,
            metrics.promise_lost,
            metrics.single_scale_multiply_adds,
            metrics.threshold,
            metrics.effective_threshold,
            metrics.expected_exit_rate,
            metrics.promised_agreement,
            metrics.promise_kept,
        ):
            series = gauge.labels(engine.spec.reference)
            series.set_function(lambda: math.nan)  # a series and its source form a cycle
            gauge.remove(engine.spec.reference)

    def _queue_depth(self, name: str) -> int:
        return sum(engine.backlog.depths().get(name, 0) for engine in self._engines)

    def _queue_age(self, name: str) -> float:
        return max(
            (engine.backlog.age(index) for engine in self._engines for index in _where(engine, name)), default=0.0
        )


def _where(engine: Engine, name: str) -> list[int]:
    return [index for index, stage in enumerate(engine.spec.stages) if stage.name == name]


def _as_number(known: float | None) -> float:
    return math.nan if known is None else float(known)
