"""Gauges of trials, updated at every scrape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import Gauge

from service.hosting.applied import Applied
from service.metrics import Metrics
from service.state.base import GUARDED

KINDS = ("canary", "shadow")


class TrialGauges:
    """Keeps the gauges of trials in step with the served models and the model on trial."""

    def __init__(self, metrics: Metrics, applied: Applied) -> None:
        self._metrics = metrics
        self._applied = applied
        self._followed: dict[tuple[Gauge, tuple[str, ...]], Callable[[], float]] = {}

    def follow(self, served: Sequence[tuple[str, str]], tried: str | None) -> None:
        """Set the served models, by name and reference, and the model on trial."""
        metrics = self._metrics
        wanted: dict[tuple[Gauge, tuple[str, ...]], Callable[[], float]] = {
            (metrics.trial_cancelled, (reference,)): partial(self._cancelled, name) for name, reference in served
        }
        if tried is not None:
            metrics.try_out(tried)
            wanted |= {(metrics.trial_share, (tried, kind)): partial(self._share, tried, kind) for kind in KINDS}
        for gauge, labels in self._followed.keys() - wanted.keys():
            gauge.labels(*labels).set_function(lambda: math.nan)
            gauge.remove(*labels)
        for (gauge, labels), value in wanted.items():
            gauge.labels(*labels).set_function(value)
        self._followed = wanted

    def _cancelled(self, name: str) -> float:
        ended = self._applied.current.ended
        return ended.at if ended is not None and ended.beside == name and ended.outcome in GUARDED else 0.0

    def _share(self, tried: str, kind: str) -> float:
        trial = self._applied.current.trial
        return trial.share if trial is not None and trial.reference == tried and trial.kind == kind else 0.0
